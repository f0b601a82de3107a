//! Redis Cluster as seen from outside: slots, topology, node client, replication stream, RESP.

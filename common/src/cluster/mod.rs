//! Redis Cluster as seen from outside: slots, topology, node client, replication stream, RESP.

pub mod replication;
pub mod resp;
pub mod slots;

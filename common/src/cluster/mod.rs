//! Redis Cluster as seen from outside: slots, topology, node client, replication stream, RESP.

pub mod info;
pub mod node;
pub mod replication;
pub mod resp;
pub mod slots;
pub mod topology;

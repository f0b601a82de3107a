//! Redis Cluster as seen from outside: endpoints and the dialer, node client, topology reader, slots, replication stream, RESP.

pub mod dial;
pub mod endpoint;
pub mod error;
pub mod info;
pub mod node;
pub mod reader;
pub mod replication;
pub mod resp;
pub mod seeds;
pub mod slot_map;
pub mod slots;
pub mod topology;

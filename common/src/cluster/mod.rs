//! Redis Cluster as seen from outside: endpoints and the dialer, node client, kept connections, topology reader, slots, replication stream, RESP.

pub mod dial;
pub mod endpoint;
pub mod error;
pub mod info;
pub mod kept_connections;
pub mod node;
pub mod reader;
pub mod replication;
pub mod resp;
pub mod seeds;
pub mod shared_lines;
pub mod slot_map;
pub mod slots;
pub mod topology;
pub mod transport;
pub mod version;

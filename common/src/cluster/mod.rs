//! Redis Cluster as seen from outside: slots, topology, node client, replication stream, RESP.

pub mod info;
pub mod node;
<<<<<<< HEAD
=======
pub mod replication;
pub mod resp;
>>>>>>> main
pub mod slots;
pub mod topology;

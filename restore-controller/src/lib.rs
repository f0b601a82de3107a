//! The restore-controller: replays a backup into a RedisCluster of any number of shards, and proves what arrived.
//!
//! Pure: [`plan`], [`status`], [`verify`], [`compatibility`]. Everything else does I/O and decides little.

pub mod compatibility;
pub mod plan;
pub mod replay;
pub mod status;
pub mod verify;

//! The restore-controller: replays a backup into a RedisCluster of any number of shards, and proves what arrived.

pub mod replay;

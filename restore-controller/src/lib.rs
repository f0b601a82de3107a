//! The restore-controller: replays a backup into a RedisCluster of any number of shards, and proves what arrived.
//!
//! Data and decisions, pure: [`plan`], [`units`], [`status`], [`verify`], [`compatibility`].
//! The data path, without Kubernetes: [`mod@replay`], [`source`], [`target`].
//! With Kubernetes: [`provision`], [`worker`], [`planner`] (both driven by [`common::claims`]), [`run`].

pub mod arguments;
pub mod compatibility;
pub mod memory;
pub mod metrics;
pub mod object_metrics;
pub mod plan;
pub mod planner;
pub mod provision;
pub mod replay;
pub mod run;
pub mod source;
pub mod status;
pub mod target;
pub mod units;
pub mod verify;
pub mod worker;

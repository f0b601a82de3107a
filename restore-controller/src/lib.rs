//! The restore-controller: replays a backup into a RedisCluster of any number of shards, and proves what arrived.
//!
//! Data and decisions, pure: [`plan`], [`status`], [`share`], [`mod@report`], [`verify`], [`compatibility`].
//! The way of the data, without Kubernetes: [`mod@replay`], [`source`], [`target`].
//! With Kubernetes: [`provision`], [`worker`], [`planner`], [`reconcile`], [`run`].

pub mod arguments;
pub mod compatibility;
pub mod memory;
pub mod metrics;
pub mod object_metrics;
pub mod plan;
pub mod planner;
pub mod provision;
pub mod reconcile;
pub mod replay;
pub mod report;
pub mod run;
pub mod share;
pub mod source;
pub mod status;
pub mod target;
pub mod verify;
pub mod worker;

//! The backup-controller: streams RedisBackups into S3-compatible storage and turns schedules into CronJobs.
//!
//! Data and decisions, pure: [`plan`], [`units`], [`select`], [`shards`], [`status`], [`schedule`], [`cron`].
//! The data path, without Kubernetes: [`survey`], [`capture`], [`mod@publish`], [`artifacts`].
//! With Kubernetes: [`worker`], [`planner`] (both driven by [`common::claims`]), [`schedules`], [`create_backup`],
//! [`own_image`], [`run`].

pub mod arguments;
pub mod artifacts;
pub mod capture;
pub mod create_backup;
pub mod cron;
pub mod metrics;
pub mod object_metrics;
pub mod own_image;
pub mod plan;
pub mod planner;
pub mod publish;
pub mod run;
pub mod schedule;
pub mod schedules;
pub mod select;
pub mod shards;
pub mod status;
pub mod survey;
pub mod units;
pub mod worker;

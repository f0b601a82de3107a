//! The backup-controller: streams RedisBackups into S3-compatible storage and turns schedules into CronJobs.
//!
//! Data and decisions, pure: [`plan`], [`select`], [`share`], [`slot_map`], [`report`], [`status`], [`schedule`], [`cron`].
//! The way of the data, without Kubernetes: [`survey`], [`capture`], [`mod@publish`], [`artifacts`].
//! With Kubernetes: [`worker`], [`planner`], [`reconcile`], [`schedules`], [`create_backup`], [`run`].

pub mod arguments;
pub mod artifacts;
pub mod capture;
pub mod create_backup;
pub mod cron;
pub mod memory;
pub mod metrics;
pub mod object_metrics;
pub mod plan;
pub mod planner;
pub mod publish;
pub mod reconcile;
pub mod report;
pub mod run;
pub mod schedule;
pub mod schedules;
pub mod select;
pub mod share;
pub mod slot_map;
pub mod status;
pub mod survey;
pub mod worker;

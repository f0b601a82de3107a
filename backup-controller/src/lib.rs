//! The backup-controller: streams RedisBackups into S3-compatible storage and turns schedules into CronJobs.
//!
//! Data and decisions, pure: [`schedule`], [`slot_map`], [`select`], [`plan`], [`status`].

pub mod capture;
pub mod plan;
pub mod schedule;
pub mod select;
pub mod slot_map;
pub mod status;

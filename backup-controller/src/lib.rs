//! The backup-controller: streams RedisBackups into S3-compatible storage and turns schedules into CronJobs.

pub mod schedule;

//! The backup-controller: streams RedisBackups into S3-compatible storage and turns schedules into CronJobs.
//!
//! Data and decisions, pure: [`plan`], [`select`], [`share`], [`slot_map`], [`report`], [`status`], [`schedule`].
//! The way of the data, without Kubernetes: [`survey`], [`capture`], [`mod@publish`], [`artifacts`].
//! With Kubernetes: [`worker`], [`planner`], [`reconcile`], [`schedules`], [`create_backup`], [`run`].

pub mod arguments;
pub mod artifacts;
pub mod capture;
pub mod create_backup;
pub mod memory;
pub mod metrics;
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

#[cfg(test)]
mod tests {
    /// Data and decisions take time and state as arguments: they neither call a server nor wait.
    #[test]
    fn decisions_are_pure() {
        let pure = [
            include_str!("plan/mod.rs"),
            include_str!("plan/attempts.rs"),
            include_str!("plan/observed.rs"),
            include_str!("plan/step.rs"),
            include_str!("select.rs"),
            include_str!("share.rs"),
            include_str!("slot_map.rs"),
            include_str!("report.rs"),
            include_str!("status.rs"),
            include_str!("schedule.rs"),
        ];
        for source in pure {
            for word in [
                "tokio",
                "Client",
                "async ",
                ".await",
                "Timestamp::now()",
                "Instant::now()",
            ] {
                assert!(!source.contains(word), "{word} in:\n{source}");
            }
        }
    }
}

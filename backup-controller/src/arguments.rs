//! The command line. Each flag has an environment twin.

use clap::{Args, Parser, Subcommand, ValueEnum};
use common::{runtime::CommonArguments, storage::StorageArguments};
use crds::DeletionPolicy;

/// Streams RedisBackups into S3-compatible storage and turns schedules into CronJobs
#[derive(Parser, Clone, Debug)]
#[command(name = "backup-controller", version)]
pub struct Arguments {
    /// What every controller takes.
    #[command(flatten)]
    pub common: CommonArguments,
    /// What only this one takes.
    #[command(flatten)]
    pub controller: ControllerArguments,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What only this controller takes.
#[derive(Args, Clone, Debug)]
pub struct ControllerArguments {
    /// Shards that this replica captures at the same time in one namespace, and one more for the others; each takes less than 64 MiB
    /// of buffers as long as the node uses less than 60 GB of memory (upload parts grow beyond)
    #[arg(long, env = "STREAMS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub streams: u16,
    /// Image that the pods of schedules run; default: that of the controller's own pod
    #[arg(long, env = "CONTROLLER_IMAGE")]
    pub image: Option<String>,
    /// What the operator allows tenants to do with storage.
    #[command(flatten)]
    pub storage: StorageArguments,
}

/// What to do.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Run the controller (the default)
    Run,
    /// Create one RedisBackup and end: what the CronJobs of schedules run
    CreateBackup(CreateBackup),
}

/// Which RedisBackup to create.
#[derive(Args, Clone, Debug)]
pub struct CreateBackup {
    /// Namespace of the cluster
    #[arg(long, env = "NAMESPACE")]
    pub namespace: String,
    /// Name of the RedisCluster
    #[arg(long, env = "CLUSTER")]
    pub cluster: String,
    /// Name of the schedule
    #[arg(long, env = "SCHEDULE")]
    pub schedule: String,
    /// One of the cluster's spec.backup.storages
    #[arg(long, env = "STORAGE_NAME")]
    pub storage_name: String,
    /// What becomes of the stored data when the backup is deleted
    #[arg(long, env = "DELETION_POLICY", value_enum, default_value_t = Policy::Retain)]
    pub deletion_policy: Policy,
    /// Name of the Job, which ends in the minute it was due; default: the running minute
    #[arg(long, env = "JOB_NAME")]
    pub job_name: Option<String>,
}

/// [`DeletionPolicy`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// Keep it
    #[value(name = "Retain")]
    Retain,
    /// Delete it
    #[value(name = "Delete")]
    Delete,
}

impl From<Policy> for DeletionPolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Retain => Self::Retain,
            Policy::Delete => Self::Delete,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_to_run() {
        let arguments = Arguments::try_parse_from(["backup-controller", "--streams", "4"]).unwrap();
        assert!(arguments.command.is_none());
        assert_eq!(arguments.controller.streams, 4);
    }

    #[test]
    fn what_a_cron_job_says_is_understood() {
        let arguments = Arguments::try_parse_from([
            "backup-controller",
            "create-backup",
            "--namespace=shop",
            "--cluster=demo",
            "--schedule=nightly",
            "--storage-name=main",
            "--deletion-policy=Delete",
        ]);
        let Some(Command::CreateBackup(create)) = arguments.unwrap().command else {
            panic!("another command");
        };
        assert_eq!(create.deletion_policy, Policy::Delete);
    }
}

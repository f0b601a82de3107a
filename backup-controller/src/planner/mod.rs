//! The planning side of the backup-controller: what the plan asks for, and how its steps are carried out.

mod jobs;

pub use jobs::BackupJobs;

use crate::{
    plan::{Awaited, Observed, Question, Step, plan},
    status::{self, Acceptance},
    survey,
    units::BackupUnits,
};
use common::{
    access::{self, Buckets},
    claims::{
        attempts::LostUnit,
        jobs::Jobs,
        memory::{Recalled, Waiting},
        permits::Quota,
        planner::{Planner, PlannerError, Planning, RECHECK},
    },
    kubernetes::{conditions::holds, finalizer, leases::Leadership, outcome::Outcome},
    runtime::Runtime,
    storage::{BackupId, Layout, Location},
};
use crds::{
    FINALIZER_ARTIFACTS, OwnUser, RedisBackup, RedisBackupStatus, RedisCluster, S3Location,
};
use jiff::Timestamp;
use kube::ResourceExt;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Sweeps of unfinished uploads at the same time: one that cannot start is not started later.
const SWEEPS: Quota = Quota {
    all: 256,
    one_namespace: 64,
};
/// When to reconcile again after a step that others can see immediately.
const SOON: Duration = Duration::from_millis(100);

/// The planning side of the backup-controller.
pub struct BackupPlanning {
    buckets: Buckets,
    sweeps: Jobs,
    leadership: Leadership,
}

type BackupPlanner = Planner<BackupPlanning>;

impl BackupPlanning {
    /// One for all backups of the process. Uploads are swept while `leadership` is this replica's.
    pub fn new(runtime: &Runtime, leadership: Leadership, buckets: Buckets) -> Self {
        Self {
            buckets,
            sweeps: Jobs::new(runtime, SWEEPS),
            leadership,
        }
    }

    /// Aborts uploads that lost attempts have left: of one key, or all of the backup's.
    fn sweep(&self, backup: &RedisBackup, key: Option<&String>) -> Result<(), PlannerError> {
        let buckets = self.buckets.clone();
        jobs::start_sweep(buckets, &self.sweeps, &self.leadership, backup, key)
    }
}

impl Planning for BackupPlanning {
    type Kind = BackupUnits;
    type Observed = Observed;
    type Step = Step;
    type Question = Question;
    type Awaited = Awaited;
    type Jobs = BackupJobs;

    const ACTION: &'static str = "Backup";
    const UNIT_ACTION: &'static str = "Capture";
    const UNDER_WAY: &'static str = "Capturing";

    fn observed(recalled: Recalled<Awaited>, jobs: &mut BackupJobs, now: Instant) -> Observed {
        Observed {
            attempts: recalled.attempts,
            waiting: recalled.waiting,
            operation: recalled.operation,
            storage: jobs.probe.recall(now),
            publishing: jobs.publication.recall(now),
            deletion: jobs.deletion.recall(now),
            ..Observed::default()
        }
    }

    fn plan(backup: &RedisBackup, seen: &Observed) -> Step {
        plan(backup, seen)
    }

    fn question(step: &Step) -> Option<Question> {
        step.question()
    }

    fn waiting(step: &Step) -> Waiting<Awaited> {
        step.waiting()
    }

    fn cluster_name(backup: &RedisBackup) -> &str {
        &backup.spec.cluster_ref.name
    }

    async fn answer(
        &self,
        planner: &BackupPlanner,
        question: Question,
        backup: &RedisBackup,
        seen: &mut Observed,
    ) -> Result<(), PlannerError> {
        match question {
            Question::Cluster => {
                seen.cluster = Some(planner.cluster(backup).await?.map(Arc::new));
            }
            Question::Operation => {
                seen.operation = Some(planner.operation(backup).await?);
            }
            Question::SlotMap => {
                let namespace = backup.namespace().unwrap_or_default();
                let name = &backup.spec.cluster_ref.name;
                let nodes =
                    access::nodes(&planner.runtime.client, &namespace, name, OwnUser::Backup)
                        .await?;
                let status = backup.status.as_ref();
                let uid = status.and_then(|status| status.cluster_uid.as_deref());
                seen.slot_map = Some(match nodes.seeds(uid) {
                    Ok(seeds) => survey::slot_map(&seeds).await,
                    Err(error) => Err(error.into()),
                });
            }
            Question::Members => seen.attempts.members = Some(planner.members(backup).await?),
        }
        Ok(())
    }

    async fn execute(
        &self,
        planner: &BackupPlanner,
        backup: &RedisBackup,
        step: &Step,
        seen: &Observed,
    ) -> Result<Outcome, PlannerError> {
        match step {
            Step::AddFinalizer => {
                finalizer::add(&planner.api(backup), backup, FINALIZER_ARTIFACTS).await?;
                Ok(Outcome::progressing("FinalizerAdded", RECHECK))
            }
            Step::RemoveFinalizer => {
                planner.release(backup).await;
                finalizer::remove(&planner.api(backup), backup, FINALIZER_ARTIFACTS).await?;
                Ok(Outcome::progressing("FinalizerRemoved", RECHECK))
            }
            Step::Abandon(failure) => {
                let note = format!("the stored data is left behind: {}", failure.message);
                planner.warn(backup, failure.reason, "DeleteArtifacts", &note);
                planner.release(backup).await;
                finalizer::remove(&planner.api(backup), backup, FINALIZER_ARTIFACTS).await?;
                Ok(Outcome::finished())
            }
            Step::Done => {
                if backup.metadata.deletion_timestamp.is_none() {
                    // A change of deletionPolicy after the end is observed, too.
                    write(planner, backup, step, seen).await?;
                }
                Ok(planner.finished(backup))
            }
            Step::Free(lost) => self.free(planner, backup, step, lost).await,
            Step::Publish => {
                jobs::start_publication(planner, self.buckets.clone(), backup)?;
                show(planner, backup, step).await
            }
            Step::Probe(storage) => {
                jobs::start_probe(planner, self.buckets.clone(), backup, storage);
                show(planner, backup, step).await
            }
            Step::DeleteArtifacts => {
                jobs::start_deletion(planner, self.buckets.clone(), backup)?;
                show(planner, backup, step).await
            }
            Step::Watch => show(planner, backup, step).await,
            Step::Wait { reason, .. } => {
                write(planner, backup, step, seen).await?;
                Ok(Outcome::waiting(reason, RECHECK))
            }
            Step::Accept(_) => {
                write(planner, backup, step, seen).await?;
                Ok(Outcome::progressing("Accepted", SOON))
            }
            Step::List { units, .. } => {
                write(planner, backup, step, seen).await?;
                planner.listed(backup, units.len());
                Ok(Outcome::progressing("UnitsListed", SOON))
            }
            Step::ConfirmSlots => {
                write(planner, backup, step, seen).await?;
                planner.release(backup).await;
                Ok(Outcome::progressing("SlotsConfirmed", RECHECK))
            }
            Step::Succeed(_) => {
                let status = self.end(planner, backup, step, seen).await?;
                let times = status.start_time.zip(status.completion_time);
                let times = times.map(|(start, end)| (start.0, end.0));
                let note = status.destination.unwrap_or_default();
                Ok(planner.succeeded(backup, times, &note).await)
            }
            Step::Fail { reason, message } => {
                self.end(planner, backup, step, seen).await?;
                Ok(planner.failed(backup, reason, message).await)
            }
            Step::Ask(_) => Err(PlannerError::Undecided),
        }
    }
}

impl BackupPlanning {
    /// Gives units to another attempt, and aborts the uploads that the lost attempts have left in the bucket.
    async fn free(
        &self,
        planner: &BackupPlanner,
        backup: &RedisBackup,
        step: &Step,
        lost: &[LostUnit],
    ) -> Result<Outcome, PlannerError> {
        let status = backup.status.clone().unwrap_or_default();
        if holds(&status.conditions, "SlotsCovered") {
            // First: a unit must not fork again while an old comparison still counts.
            write_after(planner, backup, step, None, None).await?;
        }
        let outcome = planner.free(backup, lost).await?;
        let units = lost
            .iter()
            .filter_map(|lost| status.shards.get(lost.position));
        for key in units.filter_map(|unit| unit.key.as_ref()) {
            self.sweep(backup, Some(key))?;
        }
        Ok(outcome)
    }

    /// Writes the status that a backup ends with. Replicas abort their own uploads; those of replicas that died are swept.
    async fn end(
        &self,
        planner: &BackupPlanner,
        backup: &RedisBackup,
        step: &Step,
        seen: &Observed,
    ) -> Result<RedisBackupStatus, PlannerError> {
        let status = write(planner, backup, step, seen).await?;
        if !status.shards.is_empty() {
            self.sweep(backup, None)?;
        }
        Ok(status)
    }
}

/// Writes the status after a step, if it differs.
async fn write(
    planner: &BackupPlanner,
    backup: &RedisBackup,
    step: &Step,
    seen: &Observed,
) -> Result<RedisBackupStatus, PlannerError> {
    let acceptance = if let Step::Accept(storage) = step {
        Some(acceptance(backup, storage)?)
    } else {
        None
    };
    let cluster = seen.cluster.as_ref().and_then(Option::as_deref);
    write_after(planner, backup, step, acceptance, cluster).await
}

async fn write_after(
    planner: &BackupPlanner,
    backup: &RedisBackup,
    step: &Step,
    acceptance: Option<Acceptance>,
    cluster: Option<&RedisCluster>,
) -> Result<RedisBackupStatus, PlannerError> {
    let (wanted, full) = status::after(backup, step, acceptance, cluster, Timestamp::now());
    planner.log_message(backup, full);
    planner.write(backup, &wanted).await?;
    Ok(wanted)
}

/// Writes the status while work is under way.
async fn show(
    planner: &BackupPlanner,
    backup: &RedisBackup,
    step: &Step,
) -> Result<Outcome, PlannerError> {
    let (wanted, full) = status::after(backup, step, None, None, Timestamp::now());
    planner.log_message(backup, full);
    planner
        .write_progress(backup, &wanted, |status| &mut status.progress)
        .await
}

fn acceptance(backup: &RedisBackup, storage: &S3Location) -> Result<Acceptance, PlannerError> {
    let location =
        Location::from_spec(storage).map_err(|error| PlannerError::Malformed(error.to_string()))?;
    let created = backup
        .creation_timestamp()
        .map_or_else(Timestamp::now, |time| time.0);
    let id = BackupId::new(created, &backup.uid().unwrap_or_default());
    let namespace = backup.namespace().unwrap_or_default();
    let layout = Layout::new(&location, &namespace, &backup.spec.cluster_ref.name, &id);
    Ok(Acceptance {
        storage: storage.clone(),
        backup_id: id.to_string(),
        destination: layout.destination(&location),
    })
}

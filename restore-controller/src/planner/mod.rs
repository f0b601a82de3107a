//! The planning side of the restore-controller: what the plan asks for, and how its steps are carried out.

mod jobs;

pub use jobs::RestoreJobs;

use crate::{
    plan::{Failure, Observed, Question, Step, plan, target_name},
    provision,
    source::Walks,
    status, target,
    units::RestoreUnits,
};
use common::{
    access::{self, Buckets},
    claims::{
        memory::{Recalled, Waiting},
        planner::{Planner, PlannerError, Planning, RECHECK},
    },
    kubernetes::{call::ApiError, outcome::Outcome},
};
use crds::{OwnUser, RedisRestore, RedisRestoreStatus};
use jiff::Timestamp;
use kube::ResourceExt;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// When to reconcile again after a step that others can see immediately.
const SOON: Duration = Duration::from_millis(100);

/// The planning side of the restore-controller.
pub struct RestorePlanning {
    buckets: Buckets,
    walks: Walks,
}

impl RestorePlanning {
    /// One for all restores of the process.
    pub fn new(buckets: Buckets) -> Self {
        Self {
            buckets,
            walks: Walks::default(),
        }
    }
}

type RestorePlanner = Planner<RestorePlanning>;

impl Planning for RestorePlanning {
    type Kind = RestoreUnits;
    type Observed = Observed;
    type Step = Step;
    type Question = Question;
    /// The reason of the wait.
    type Awaited = &'static str;
    type Jobs = RestoreJobs;

    const ACTION: &'static str = "Restore";
    const UNIT_ACTION: &'static str = "Replay";
    const UNDER_WAY: &'static str = "Replaying";

    fn observed(
        recalled: Recalled<&'static str>,
        jobs: &mut RestoreJobs,
        now: Instant,
    ) -> Observed {
        Observed {
            attempts: recalled.attempts,
            waiting: recalled.waiting,
            operation: recalled.operation,
            source: jobs.examination.recall(now),
            verification: jobs.verification.recall(now),
            ..Observed::default()
        }
    }

    fn plan(restore: &RedisRestore, seen: &Observed) -> Step {
        plan(restore, seen)
    }

    fn question(step: &Step) -> Option<Question> {
        step.question()
    }

    fn waiting(step: &Step) -> Waiting<&'static str> {
        step.waiting()
    }

    fn cluster_name(restore: &RedisRestore) -> &str {
        target_name(restore)
    }

    async fn answer(
        &self,
        planner: &RestorePlanner,
        question: Question,
        restore: &RedisRestore,
        seen: &mut Observed,
    ) -> Result<(), PlannerError> {
        match question {
            Question::Backup => {
                let reference = restore.spec.source.backup_ref.as_ref();
                seen.backup = Some(match reference {
                    Some(backup) => planner.sibling(restore, &backup.name).await?.map(Arc::new),
                    None => None,
                });
            }
            Question::Cluster => {
                seen.cluster = Some(planner.cluster(restore).await?.map(Arc::new));
            }
            Question::Operation => {
                seen.operation = Some(planner.operation(restore).await?);
            }
            Question::Target => {
                let namespace = restore.namespace().unwrap_or_default();
                let client = &planner.runtime.client;
                let nodes =
                    access::nodes(client, &namespace, target_name(restore), OwnUser::Restore)
                        .await?;
                seen.target = Some(match nodes.seeds(None) {
                    Ok(seeds) => target::look(&seeds).await,
                    Err(error) => Err(error.into()),
                });
            }
            Question::Members => seen.attempts.members = Some(planner.members(restore).await?),
        }
        Ok(())
    }

    async fn execute(
        &self,
        planner: &RestorePlanner,
        restore: &RedisRestore,
        step: &Step,
        seen: &Observed,
    ) -> Result<Outcome, PlannerError> {
        match step {
            Step::Done => Ok(planner.finished(restore)),
            Step::Examine => {
                self.start_examination(planner, restore, seen);
                show(planner, restore, step).await
            }
            Step::Verify => {
                self.start_verification(planner, restore);
                show(planner, restore, step).await
            }
            Step::Watch => show(planner, restore, step).await,
            Step::CreateCluster => match create_cluster(planner, restore).await {
                Ok(()) => {
                    write(planner, restore, step).await?;
                    Ok(Outcome::progressing("ClusterCreated", RECHECK))
                }
                Err(
                    error @ (ApiError::Invalid { .. }
                    | ApiError::Forbidden { .. }
                    | ApiError::QuotaExceeded { .. }
                    | ApiError::Denied { .. }),
                ) => {
                    let refused = cluster_refused(restore, &error);
                    write(planner, restore, &Step::Fail(refused.clone())).await?;
                    Ok(planner
                        .failed(restore, refused.reason, &refused.message)
                        .await)
                }
                Err(error) => Err(error.into()),
            },
            Step::Accept(_) => {
                write(planner, restore, step).await?;
                Ok(Outcome::progressing("Accepted", SOON))
            }
            Step::List { units, .. } => {
                write(planner, restore, step).await?;
                planner.listed(restore, units.len());
                Ok(Outcome::progressing("UnitsListed", SOON))
            }
            Step::Free(lost) => planner.free(restore, lost).await,
            Step::Wait { reason, .. } => {
                write(planner, restore, step).await?;
                Ok(Outcome::waiting(reason, RECHECK))
            }
            Step::Succeed(_) => {
                let status = write(planner, restore, step).await?;
                let times = status.start_time.zip(status.completion_time);
                let times = times.map(|(start, end)| (start.0, end.0));
                let note = status.message.unwrap_or_default();
                Ok(planner.succeeded(restore, times, &note).await)
            }
            Step::Fail(failure) => {
                write(planner, restore, step).await?;
                Ok(planner
                    .failed(restore, failure.reason, &failure.message)
                    .await)
            }
            Step::Ask(_) => Err(PlannerError::Undecided),
        }
    }
}

/// Writes the status after a step, if it differs.
async fn write(
    planner: &RestorePlanner,
    restore: &RedisRestore,
    step: &Step,
) -> Result<RedisRestoreStatus, PlannerError> {
    let (wanted, full) = status::after(restore, step, Timestamp::now());
    planner.log_message(restore, full);
    planner.write(restore, &wanted).await?;
    Ok(wanted)
}

/// Writes the status while work is under way.
async fn show(
    planner: &RestorePlanner,
    restore: &RedisRestore,
    step: &Step,
) -> Result<Outcome, PlannerError> {
    let (wanted, full) = status::after(restore, step, Timestamp::now());
    planner.log_message(restore, full);
    planner
        .write_progress(restore, &wanted, |status| &mut status.progress)
        .await
}

async fn create_cluster(planner: &RestorePlanner, restore: &RedisRestore) -> Result<(), ApiError> {
    if let Some(cluster) = provision::cluster_of(restore) {
        provision::create(&planner.runtime.client, &cluster).await?;
        let note = format!("RedisCluster {} receives the backup", cluster.name_any());
        planner.event(restore, "ClusterCreated", "Provision", &note);
    }
    Ok(())
}

/// The API server refuses the new cluster: by its schema, a quota or an admission policy.
fn cluster_refused(restore: &RedisRestore, error: &ApiError) -> Failure {
    Failure {
        condition: "TargetReady",
        reason: "ClusterRefused",
        message: format!(
            "RedisCluster {} cannot be created: {error}; correct spec.target.newCluster or lift the restriction, and create the restore again",
            target_name(restore)
        ),
        verified: None,
    }
}

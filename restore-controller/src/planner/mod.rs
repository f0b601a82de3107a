//! The planning side, on the replica that leads: asks what the plan wants to know, does what it says, writes the status.

mod jobs;

use crate::{
    memory::Memory,
    metrics::RestoreMetrics,
    plan::{Failure, Freed, LOOK_AGAIN, Observed, Question, Step, is_claimed, plan, target_name},
    provision, report,
    source::Walks,
    status, target,
};
use common::{
    access,
    kubernetes::{
        call::{self, ApiError},
        claims::{self, UnitReport},
        errors::{Classified, ErrorClass},
        leases::{Holder, Leadership, Members, NotLeader, Operation, OperationLeases},
        outcome::Outcome,
        status as stored,
        wake::Wake,
    },
    runtime::{Runtime, tasks::Tasks},
};
use crds::{RedisBackup, RedisCluster, RedisRestore, RedisRestoreStatus, RestoreUnitState};
use jiff::Timestamp;
use kube::{Api, Resource, ResourceExt};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long the operation lease lasts when nobody renews it.
const OPERATION_LEASE: Duration = Duration::from_mins(1);
/// Examinations and verifications at the same time.
const MOST_JOBS: usize = 16;
/// Questions a plan may have before it comes to a step.
const MOST_QUESTIONS: usize = 8;

/// The planning side of one replica.
pub struct Planner {
    runtime: Runtime,
    leadership: Leadership,
    leases: OperationLeases,
    members: Members,
    memory: Memory,
    jobs: Tasks,
    walks: Walks,
    metrics: RestoreMetrics,
    wake: Wake<RedisRestore>,
}

/// Why a pass over a restore failed.
#[derive(Debug, thiserror::Error)]
pub enum PlannerError {
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Another replica leads now.
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
    /// The plan asked the same again and again.
    #[error("the plan did not come to a step")]
    Undecided,
}

impl Classified for PlannerError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Api(error) => error.class(),
            Self::NotLeader(error) => error.class(),
            Self::Undecided => ErrorClass::Bug,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Api(error) => error.reason(),
            Self::NotLeader(error) => error.reason(),
            Self::Undecided => "PlanUndecided",
        }
    }
}

impl Planner {
    /// A planner that acts while `leadership` is this replica's.
    pub fn new(
        runtime: &Runtime,
        leadership: Leadership,
        metrics: RestoreMetrics,
        wake: Wake<RedisRestore>,
    ) -> Self {
        Self {
            leases: OperationLeases::new(runtime),
            members: Members::new(runtime),
            memory: Memory::default(),
            jobs: runtime.tasks(MOST_JOBS, |_, _| {}),
            walks: Walks::default(),
            runtime: runtime.clone(),
            leadership,
            metrics,
            wake,
        }
    }

    /// One pass: asks until the plan comes to a step, and does it.
    pub async fn pass(&self, restore: &RedisRestore) -> Result<Outcome, PlannerError> {
        let mut seen = self.memory.recall(restore, Instant::now());
        for _ in 0..MOST_QUESTIONS {
            let step = plan(restore, &seen);
            if let Step::Ask(question) = step {
                self.answer(question, restore, &mut seen).await?;
                continue;
            }
            self.leadership.ensure()?;
            self.memory.note(restore, &step, Instant::now());
            return self.execute(restore, &step, &seen).await;
        }
        Err(PlannerError::Undecided)
    }

    /// The object is gone from the cache.
    pub fn gone(&self, namespace: &str, name: &str) {
        self.memory.forget(namespace, name);
    }

    async fn answer(
        &self,
        question: Question,
        restore: &RedisRestore,
        seen: &mut Observed,
    ) -> Result<(), PlannerError> {
        let namespace = restore.namespace().unwrap_or_default();
        let cluster = target_name(restore);
        match question {
            Question::Backup => seen.backup = Some(self.backup(restore).await?.map(Arc::new)),
            Question::Cluster => {
                let found = self.cluster(&namespace, cluster).await?;
                seen.cluster = Some(found.map(Arc::new));
            }
            Question::Operation => {
                let holder = Holder::of(restore);
                let operation = self
                    .leases
                    .acquire(&namespace, cluster, &holder, OPERATION_LEASE)
                    .await?;
                let held = (operation == Operation::Held).then(Instant::now);
                self.memory.leased(restore, held);
                seen.operation = Some(operation);
            }
            Question::Target => {
                let client = &self.runtime.client;
                let pods = access::pods(client, &namespace, cluster).await?;
                let addresses: Vec<_> = pods.into_keys().collect();
                seen.target = Some(target::look(&addresses).await);
            }
            Question::Members => {
                let units = restore.status.iter().flat_map(|status| &status.units);
                let workers = units.filter(|unit| is_claimed(unit));
                let workers = workers.map(|unit| unit.worker.as_str());
                seen.members = Some(self.members.living(workers).await?);
            }
        }
        Ok(())
    }

    async fn backup(&self, restore: &RedisRestore) -> Result<Option<RedisBackup>, ApiError> {
        let Some(reference) = &restore.spec.source.backup_ref else {
            return Ok(None);
        };
        let namespace = restore.namespace().unwrap_or_default();
        let api: Api<RedisBackup> = Api::namespaced(self.runtime.client.clone(), &namespace);
        let what = format!("get RedisBackup {namespace}/{}", reference.name);
        call::read_optional(what, api.get(&reference.name)).await
    }

    async fn cluster(&self, namespace: &str, name: &str) -> Result<Option<RedisCluster>, ApiError> {
        let api: Api<RedisCluster> = Api::namespaced(self.runtime.client.clone(), namespace);
        let what = format!("get RedisCluster {namespace}/{name}");
        call::read_optional(what, api.get(name)).await
    }

    async fn execute(
        &self,
        restore: &RedisRestore,
        step: &Step,
        seen: &Observed,
    ) -> Result<Outcome, PlannerError> {
        match step {
            Step::Rest => {
                self.memory.done(restore);
                Ok(Outcome::finished())
            }
            Step::Examine => {
                self.begin_examination(restore, seen);
                self.show(restore, step).await
            }
            Step::Verify => {
                self.begin_verification(restore);
                self.show(restore, step).await
            }
            Step::Watch => self.show(restore, step).await,
            Step::CreateCluster => match self.create_cluster(restore).await {
                Ok(()) => {
                    self.write(restore, step).await?;
                    Ok(Outcome::progressing("ClusterCreated", LOOK_AGAIN))
                }
                Err(
                    error @ (ApiError::Invalid { .. }
                    | ApiError::Forbidden { .. }
                    | ApiError::QuotaExceeded { .. }
                    | ApiError::Denied { .. }),
                ) => {
                    let refused = Step::Fail(cluster_refused(restore, &error));
                    self.end(restore, &refused).await
                }
                Err(error) => Err(error.into()),
            },
            Step::Accept(_) => {
                self.write(restore, step).await?;
                Ok(Outcome::progressing("Accepted", Duration::from_millis(100)))
            }
            Step::List { units, .. } => {
                self.write(restore, step).await?;
                let note = format!(
                    "{} objects are handed out to the controller's replicas",
                    units.len()
                );
                self.tell(restore, "Replaying", "Replay", &note);
                Ok(Outcome::progressing("Handed", Duration::from_millis(100)))
            }
            Step::Free(freed) => {
                self.free(restore, freed).await?;
                Ok(Outcome::progressing("UnitsFreed", LOOK_AGAIN))
            }
            Step::Wait { reason, .. } => {
                self.write(restore, step).await?;
                Ok(Outcome::waiting(reason, LOOK_AGAIN))
            }
            Step::Succeed(_) | Step::Fail(_) => self.end(restore, step).await,
            Step::Ask(_) => Err(PlannerError::Undecided),
        }
    }

    /// Writes the status after a step, if it differs.
    async fn write(
        &self,
        restore: &RedisRestore,
        step: &Step,
    ) -> Result<RedisRestoreStatus, PlannerError> {
        let wanted = status::after(restore, step, Timestamp::now());
        stored::write(&self.api(restore), restore, &wanted).await?;
        Ok(wanted)
    }

    /// Progress is written at most every two seconds; anything else that differs at once.
    async fn show(&self, restore: &RedisRestore, step: &Step) -> Result<Outcome, PlannerError> {
        let wanted = status::after(restore, step, Timestamp::now());
        let current = restore.status.clone().unwrap_or_default();
        let failing = current
            .units
            .iter()
            .any(|unit| unit.state == RestoreUnitState::Failed);
        let again = if failing {
            Duration::from_secs(1)
        } else {
            LOOK_AGAIN
        };
        if wanted == current {
            return Ok(Outcome::waiting("Replaying", again));
        }
        let mut without_progress = wanted.clone();
        without_progress.progress.clone_from(&current.progress);
        if without_progress == current
            && let Err(rest) = self.memory.may_write_progress(restore, Instant::now())
        {
            return Ok(Outcome::waiting("Replaying", rest));
        }
        stored::write(&self.api(restore), restore, &wanted).await?;
        Ok(Outcome::waiting("Replaying", again))
    }

    async fn end(&self, restore: &RedisRestore, step: &Step) -> Result<Outcome, PlannerError> {
        let wanted = self.write(restore, step).await?;
        self.release(restore).await;
        if let Step::Fail(failure) = step {
            self.metrics.failed(failure.reason);
            self.warn(restore, failure.reason, "Restore", &failure.message);
        } else {
            let times = wanted.started_at.zip(wanted.completed_at);
            let took = times
                .and_then(|(start, end)| Duration::try_from(end.0.duration_since(start.0)).ok());
            self.metrics.succeeded(took);
            let note = wanted.message.unwrap_or_default();
            self.tell(restore, "Succeeded", "Restore", &note);
        }
        self.memory.done(restore);
        Ok(Outcome::finished())
    }

    async fn create_cluster(&self, restore: &RedisRestore) -> Result<(), ApiError> {
        if let Some(cluster) = provision::cluster_of(restore) {
            provision::create(&self.runtime.client, &cluster).await?;
            let note = format!("RedisCluster {} receives the backup", cluster.name_any());
            self.tell(restore, "ClusterCreated", "Provision", &note);
        }
        Ok(())
    }

    /// Gives units to another attempt, which goes on where the lost one left off.
    async fn free(&self, restore: &RedisRestore, freed: &[Freed]) -> Result<(), PlannerError> {
        let units = freed.iter().map(|unit| UnitReport {
            holding: report::holding(unit.position, &unit.worker, unit.attempt),
            fields: report::freed(&unit.error),
        });
        claims::free(&self.api(restore), &restore.name_any(), units.collect()).await?;
        for unit in freed {
            let note = format!(
                "attempt {} of unit {}: {}",
                unit.attempt, unit.position, unit.error
            );
            self.warn(restore, "AttemptLost", "Replay", &note);
        }
        Ok(())
    }

    /// The lease goes by itself if this fails.
    async fn release(&self, restore: &RedisRestore) {
        let namespace = restore.namespace().unwrap_or_default();
        self.memory.leased(restore, None);
        let released = self
            .leases
            .release(&namespace, target_name(restore), &Holder::of(restore))
            .await;
        if let Err(error) = released {
            tracing::warn!(%error, "the operation lease was not given back; it expires");
        }
    }

    fn tell(&self, restore: &RedisRestore, reason: &str, action: &str, note: &str) {
        let regarding = restore.object_ref(&());
        self.runtime.events.normal(&regarding, reason, action, note);
    }

    fn warn(&self, restore: &RedisRestore, reason: &str, action: &str, note: &str) {
        tracing::warn!(
            restore = restore.name_any(),
            namespace = restore.namespace(),
            reason,
            note
        );
        let regarding = restore.object_ref(&());
        self.runtime
            .events
            .warning(&regarding, reason, action, note);
    }

    fn api(&self, restore: &RedisRestore) -> Api<RedisRestore> {
        Api::namespaced(
            self.runtime.client.clone(),
            &restore.namespace().unwrap_or_default(),
        )
    }
}

/// The API server does not take the new cluster: a schema, a quota or somebody's admission rule.
fn cluster_refused(restore: &RedisRestore, error: &ApiError) -> Failure {
    Failure {
        condition: "TargetReady",
        reason: "ClusterRefused",
        message: format!(
            "RedisCluster {} cannot be created: {error}; correct spec.target.newCluster or lift the restriction, and create the restore anew",
            target_name(restore)
        ),
        verified: None,
    }
}

//! The planning side, on the replica that leads: asks what the plan wants to know, does what it says, writes the status.

mod jobs;

use crate::{
    memory::Memory,
    metrics::BackupMetrics,
    plan::{Freed, LOOK_AGAIN, Observed, Question, Step, is_claimed, plan},
    report,
    status::{self, Acceptance},
    survey,
};
use common::{
    access,
    kubernetes::{
        call::{self, ApiError},
        claims::{self, UnitReport},
        conditions::holds,
        errors::{Classified, ErrorClass},
        finalizer,
        leases::{Holder, Leadership, Members, NotLeader, Operation, OperationLeases},
        outcome::Outcome,
        wake::Wake,
    },
    runtime::{Runtime, tasks::Tasks},
    storage::{BackupId, Layout, Location},
};
use crds::{FINALIZER_ARTIFACTS, RedisBackup, RedisBackupStatus, RedisCluster, S3Location};
use jiff::Timestamp;
use kube::{Api, Resource, ResourceExt};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long the operation lease lasts when nobody renews it.
const OPERATION_LEASE: Duration = Duration::from_mins(1);
/// Probes, publications and deletions at the same time.
const MOST_JOBS: usize = 16;
/// Sweeps of unfinished uploads at the same time: one that is not begun is not asked for again.
const MOST_SWEEPS: usize = 256;
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
    sweeps: Tasks,
    metrics: BackupMetrics,
    wake: Wake<RedisBackup>,
}

/// Why a pass over a backup failed.
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
    /// The status or the spec cannot be read.
    #[error("{0}")]
    Malformed(String),
}

impl Classified for PlannerError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Api(error) => error.class(),
            Self::NotLeader(error) => error.class(),
            Self::Undecided | Self::Malformed(_) => ErrorClass::Bug,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Api(error) => error.reason(),
            Self::NotLeader(error) => error.reason(),
            Self::Undecided => "PlanUndecided",
            Self::Malformed(_) => "StatusMalformed",
        }
    }
}

impl Planner {
    /// A planner that acts while `leadership` is this replica's.
    pub fn new(
        runtime: &Runtime,
        leadership: Leadership,
        metrics: BackupMetrics,
        wake: Wake<RedisBackup>,
    ) -> Self {
        Self {
            leases: OperationLeases::new(runtime),
            members: Members::new(runtime),
            memory: Memory::default(),
            jobs: runtime.tasks(MOST_JOBS, |_, _| {}),
            sweeps: runtime.tasks(MOST_SWEEPS, |_, _| {}),
            runtime: runtime.clone(),
            leadership,
            metrics,
            wake,
        }
    }

    /// One pass: asks until the plan comes to a step, and does it.
    pub async fn pass(&self, backup: &RedisBackup) -> Result<Outcome, PlannerError> {
        let mut seen = self.memory.recall(backup, Instant::now());
        for _ in 0..MOST_QUESTIONS {
            let step = plan(backup, &seen);
            if let Step::Ask(question) = step {
                self.answer(question, backup, &mut seen).await?;
                continue;
            }
            self.leadership.ensure()?;
            self.memory.note(backup, &step, Instant::now());
            return Box::pin(self.execute(backup, step, &seen)).await;
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
        backup: &RedisBackup,
        seen: &mut Observed,
    ) -> Result<(), PlannerError> {
        let namespace = backup.namespace().unwrap_or_default();
        let cluster = &backup.spec.cluster_ref.name;
        match question {
            Question::Cluster => {
                seen.cluster = Some(self.cluster(&namespace, cluster).await?.map(Arc::new));
            }
            Question::Operation => {
                let holder = Holder::of(backup);
                let operation = self
                    .leases
                    .acquire(&namespace, cluster, &holder, OPERATION_LEASE)
                    .await?;
                let held = (operation == Operation::Held).then(Instant::now);
                self.memory.leased(backup, held);
                seen.operation = Some(operation);
            }
            Question::SlotMap => {
                let pods = access::pods(&self.runtime.client, &namespace, cluster).await?;
                seen.slot_map = Some(survey::slot_map(pods.keys().copied()).await);
            }
            Question::Members => {
                let shards = backup.status.iter().flat_map(|status| &status.shards);
                let workers = shards.filter(|shard| is_claimed(shard));
                let workers = workers.map(|shard| shard.worker.as_str());
                seen.members = Some(self.members.living(workers).await?);
            }
        }
        Ok(())
    }

    async fn cluster(&self, namespace: &str, name: &str) -> Result<Option<RedisCluster>, ApiError> {
        let api: Api<RedisCluster> = Api::namespaced(self.runtime.client.clone(), namespace);
        call::read_optional(
            format!("get RedisCluster {namespace}/{name}"),
            api.get(name),
        )
        .await
    }

    async fn execute(
        &self,
        backup: &RedisBackup,
        step: Step,
        seen: &Observed,
    ) -> Result<Outcome, PlannerError> {
        match &step {
            Step::AddFinalizer => {
                finalizer::add(&self.api(backup), backup, FINALIZER_ARTIFACTS).await?;
                Ok(Outcome::progressing("Guarded", LOOK_AGAIN))
            }
            Step::RemoveFinalizer => {
                self.release(backup).await;
                finalizer::remove(&self.api(backup), backup, FINALIZER_ARTIFACTS).await?;
                Ok(Outcome::progressing("LetGo", LOOK_AGAIN))
            }
            Step::Abandon(trouble) => {
                self.warn(
                    backup,
                    trouble.reason,
                    "DeleteArtifacts",
                    &format!("the stored data is left behind: {}", trouble.message),
                );
                self.release(backup).await;
                finalizer::remove(&self.api(backup), backup, FINALIZER_ARTIFACTS).await?;
                Ok(Outcome::finished())
            }
            Step::Rest => {
                self.memory.done(backup);
                Ok(Outcome::finished())
            }
            Step::Free(freed) => {
                self.free(backup, &step, freed).await?;
                Ok(Outcome::progressing("UnitsFreed", LOOK_AGAIN))
            }
            Step::Publish => {
                self.begin_publishing(backup)?;
                self.show_progress(backup, &step).await
            }
            Step::Probe(storage) => {
                self.begin_probe(backup, storage);
                self.show_progress(backup, &step).await
            }
            Step::DeleteArtifacts => {
                self.begin_deletion(backup)?;
                self.show_progress(backup, &step).await
            }
            Step::Watch => self.show_progress(backup, &step).await,
            Step::Wait { reason, .. } => {
                let reason = *reason;
                self.write(backup, &step, seen).await?;
                Ok(Outcome::waiting(reason, LOOK_AGAIN))
            }
            Step::Accept(_) | Step::List { .. } => {
                self.write(backup, &step, seen).await?;
                Ok(Outcome::progressing("Handed", Duration::from_millis(100)))
            }
            Step::ConfirmSlots => {
                self.write(backup, &step, seen).await?;
                self.release(backup).await;
                Ok(Outcome::progressing("SlotsConfirmed", LOOK_AGAIN))
            }
            Step::Succeed(_) | Step::Fail { .. } => self.end(backup, &step, seen).await,
            Step::Ask(_) => Err(PlannerError::Undecided),
        }
    }

    /// Writes the status after a step, if it differs.
    async fn write(
        &self,
        backup: &RedisBackup,
        step: &Step,
        seen: &Observed,
    ) -> Result<RedisBackupStatus, PlannerError> {
        let acceptance = if let Step::Accept(storage) = step {
            Some(acceptance(backup, storage)?)
        } else {
            None
        };
        let cluster = seen.cluster.clone().flatten();
        let wanted = status::after(
            backup,
            step,
            acceptance,
            cluster.as_deref(),
            Timestamp::now(),
        );
        common::kubernetes::status::write(&self.api(backup), backup, &wanted).await?;
        if let Step::List { units, .. } = step {
            let note = format!(
                "{} shards are handed out to the controller's replicas",
                units.len()
            );
            let regarding = backup.object_ref(&());
            self.runtime
                .events
                .normal(&regarding, "Capturing", "Capture", &note);
        }
        Ok(wanted)
    }

    /// Progress is written at most every two seconds; anything else that differs at once.
    async fn show_progress(
        &self,
        backup: &RedisBackup,
        step: &Step,
    ) -> Result<Outcome, PlannerError> {
        let wanted = status::after(backup, step, None, None, Timestamp::now());
        let current = backup.status.clone().unwrap_or_default();
        let failing = current
            .shards
            .iter()
            .any(|unit| unit.state == crds::BackupShardState::Failed);
        let again = if failing {
            Duration::from_secs(1)
        } else {
            LOOK_AGAIN
        };
        if wanted == current {
            return Ok(Outcome::waiting("Capturing", again));
        }
        let mut without_progress = wanted.clone();
        without_progress.progress.clone_from(&current.progress);
        if without_progress == current
            && let Err(rest) = self.memory.may_write_progress(backup, Instant::now())
        {
            return Ok(Outcome::waiting("Capturing", rest));
        }
        common::kubernetes::status::write(&self.api(backup), backup, &wanted).await?;
        Ok(Outcome::waiting("Capturing", again))
    }

    async fn end(
        &self,
        backup: &RedisBackup,
        step: &Step,
        seen: &Observed,
    ) -> Result<Outcome, PlannerError> {
        let wanted = self.write(backup, step, seen).await?;
        self.release(backup).await;
        if !wanted.shards.is_empty() {
            // Replicas abort their own uploads. Those that died could not, and nobody else pays attention from here on.
            self.begin_sweep(backup, None)?;
        }
        if let Step::Fail { reason, message } = step {
            self.metrics.failed(reason);
            self.warn(backup, reason, "Backup", message);
        } else {
            let times = wanted.started_at.zip(wanted.completed_at);
            let took = times.map(|(start, end)| end.0.duration_since(start.0));
            self.metrics
                .succeeded(took.and_then(|took| Duration::try_from(took).ok()));
            let note = wanted.destination.unwrap_or_default();
            let regarding = backup.object_ref(&());
            self.runtime
                .events
                .normal(&regarding, "Succeeded", "Backup", &note);
        }
        self.memory.done(backup);
        Ok(Outcome::finished())
    }

    /// Gives units to another attempt, and aborts what the lost attempts have left in the bucket.
    async fn free(
        &self,
        backup: &RedisBackup,
        step: &Step,
        freed: &[Freed],
    ) -> Result<(), PlannerError> {
        let confirmed = backup
            .status
            .as_ref()
            .is_some_and(|status| holds(&status.conditions, "SlotsCovered"));
        if confirmed {
            // First: a unit must not be forked anew while an old comparison still counts.
            let wanted = status::after(backup, step, None, None, Timestamp::now());
            common::kubernetes::status::write(&self.api(backup), backup, &wanted).await?;
        }
        let units = freed.iter().map(|unit| UnitReport {
            holding: report::holding(unit.position, &unit.worker, unit.attempt),
            fields: report::fresh(Some(&unit.error)),
        });
        claims::free(&self.api(backup), &backup.name_any(), units.collect()).await?;
        for unit in freed {
            let note = format!(
                "attempt {} of unit {}: {}",
                unit.attempt, unit.position, unit.error
            );
            self.warn(backup, "AttemptLost", "Capture", &note);
            if unit.key.is_some() {
                self.begin_sweep(backup, unit.key.clone())?;
            }
        }
        Ok(())
    }

    /// The lease goes by itself if this fails.
    async fn release(&self, backup: &RedisBackup) {
        let namespace = backup.namespace().unwrap_or_default();
        let cluster = &backup.spec.cluster_ref.name;
        self.memory.leased(backup, None);
        if let Err(error) = self
            .leases
            .release(&namespace, cluster, &Holder::of(backup))
            .await
        {
            tracing::warn!(%error, "the operation lease was not given back; it expires");
        }
    }

    fn warn(&self, backup: &RedisBackup, reason: &str, action: &str, note: &str) {
        tracing::warn!(
            backup = backup.name_any(),
            namespace = backup.namespace(),
            reason,
            note
        );
        self.runtime
            .events
            .warning(&backup.object_ref(&()), reason, action, note);
    }

    fn api(&self, backup: &RedisBackup) -> Api<RedisBackup> {
        Api::namespaced(
            self.runtime.client.clone(),
            &backup.namespace().unwrap_or_default(),
        )
    }
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

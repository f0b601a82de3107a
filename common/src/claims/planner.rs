//! The planning side, on the replica that leads: asks what the plan wants to know, carries out its step, writes the status.

use super::{
    UnitReport,
    attempts::LostUnit,
    free,
    jobs::{JobRecord, JobResult, Jobs},
    memory::{Memory, Recalled, Waiting},
    metrics::WorkMetrics,
    permits::Quota,
    unit::{Stage, UnitKind},
};
use crate::{
    errors::{Classified, ErrorClass},
    kubernetes::{
        call::{self, ApiError},
        leases::{Holder, Leadership, Members, NotLeader, Operation, OperationLeases},
        outcome::Outcome,
        status,
        trigger::Trigger,
    },
    runtime::Runtime,
};
use crds::RedisCluster;
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt, core::object::HasStatus};
use serde::de::DeserializeOwned;
use std::{
    collections::BTreeSet,
    fmt::Debug,
    time::{Duration, Instant},
};

/// How long the operation Lease lasts unless it is renewed.
const OPERATION_LEASE: Duration = Duration::from_mins(1);
/// When to reconcile again at the latest while something is waited for or under way.
pub const RECHECK: Duration = Duration::from_secs(5);
/// When to reconcile again while the delay of a failed unit runs.
const RECHECK_FAILED: Duration = Duration::from_secs(1);
/// Jobs at the same time: one namespace leaves three quarters to the others.
const JOBS: Quota = Quota {
    all: 16,
    one_namespace: 4,
};
/// Questions a plan may have before it comes to a step.
const MOST_QUESTIONS: usize = 8;

/// The plan of a controller and how its steps are carried out.
pub trait Planning: Sized + Send + Sync + 'static {
    /// The objects that are planned for.
    type Kind: UnitKind;
    /// What the plan is made of.
    type Observed: Send + Sync;
    /// The result of the plan.
    type Step: Send;
    /// What the plan may have to know.
    type Question: Send;
    /// What can be waited for, each with its own clock.
    type Awaited: Copy + PartialEq + Send + 'static;
    /// Records of jobs.
    type Jobs: Default + Send + 'static;

    /// What the controller does, as an Event's action, for example `Backup`.
    const ACTION: &'static str;
    /// What is done with a unit, as an Event's action, for example `Capture`.
    const UNIT_ACTION: &'static str;
    /// The state while units are at work, as a reason, for example `Capturing`.
    const UNDER_WAY: &'static str;

    /// What is known at the start of a reconcile.
    fn observed(
        recalled: Recalled<Self::Awaited>,
        jobs: &mut Self::Jobs,
        now: Instant,
    ) -> Self::Observed;

    /// The next step.
    fn plan(object: &ObjectOf<Self>, seen: &Self::Observed) -> Self::Step;

    /// What the step asks for, if it is a question.
    fn question(step: &Self::Step) -> Option<Self::Question>;

    /// What the step means for the clock of what is waited for.
    fn waiting(step: &Self::Step) -> Waiting<Self::Awaited>;

    /// Name of the RedisCluster whose operation Lease the object needs.
    fn cluster_name(object: &ObjectOf<Self>) -> &str;

    /// Finds out what the plan asks for.
    fn answer(
        &self,
        planner: &Planner<Self>,
        question: Self::Question,
        object: &ObjectOf<Self>,
        seen: &mut Self::Observed,
    ) -> impl Future<Output = Result<(), PlannerError>> + Send;

    /// Carries out a step that is no question.
    fn execute(
        &self,
        planner: &Planner<Self>,
        object: &ObjectOf<Self>,
        step: &Self::Step,
        seen: &Self::Observed,
    ) -> impl Future<Output = Result<Outcome, PlannerError>> + Send;

    /// The object was deleted.
    fn deleted(&self, namespace: &str, name: &str) {
        let _ = (namespace, name);
    }
}

/// The object of a plan.
pub type ObjectOf<P> = <<P as Planning>::Kind as UnitKind>::Object;
type StatusOf<P> = <ObjectOf<P> as HasStatus>::Status;

/// Why the reconcile of an object failed.
#[derive(Debug, thiserror::Error)]
pub enum PlannerError {
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Another replica leads now.
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
    /// The plan kept asking.
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

/// The planning side of one replica.
pub struct Planner<P: Planning> {
    /// For the answers and steps of the controller.
    pub runtime: Runtime,
    planning: P,
    leadership: Leadership,
    leases: OperationLeases,
    members: Members,
    memory: Memory<P::Awaited, P::Jobs>,
    jobs: Jobs,
    metrics: WorkMetrics,
    enqueue: Trigger<ObjectOf<P>>,
}

impl<P: Planning> Planner<P> {
    /// A planner that acts while `leadership` is this replica's.
    pub fn new(
        runtime: &Runtime,
        planning: P,
        leadership: Leadership,
        metrics: WorkMetrics,
        enqueue: Trigger<ObjectOf<P>>,
    ) -> Self {
        Self {
            planning,
            leases: OperationLeases::new(runtime),
            members: Members::new(runtime),
            memory: Memory::default(),
            jobs: Jobs::new(runtime, JOBS),
            runtime: runtime.clone(),
            leadership,
            metrics,
            enqueue,
        }
    }

    /// Asks until the plan comes to a step, and carries it out.
    pub async fn reconcile(&self, object: &ObjectOf<P>) -> Result<Outcome, PlannerError> {
        let now = Instant::now();
        let recalled = self.memory.recall::<P::Kind>(object, now);
        let mut seen = self
            .memory
            .jobs(object, |jobs| P::observed(recalled, jobs, now));
        for _ in 0..MOST_QUESTIONS {
            let step = P::plan(object, &seen);
            if let Some(question) = P::question(&step) {
                let answer = self.planning.answer(self, question, object, &mut seen);
                Box::pin(answer).await?;
                continue;
            }
            self.leadership.ensure()?;
            let waiting = P::waiting(&step);
            self.memory.note(object, waiting, Instant::now());
            return Box::pin(self.planning.execute(self, object, &step, &seen)).await;
        }
        Err(PlannerError::Undecided)
    }

    /// The object was deleted.
    pub fn deleted(&self, namespace: &str, name: &str) {
        self.memory.deleted(namespace, name);
        self.planning.deleted(namespace, name);
    }

    /// The RedisCluster that the object is about.
    pub async fn cluster(&self, object: &ObjectOf<P>) -> Result<Option<RedisCluster>, ApiError> {
        self.sibling(object, P::cluster_name(object)).await
    }

    /// Another object of the same namespace.
    pub async fn sibling<K>(&self, object: &ObjectOf<P>, name: &str) -> Result<Option<K>, ApiError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + DeserializeOwned
            + Clone
            + Debug,
    {
        let namespace = object.namespace().unwrap_or_default();
        let what = format!("get {} {namespace}/{name}", K::kind(&()));
        let api: Api<K> = Api::namespaced(self.runtime.client.clone(), &namespace);
        call::read_optional(what, api.get(name)).await
    }

    /// Takes or renews the operation Lease of the cluster.
    pub async fn operation(&self, object: &ObjectOf<P>) -> Result<Operation, ApiError> {
        let namespace = object.namespace().unwrap_or_default();
        let (name, holder) = (P::cluster_name(object), Holder::of(object));
        let operation = self
            .leases
            .acquire(&namespace, name, &holder, OPERATION_LEASE)
            .await?;
        let held = operation == Operation::Held;
        self.memory.leased(object, held.then(Instant::now));
        Ok(operation)
    }

    /// Releases the operation Lease. If this fails, the Lease expires.
    pub async fn release(&self, object: &ObjectOf<P>) {
        let namespace = object.namespace().unwrap_or_default();
        self.memory.leased(object, None);
        let (name, holder) = (P::cluster_name(object), Holder::of(object));
        if let Err(error) = self.leases.release(&namespace, name, &holder).await {
            tracing::warn!(%error, "the operation Lease was not released; it expires");
        }
    }

    /// Names of the replicas that live.
    pub async fn members(&self, object: &ObjectOf<P>) -> Result<BTreeSet<String>, ApiError> {
        let units = P::Kind::units(object);
        let claimed = units.iter().filter(|unit| unit.is_claimed());
        let workers: Vec<&str> = claimed.map(|unit| unit.worker).collect();
        self.members.living(workers).await
    }

    /// Writes the status, if it differs.
    pub async fn write(
        &self,
        object: &ObjectOf<P>,
        wanted: &StatusOf<P>,
    ) -> Result<(), PlannerError> {
        status::write(&self.api(object), object, wanted).await?;
        Ok(())
    }

    /// Writes the status while work is under way: mere progress at most every two seconds, anything else immediately.
    pub async fn write_progress<T: Clone>(
        &self,
        object: &ObjectOf<P>,
        wanted: &StatusOf<P>,
        progress: fn(&mut StatusOf<P>) -> &mut T,
    ) -> Result<Outcome, PlannerError> {
        let units = P::Kind::units(object);
        let failed = units.iter().any(|unit| unit.stage == Stage::Failed);
        let recheck = if failed { RECHECK_FAILED } else { RECHECK };
        let mut current = object.status().cloned().unwrap_or_default();
        let differs = *wanted != current;
        // As if the progress were written already.
        progress(&mut current).clone_from(progress(&mut wanted.clone()));
        if differs
            && *wanted == current
            && let Err(later) = self.memory.may_write_progress(object, Instant::now())
        {
            return Ok(Outcome::waiting(P::UNDER_WAY, later));
        }
        if differs {
            self.write(object, wanted).await?;
        }
        Ok(Outcome::waiting(P::UNDER_WAY, recheck))
    }

    /// Says that units were added to the status.
    pub fn listed(&self, object: &ObjectOf<P>, units: usize) {
        let note = format!("{units} units are distributed to the controller's replicas");
        self.event(object, P::UNDER_WAY, P::UNIT_ACTION, &note);
    }

    /// Gives units to another attempt.
    pub async fn free(
        &self,
        object: &ObjectOf<P>,
        lost: &[LostUnit],
    ) -> Result<Outcome, PlannerError> {
        let units = lost.iter().map(|unit| UnitReport {
            claim: P::Kind::claim(unit.position, &unit.worker, unit.attempt),
            fields: P::Kind::freed(&unit.error),
        });
        free(&self.api(object), &object.name_any(), units.collect()).await?;
        for unit in lost {
            let note = format!(
                "attempt {} of unit {}: {}",
                unit.attempt, unit.position, unit.error
            );
            self.warn(object, "AttemptLost", P::UNIT_ACTION, &note);
        }
        Ok(Outcome::progressing("UnitsFreed", RECHECK))
    }

    /// The object has succeeded; `times`: when it started and ended.
    pub async fn succeeded(
        &self,
        object: &ObjectOf<P>,
        times: Option<(Timestamp, Timestamp)>,
        note: &str,
    ) -> Outcome {
        self.release(object).await;
        let took = times.and_then(|(start, end)| end.duration_since(start).try_into().ok());
        self.metrics.object_succeeded(took);
        self.event(object, "Succeeded", P::ACTION, note);
        self.finished(object)
    }

    /// The object has failed.
    pub async fn failed(
        &self,
        object: &ObjectOf<P>,
        reason: &'static str,
        message: &str,
    ) -> Outcome {
        self.release(object).await;
        self.metrics.object_failed(reason);
        self.warn(object, reason, P::ACTION, message);
        self.finished(object)
    }

    /// Nothing is left to do for the object.
    pub fn finished(&self, object: &ObjectOf<P>) -> Outcome {
        self.memory.forget(object);
        Outcome::finished()
    }

    /// Starts a job, unless it runs. Its result is recorded in `record`, and the object is enqueued. It is dropped when this replica
    /// ceases to lead: the next leader starts its own.
    pub fn start_job<T: Clone + Send + 'static>(
        &self,
        verb: &'static str,
        object: &ObjectOf<P>,
        work: impl Future<Output = JobResult<T>> + Send + 'static,
        record: fn(&mut P::Jobs) -> &mut JobRecord<T>,
    ) {
        let namespace = object.namespace().unwrap_or_default();
        let name = format!("{verb} {}", object.uid().unwrap_or_default());
        if self.jobs.is_running(&name) {
            return;
        }
        let (memory, enqueue, object) = (self.memory.clone(), self.enqueue.clone(), object.clone());
        let leadership = self.leadership.clone();
        let started = self.jobs.start(&namespace, name, |end| async move {
            let leading = Box::pin(leadership.while_leading(work));
            let ended = end.run_until_cancelled(leading).await;
            let ended = ended.and_then(Result::ok);
            memory.jobs(&object, |jobs| record(jobs).set(ended, Instant::now()));
            enqueue.object(&object.namespace().unwrap_or_default(), &object.name_any());
        });
        if let Err(error) = started {
            // A later reconcile tries again.
            tracing::debug!(%error, verb, namespace, "a job was not started");
        }
    }

    /// Publishes an Event.
    pub fn event(&self, object: &ObjectOf<P>, reason: &str, action: &str, note: &str) {
        let regarding = object.object_ref(&());
        self.runtime.events.normal(&regarding, reason, action, note);
    }

    /// Publishes an Event of type Warning, and logs it.
    pub fn warn(&self, object: &ObjectOf<P>, reason: &str, action: &str, note: &str) {
        let (namespace, name) = (object.namespace(), object.name_any());
        tracing::warn!(namespace, name, reason, note);
        let regarding = object.object_ref(&());
        self.runtime
            .events
            .warning(&regarding, reason, action, note);
    }

    /// Logs the message of a status in full, where the status shows it shortened.
    pub fn log_message(&self, object: &ObjectOf<P>, full: Option<String>) {
        if let Some(message) = full {
            let (namespace, name) = (object.namespace(), object.name_any());
            tracing::info!(namespace, name, message, "status changed");
        }
    }

    /// The API of the objects of the same namespace.
    pub fn api(&self, object: &ObjectOf<P>) -> Api<ObjectOf<P>> {
        let namespace = object.namespace().unwrap_or_default();
        Api::namespaced(self.runtime.client.clone(), &namespace)
    }
}

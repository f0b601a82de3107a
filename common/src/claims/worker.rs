//! The working side of every replica: takes units by claims, runs them as supervised tasks, reports on them.

use super::{
    Claim, UnitReport,
    distribution::{UnitAction, actions, wants_permit},
    fence::fenced,
    held::{End, HeldUnits, Work},
    metrics::WorkMetrics,
    permits::{Permit, Permits, Quota},
    report,
    reporter::UnitReporter,
    unit::UnitKind,
};
use crate::{
    errors::Classified,
    kubernetes::{
        call::{self, ApiError},
        leases::Membership,
        trigger::Trigger,
    },
    runtime::{Runtime, tasks::Tasks},
};
use kube::{Resource, ResourceExt, runtime::reflector::Store};
use std::sync::Arc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

/// What a controller does with one unit.
pub trait DataPath: Send + Sync + 'static {
    /// The objects whose units these are.
    type Kind: UnitKind;
    /// What a unit asks for, as read when it was taken.
    type Order: Send + Sync + 'static;
    /// What the reports are made of.
    type Work: Work;
    /// Why a unit fails.
    type Error: Classified;

    /// The verb in names of tasks, for example `capture`.
    const VERB: &'static str;
    /// Outcome and reason in the metrics of a unit that is done.
    const DONE: (&'static str, &'static str);

    /// Reads the order of a unit that was just taken.
    fn order(
        &self,
        object: &ObjectOf<Self>,
        position: usize,
        attempt: i32,
    ) -> Result<(Self::Order, Self::Work), Self::Error>;

    /// Carries out an order. It has to end soon after the unit's token is cancelled.
    fn run(
        &self,
        order: &Self::Order,
        unit: &ActiveUnit<Self::Kind, Self::Work>,
    ) -> impl Future<Output = Result<<Self::Work as Work>::Done, Self::Error>> + Send;

    /// What an error means for the unit.
    fn end_of(error: &Self::Error) -> End<<Self::Work as Work>::Done>;
}

type ObjectOf<D> = <<D as DataPath>::Kind as UnitKind>::Object;

/// A unit at work.
pub struct ActiveUnit<U, W: Work> {
    /// Cancelled when the unit is lost or stopped, and when the process ends.
    pub cancel: CancellationToken,
    reporter: Arc<UnitReporter<U, W>>,
    held: Arc<HeldUnits<W>>,
    claim: Claim,
}

impl<U: UnitKind, W: Work> ActiveUnit<U, W> {
    /// Reports immediately.
    pub fn report_now(&self) {
        self.held.report_now();
    }

    /// Runs the work that `begin` makes while the claim is this replica's; begins again after a lapse of the member Lease. `None`: the
    /// unit was cancelled or lost.
    pub async fn while_held<T, F>(&self, begin: impl Fn() -> F + Send) -> Option<T>
    where
        F: Future<Output = T> + Send,
    {
        let membership = self.reporter.membership();
        let work = Box::pin(fenced(membership, || self.is_held(), begin));
        self.cancel.run_until_cancelled(work).await.flatten()
    }

    async fn is_held(&self) -> Result<bool, ApiError> {
        let (namespace, name) = (&self.held.namespace, &self.held.name);
        let api = self.reporter.api(namespace);
        let what = format!("get {} {namespace}/{name}", U::Object::kind(&()));
        let now = call::read_optional(what, api.get(name)).await?;
        Ok(now.is_some_and(|now| U::is_held(&now, &self.claim)))
    }
}

/// The working side of one replica.
pub struct Worker<D: DataPath> {
    data_path: D,
    reporter: Arc<UnitReporter<D::Kind, D::Work>>,
    tasks: Tasks,
    permits: Permits,
    metrics: WorkMetrics,
}

impl<D: DataPath> Worker<D> {
    /// A worker for as many units at the same time as `quota` allows. When one ends, objects that wait for a permit are enqueued.
    pub fn new(
        runtime: &Runtime,
        membership: Membership,
        data_path: D,
        quota: Quota,
        metrics: WorkMetrics,
        objects: Store<ObjectOf<D>>,
        enqueue: Trigger<ObjectOf<D>>,
    ) -> Arc<Self> {
        let me = membership.name().to_owned();
        let ended = move || enqueue_waiting::<D::Kind>(&objects, &me, &enqueue);
        Arc::new(Self {
            data_path,
            tasks: runtime.tasks(quota.all, move |_, _| ended()),
            reporter: UnitReporter::new(runtime, membership),
            permits: Permits::new(quota),
            metrics,
        })
    }

    /// Takes, continues, abandons or stops units of an object as it is seen now.
    pub async fn reconcile(self: &Arc<Self>, object: &ObjectOf<D>) -> Result<(), ApiError> {
        let over = D::Kind::is_over(object);
        if over && !self.reporter.holds(object) {
            return Ok(());
        }
        let held = self.reporter.of(object);
        let may_take = self.reporter.may_take();
        let permits = if may_take {
            self.permits.left(&held.namespace)
        } else {
            0
        };
        for action in actions::<D::Kind>(object, self.reporter.me(), &held.own(), permits) {
            match action {
                UnitAction::Take(position, attempt) => {
                    self.take(object, &held, position, attempt).await?;
                }
                UnitAction::Continue(position, attempt) => {
                    if may_take && let Some(permit) = self.permits.try_acquire(&held.namespace) {
                        self.start(object, &held, position, attempt, permit);
                    }
                }
                UnitAction::Abandon(position, attempt) => {
                    self.abandon(object, position, attempt).await?;
                }
                UnitAction::Stop(position) => held.stop(position),
            }
        }
        if held.is_idle() && (over || held.own().ended.is_empty()) {
            self.reporter.forget(object);
        }
        Ok(())
    }

    /// The object was deleted: its units stop.
    pub fn deleted(&self, namespace: &str, name: &str) {
        self.reporter.deleted(namespace, name);
    }

    async fn take(
        self: &Arc<Self>,
        object: &ObjectOf<D>,
        held: &Arc<HeldUnits<D::Work>>,
        position: usize,
        attempt: i32,
    ) -> Result<(), ApiError> {
        let Some(permit) = self.permits.try_acquire(&held.namespace) else {
            return Ok(());
        };
        let path = D::Kind::claim(position, "", attempt).path;
        if let Some(now) = self.reporter.take(object, path, attempt).await? {
            self.start(&now, held, position, attempt, permit);
        }
        Ok(())
    }

    /// An earlier process of this name started the unit, and what it had is gone.
    async fn abandon(
        &self,
        object: &ObjectOf<D>,
        position: usize,
        attempt: i32,
    ) -> Result<(), ApiError> {
        let me = self.reporter.me();
        let unit = UnitReport {
            claim: D::Kind::claim(position, me, attempt),
            fields: D::Kind::failed(&format!("controller replica {me} was restarted")),
        };
        let api = self.reporter.api(&object.namespace().unwrap_or_default());
        report(&api, &object.name_any(), vec![unit]).await?;
        Ok(())
    }

    fn start(
        self: &Arc<Self>,
        object: &ObjectOf<D>,
        held: &Arc<HeldUnits<D::Work>>,
        position: usize,
        attempt: i32,
        permit: Permit,
    ) {
        let (order, work) = match self.data_path.order(object, position, attempt) {
            Ok(read) => read,
            Err(error) => {
                let (namespace, name) = (&held.namespace, &held.name);
                tracing::error!(%error, namespace, name, position, "the unit in status cannot be read");
                return;
            }
        };
        let (guard, cancel) = self.reporter.start(held, position, attempt, work);
        let name = format!(
            "{} {}/{} unit {position} attempt {attempt}",
            D::VERB,
            held.namespace,
            held.name
        );
        let unit = ActiveUnit {
            cancel,
            claim: D::Kind::claim(position, self.reporter.me(), attempt),
            reporter: Arc::clone(&self.reporter),
            held: Arc::clone(held),
        };
        let worker = Arc::clone(self);
        let span = unit_span::<D::Kind>(object, position, attempt);
        let started = self.tasks.start(name, move |_| {
            let work = async move {
                let (end, result) = worker.run(&order, &unit).await;
                guard.end(end);
                // Released after the end is recorded: an object that is enqueued for the permit finds it free.
                drop(permit);
                result
            };
            work.instrument(span)
        });
        if let Err(error) = started {
            // The guard was dropped with the task: the unit is reported as failed.
            tracing::warn!(%error, "the work on a unit was not started");
        }
    }

    async fn run(
        &self,
        order: &D::Order,
        unit: &ActiveUnit<D::Kind, D::Work>,
    ) -> (End<<D::Work as Work>::Done>, Result<(), D::Error>) {
        let begun = Instant::now();
        let result = self.data_path.run(order, unit).await;
        let took = begun.elapsed();
        match result {
            Ok(done) => {
                self.metrics.unit_done(D::DONE, took);
                (End::Done(done), Ok(()))
            }
            Err(error) => {
                let end = D::end_of(&error);
                let released = matches!(end, End::Released | End::Stopped);
                let outcome = if released { "stopped" } else { "failed" };
                self.metrics.unit_ended(outcome, error.reason());
                (end, Err(error))
            }
        }
    }
}

/// The span of the work on a unit. Each unit is one shard of a backup, which the status calls by its index.
pub(super) fn unit_span<U: UnitKind>(object: &U::Object, position: usize, attempt: i32) -> Span {
    let unit = U::units(object).get(position).map(|unit| unit.index);
    tracing::info_span!(
        "unit",
        kind = %U::Object::kind(&()),
        namespace = object.namespace(),
        name = object.name_any(),
        shard = unit,
        attempt
    )
}

/// Enqueues the objects with units that wait for a permit of this replica.
fn enqueue_waiting<U: UnitKind>(
    objects: &Store<U::Object>,
    me: &str,
    enqueue: &Trigger<U::Object>,
) {
    for object in objects.state() {
        if wants_permit::<U>(&object, me) {
            enqueue.object(&object.namespace().unwrap_or_default(), &object.name_any());
        }
    }
}

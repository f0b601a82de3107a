//! The run loop of one kind: one watch for each kind that is looked at, a cache of each, bounded concurrency, retries by
//! error class, metrics, Events, an orderly end.
//!
//! It stands on kube's `applier` and not on its `Controller`, because there every child's watch is made twice when its cache is
//! wanted too, and child caches are not waited for.

pub use super::watches::{Watched, WatchedApi};
use super::{
    grouped::{Grouped, Groups},
    leases::Leadership,
    outcome::Outcome,
    retries::Retries,
    trigger::Trigger,
    watches,
};
use crate::{
    errors::{Classified, ErrorClass},
    runtime::{Runtime, health::Gate, telemetry},
};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use kube::runtime::{
    applier,
    controller::{Action, Config, Error},
    reflector::{ObjectRef, Store},
    watcher::{self, Event},
};
use std::{
    collections::HashSet,
    convert::Infallible,
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

/// No reconcile takes longer: it is cancelled and tried again, so that a call without a bound cannot hold an object for ever.
const RECONCILE_LIMIT: Duration = Duration::from_mins(2);
/// One that has not ended this long after the limit is blocked: the process is not alive.
const BLOCKED: Duration = Duration::from_mins(1);
/// Changes that come within this time are one reconcile.
const DEBOUNCE: Duration = Duration::from_millis(200);

/// One kind's reconcile.
pub trait Reconcile<K: Watched>: Send + Sync + 'static {
    /// What can go wrong.
    type Error: Classified;

    /// Reconciles one object. Never sleeps, never polls; says when to look again. It may be dropped at any await: by its limit, and
    /// when leadership is lost.
    fn reconcile(
        &self,
        object: Arc<K>,
    ) -> impl Future<Output = Result<Outcome, Self::Error>> + Send;

    /// How many places of those that the program has at the same time (`--concurrency`) a reconcile takes: what needs memory takes several.
    fn places(&self, object: &K) -> u32 {
        let _ = object;
        1
    }

    /// The object is gone from the cache: forget what was kept in memory for it.
    fn gone(&self, namespace: &str, name: &str) {
        let _ = (namespace, name);
    }
}

/// A controller of objects of kind `K`, being put together. The process is not ready until it runs and its caches are complete.
pub struct Controller<K: Watched> {
    runtime: Runtime,
    store: Store<K>,
    trigger: Trigger<K>,
    triggers: Vec<BoxStream<'static, ObjectRef<K>>>,
    caches: Vec<watch::Receiver<bool>>,
    gate: Gate,
    only_leader: Option<Leadership>,
    debounce: Duration,
}

impl<K: Watched> Controller<K> {
    /// Watches the objects themselves: `Controller::new(&runtime, runtime.api())`.
    pub fn new(runtime: &Runtime, primary: WatchedApi<K>) -> Self {
        let watching = watches::watch(
            primary,
            runtime.watch(),
            runtime.metrics.clone(),
            runtime.health.watch(kind_name::<K>()),
            |_, _| {},
        );
        let touched = watching.touched.map(|object| ObjectRef::from_obj(&object));
        let trigger = Trigger::new();
        let triggered = stream::unfold(trigger.clone(), |trigger| async move {
            Some((trigger.next().await, trigger))
        });
        Self {
            runtime: runtime.clone(),
            store: watching.store,
            trigger,
            triggers: vec![touched.boxed(), triggered.flat_map(stream::iter).boxed()],
            caches: vec![watching.complete],
            gate: runtime.health.gate(kind_name::<K>()),
            only_leader: None,
            debounce: DEBOUNCE,
        }
    }

    /// Watches children that carry a label; a change of one enqueues its owner (by controller owner reference). Returns their cache.
    pub fn owns<C: Watched>(&mut self, api: WatchedApi<C>, label: &'static str) -> Grouped<C> {
        self.watches_labelled(api, label, |child| {
            let namespace = child.meta().namespace.as_deref();
            let owners = child.meta().owner_references.iter().flatten();
            owners
                .filter(|owner| owner.controller == Some(true))
                .filter_map(|owner| ObjectRef::from_owner_ref(namespace, owner, ()))
                .collect()
        })
    }

    /// Watches related objects that carry a label; `owners` names what a change of one enqueues. Returns their cache.
    pub fn watches_labelled<C: Watched>(
        &mut self,
        api: WatchedApi<C>,
        label: &'static str,
        owners: impl Fn(&C) -> Vec<ObjectRef<K>> + Send + 'static,
    ) -> Grouped<C> {
        let groups = Groups::new(label);
        let config = self.runtime.watch().labels(label);
        let grouping = groups.clone();
        let seen = move |store: &Store<C>, event: &Event<C>| grouping.see(store, event);
        Grouped::new(self.add(api, config, seen, owners), groups)
    }

    /// Watches all objects of a kind; `owners` names what a change of one enqueues. Returns their cache.
    pub fn watches<C: Watched>(
        &mut self,
        api: WatchedApi<C>,
        owners: impl Fn(&C) -> Vec<ObjectRef<K>> + Send + 'static,
    ) -> Store<C> {
        self.add(api, self.runtime.watch(), |_, _| {}, owners)
    }

    fn add<C: Watched>(
        &mut self,
        api: WatchedApi<C>,
        config: watcher::Config,
        seen: impl Fn(&Store<C>, &Event<C>) + Send + 'static,
        owners: impl Fn(&C) -> Vec<ObjectRef<K>> + Send + 'static,
    ) -> Store<C> {
        let health = self.runtime.health.watch(kind_name::<C>());
        let watching = watches::watch(api, config, self.runtime.metrics.clone(), health, seen);
        let touched = watching.touched;
        let triggered = touched.flat_map(move |object| stream::iter(owners(&object)));
        self.triggers.push(triggered.boxed());
        self.caches.push(watching.complete);
        watching.store
    }

    /// Reconciles only while this process leads: a reconcile under way is cancelled when it ceases to. Every object is enqueued when it
    /// starts to lead.
    pub fn only_leader(&mut self, leadership: &Leadership) {
        self.only_leader = Some(leadership.clone());
        self.trigger_on_leadership(leadership);
    }

    /// Every replica reconciles (and asks `is_leader_now` where it matters); a change of leadership enqueues every object.
    pub fn trigger_on_leadership(&mut self, leadership: &Leadership) {
        let changes = stream::unfold(leadership.clone(), |mut leadership| async move {
            leadership.changed().await.then_some(((), leadership))
        });
        self.trigger_all_on(changes.boxed());
    }

    /// Changes that come within this time are one reconcile.
    pub fn debounce(&mut self, debounce: Duration) {
        self.debounce = debounce;
    }

    /// The cache of the objects themselves.
    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }

    /// Enqueues an object from elsewhere, for example when a task has ended.
    pub fn trigger(&self) -> Trigger<K> {
        self.trigger.clone()
    }

    fn trigger_all_on(&mut self, moments: BoxStream<'static, ()>) {
        let store = self.store.clone();
        let all = moments.flat_map(move |()| {
            stream::iter(store.state()).map(|object| ObjectRef::from_obj(object.as_ref()))
        });
        self.triggers.push(all.boxed());
    }

    /// Runs until shutdown; then waits for the reconciles under way. They start when every cache is complete.
    pub async fn run<R: Reconcile<K>>(self, reconciler: Arc<R>) {
        let (complete, completed) = watch::channel(false);
        let driver = Arc::new(Driver {
            kind: K::kind(&()).into_owned(),
            runtime: self.runtime.clone(),
            reconciler,
            store: self.store.clone(),
            places: Semaphore::new(self.runtime.arguments.concurrency.into()),
            only_leader: self.only_leader,
            retries: Retries::default(),
            queued: Mutex::default(),
            completed,
        });
        let gate = self.gate;
        let caches = AbortOnDropHandle::new(tokio::spawn(async move {
            for mut cache in self.caches {
                if cache.wait_for(|complete| *complete).await.is_err() {
                    return;
                }
            }
            gate.open();
            complete.send_replace(true);
            // Held open: what waits later sees the value.
            complete.closed().await;
        }));
        let queueing = Arc::clone(&driver);
        let queue = stream::select_all(self.triggers)
            .take_until(self.runtime.shutdown.clone().cancelled_owned())
            .inspect(move |object| queueing.queue(|queued| queued.insert(object.clone())))
            .map(Ok::<_, Infallible>);
        // Without a bound of its own: of those that wait it takes any, and some never (a HashSet in kube's `scheduler.rs`). See `Driver::place`.
        let config = Config::default().debounce(self.debounce);
        let ended = applier(
            |object, driver: Arc<Driver<K, R>>| Box::pin(driver.spawn(object)),
            |_, never: &Infallible, _| match *never {},
            Arc::clone(&driver),
            self.store,
            queue,
            config,
        );
        drive(&driver, pin!(ended)).await;
        drop(caches);
    }
}

type Ended<K> = Result<(ObjectRef<K>, Action), Error<Infallible, Infallible>>;

/// Polls the loop until it has ended.
async fn drive<K: Watched, R: Reconcile<K>>(
    driver: &Driver<K, R>,
    mut ended: impl futures::Stream<Item = Ended<K>> + Unpin,
) {
    loop {
        let complete = *driver.completed.borrow();
        tokio::select! {
            // Reconciles that wait for a cache have nothing to finish.
            () = driver.runtime.shutdown.cancelled(), if !complete => break,
            reconcile = ended.next() => match reconcile {
                Some(Ok(_)) => {}
                Some(Err(Error::ObjectNotFound(gone))) => {
                    driver.gone(gone.namespace.as_deref(), &gone.name);
                }
                Some(Err(Error::RunnerError(error))) => {
                    tracing::error!(kind = driver.kind, %error, "the cache ended");
                }
                Some(Err(Error::ReconcilerFailed(never, _) | Error::QueueError(never))) => match never {},
                None => break,
            },
        }
    }
}

/// A name for probes that lives as long as the program.
fn kind_name<K: Watched>() -> &'static str {
    std::any::type_name::<K>()
        .rsplit("::")
        .next()
        .unwrap_or("objects")
}

/// What one reconcile needs.
struct Driver<K: Watched, R> {
    kind: String,
    runtime: Runtime,
    reconciler: Arc<R>,
    store: Store<K>,
    /// First come, first served.
    places: Semaphore,
    only_leader: Option<Leadership>,
    retries: Retries<ObjectRef<K>>,
    /// Objects that were enqueued and whose reconcile has not started.
    queued: Mutex<HashSet<ObjectRef<K>>>,
    completed: watch::Receiver<bool>,
}

impl<K: Watched, R: Reconcile<K>> Driver<K, R> {
    /// One reconcile in a task of its own, so that reconciles run on all threads.
    async fn spawn(self: Arc<Self>, object: Arc<K>) -> Result<Action, Infallible> {
        let reference = ObjectRef::from_obj(object.as_ref());
        let driver = Arc::clone(&self);
        let (namespace, name) = (
            object.meta().namespace.as_deref(),
            object.meta().name.as_deref(),
        );
        let span = tracing::info_span!("reconcile", kind = self.kind, namespace, name);
        let reconcile = async move { driver.reconcile(object).await };
        let task = AbortOnDropHandle::new(tokio::spawn(reconcile.instrument(span)));
        Ok(task.await.unwrap_or_else(|_| {
            tracing::error!(object = %reference, "a reconcile panicked");
            self.runtime
                .metrics
                .reconciled(&self.kind, "failed", "Panicked", Duration::ZERO);
            Action::requeue(self.retries.failed(&reference, ErrorClass::Bug).delay)
        }))
    }

    async fn reconcile(&self, object: Arc<K>) -> Action {
        if self
            .completed
            .clone()
            .wait_for(|complete| *complete)
            .await
            .is_err()
        {
            return Action::await_change();
        }
        let reference = ObjectRef::from_obj(object.as_ref());
        let Some(_places) = self.place(object.as_ref()).await else {
            return Action::await_change();
        };
        // It has waited: what it was then is past.
        let Some(object) = self.store.get(&reference) else {
            return Action::await_change();
        };
        self.queue(|queued| queued.remove(&reference));
        let begun = Instant::now();
        let due = begun + RECONCILE_LIMIT + BLOCKED;
        let activity = self.runtime.health.activity(kind_name::<K>(), due);
        let reconcile = self.reconciler.reconcile(Arc::clone(&object));
        let reconcile = tokio::time::timeout(RECONCILE_LIMIT, reconcile);
        let result = match &self.only_leader {
            None => Ok(reconcile.await),
            Some(leadership) => leadership.while_leading(reconcile).await,
        };
        drop(activity);
        match result {
            Err(_) => self.not_leading(begun),
            Ok(Ok(Ok(outcome))) => self.succeeded(&reference, &outcome, begun.elapsed()),
            Ok(Ok(Err(error))) => {
                let failure = ReconcileFailure {
                    class: error.class(),
                    reason: error.reason(),
                    message: telemetry::chain(&error),
                };
                self.failed(object.as_ref(), &reference, &failure, begun.elapsed())
            }
            Ok(Err(_)) => {
                let failure = ReconcileFailure {
                    class: ErrorClass::Transient,
                    reason: "ReconcileTooLong",
                    message: format!("cancelled after {} s", RECONCILE_LIMIT.as_secs()),
                };
                self.failed(object.as_ref(), &reference, &failure, begun.elapsed())
            }
        }
    }

    /// The places that a reconcile of the object takes, once it is its turn; none when the program ends.
    async fn place(&self, object: &K) -> Option<SemaphorePermit<'_>> {
        let all = u32::from(self.runtime.arguments.concurrency);
        let places = self.reconciler.places(object).clamp(1, all);
        tokio::select! {
            biased;
            () = self.runtime.shutdown.cancelled() => None,
            permit = self.places.acquire_many(places) => permit.ok(),
        }
    }

    /// Another replica does the work.
    fn not_leading(&self, begun: Instant) -> Action {
        tracing::debug!(ran_ms = begun.elapsed().as_millis(), "not leading");
        let again = self.only_leader.as_ref().and_then(Leadership::look_again);
        again.map_or_else(Action::await_change, Action::requeue)
    }

    fn succeeded(&self, reference: &ObjectRef<K>, outcome: &Outcome, took: Duration) -> Action {
        self.retries.succeeded(reference);
        let kind = outcome.kind.as_str();
        self.runtime
            .metrics
            .reconciled(&self.kind, kind, outcome.reason, took);
        tracing::debug!(
            outcome = kind,
            reason = outcome.reason,
            took_ms = took.as_millis(),
            "reconciled"
        );
        outcome
            .again
            .map_or_else(Action::await_change, Action::requeue)
    }

    fn failed(
        &self,
        object: &K,
        reference: &ObjectRef<K>,
        failure: &ReconcileFailure,
        took: Duration,
    ) -> Action {
        let retry = self.retries.failed(reference, failure.class);
        self.runtime
            .metrics
            .reconciled(&self.kind, "failed", failure.reason, took);
        let (class, reason, error) = (failure.class.as_str(), failure.reason, &failure.message);
        let retry_s = retry.delay.as_secs_f32();
        tracing::warn!(
            class,
            reason,
            error,
            failures = retry.failures,
            retry_s,
            "reconcile failed"
        );
        if failure.class.is_worth_an_event(retry.failures) && retry.failures.is_power_of_two() {
            let regarding = object.object_ref(&());
            self.runtime
                .events
                .warning(&regarding, reason, "Reconcile", error);
        }
        Action::requeue(retry.delay)
    }

    fn gone(&self, namespace: Option<&str>, name: &str) {
        let mut reference = ObjectRef::<K>::new(name);
        reference.namespace = namespace.map(str::to_string);
        self.queue(|queued| queued.remove(&reference));
        self.retries.succeeded(&reference);
        self.reconciler.gone(namespace.unwrap_or_default(), name);
    }

    fn queue(&self, change: impl FnOnce(&mut HashSet<ObjectRef<K>>) -> bool) {
        let mut queued = self.queued.lock().unwrap_or_else(PoisonError::into_inner);
        if change(&mut queued) {
            self.runtime.metrics.queued(&self.kind, queued.len());
        }
    }
}

struct ReconcileFailure {
    class: ErrorClass,
    reason: &'static str,
    message: String,
}

//! The run loop of one kind: one watch for each kind that is looked at, a cache of each, bounded concurrency, retries by
//! error class, metrics, Events, an orderly end.
//!
//! It stands on kube's `applier` and not on its `Controller`, because there every child's watch is made twice when its cache is
//! wanted too, and child caches are not waited for.

use super::{
    errors::{Classified, ErrorClass},
    leases::Leadership,
    outcome::Outcome,
    retries::Retries,
    wake::Wake,
    watches,
};
use crate::runtime::{Runtime, health::Gate, telemetry};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use kube::{
    Api, Resource,
    core::DeserializeGuard,
    runtime::{
        applier,
        controller::{Action, Config, Error},
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use std::{
    convert::Infallible,
    fmt::Debug,
    future::Future,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// No pass takes longer: it is given up and tried again, so that a call without a bound cannot hold an object for ever.
pub const PASS_LIMIT: Duration = Duration::from_mins(2);
/// Changes that come within this time are one pass.
pub const DEBOUNCE: Duration = Duration::from_millis(200);
const BEAT: Duration = Duration::from_secs(10);

/// One kind's reconcile.
pub trait Reconcile<K: Watched>: Send + Sync + 'static {
    /// What can go wrong.
    type Error: Classified;

    /// One pass over one object. Never sleeps, never polls; says when to look again. It may be dropped at any await.
    fn reconcile(
        &self,
        object: Arc<K>,
    ) -> impl Future<Output = Result<Outcome, Self::Error>> + Send;

    /// The object is gone from the cache: forget what was kept in memory for it.
    fn gone(&self, namespace: &str, name: &str) {
        let _ = (namespace, name);
    }
}

/// What a watched kind has to be able to do.
pub trait Watched:
    Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
}

impl<K> Watched for K where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
}

/// An API as it is watched: an object that does not parse is left out, and does not stop the watch.
/// `runtime.api()` makes one where one is wanted.
pub type WatchedApi<K> = Api<DeserializeGuard<K>>;

/// A controller of objects of kind `K`, being put together. The process is not ready until it runs and its caches are complete.
pub struct Controller<K: Watched> {
    runtime: Runtime,
    store: Store<K>,
    wake: Wake<K>,
    triggers: Vec<BoxStream<'static, ObjectRef<K>>>,
    caches: Vec<watch::Receiver<bool>>,
    gate: Gate,
    only_leader: Option<Leadership>,
    debounce: Duration,
}

impl<K: Watched> Controller<K> {
    /// Watches the objects themselves: `Controller::new(&runtime, runtime.api())`.
    pub fn new(runtime: &Runtime, primary: WatchedApi<K>) -> Self {
        let watching = watches::watch(primary, runtime.watch(), runtime.metrics.clone());
        let touched = watching.touched.map(|object| ObjectRef::from_obj(&object));
        let wake = Wake::new();
        let woken = stream::unfold(wake.clone(), |wake| async move {
            Some((wake.next().await, wake))
        });
        Self {
            runtime: runtime.clone(),
            store: watching.store,
            wake,
            triggers: vec![touched.boxed(), woken.flat_map(stream::iter).boxed()],
            caches: vec![watching.complete],
            gate: runtime.health.gate(kind_name::<K>()),
            only_leader: None,
            debounce: DEBOUNCE,
        }
    }

    /// Watches children; a change of one wakes its owner (by controller owner reference). Returns their cache.
    pub fn owns<C: Watched>(&mut self, api: WatchedApi<C>, config: watcher::Config) -> Store<C> {
        self.watches(api, config, |child| {
            let namespace = child.meta().namespace.as_deref();
            let owners = child.meta().owner_references.iter().flatten();
            owners
                .filter(|owner| owner.controller == Some(true))
                .filter_map(|owner| ObjectRef::from_owner_ref(namespace, owner, ()))
                .collect()
        })
    }

    /// Watches related objects; `owners` names whom a change of one wakes. Returns their cache.
    pub fn watches<C: Watched>(
        &mut self,
        api: WatchedApi<C>,
        config: watcher::Config,
        owners: impl Fn(&C) -> Vec<ObjectRef<K>> + Send + 'static,
    ) -> Store<C> {
        let watching = watches::watch(api, config, self.runtime.metrics.clone());
        let touched = watching.touched;
        let woken = touched.flat_map(move |object| stream::iter(owners(&object)));
        self.triggers.push(woken.boxed());
        self.caches.push(watching.complete);
        watching.store
    }

    /// Reconciles only while this process leads; wakes every object when it starts to lead.
    pub fn only_leader(&mut self, leadership: &Leadership) {
        self.only_leader = Some(leadership.clone());
        self.wake_on_leadership(leadership);
    }

    /// Every replica reconciles (and asks `is_leader_now` where it matters); a change of leadership wakes every object.
    pub fn wake_on_leadership(&mut self, leadership: &Leadership) {
        let changes = stream::unfold(leadership.clone(), |mut leadership| async move {
            leadership.changed().await.then_some(((), leadership))
        });
        self.wake_all_on(changes.boxed());
    }

    /// Changes that come within this time are one pass.
    pub fn debounce(&mut self, debounce: Duration) {
        self.debounce = debounce;
    }

    /// The cache of the objects themselves.
    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }

    /// To wake an object from elsewhere, for example when a task has ended.
    pub fn wake(&self) -> Wake<K> {
        self.wake.clone()
    }

    fn wake_all_on(&mut self, moments: BoxStream<'static, ()>) {
        let store = self.store.clone();
        let all = moments.flat_map(move |()| {
            stream::iter(store.state()).map(|object| ObjectRef::from_obj(object.as_ref()))
        });
        self.triggers.push(all.boxed());
    }

    /// Runs until shutdown; then waits for the passes under way. Passes start when every cache is complete.
    pub async fn run<R: Reconcile<K>>(self, reconciler: Arc<R>) {
        let (complete, completed) = watch::channel(false);
        let passes = Arc::new(Passes {
            kind: K::kind(&()).into_owned(),
            runtime: self.runtime.clone(),
            reconciler,
            only_leader: self.only_leader,
            retries: Retries::default(),
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
            // Held open: whoever waits later sees the value.
            complete.closed().await;
        }));
        let queue = stream::select_all(self.triggers)
            .take_until(self.runtime.shutdown.clone().cancelled_owned())
            .map(Ok::<_, Infallible>);
        let config = Config::default()
            .concurrency(self.runtime.arguments.concurrency)
            .debounce(self.debounce);
        let ended = applier(
            |object, passes: Arc<Passes<K, R>>| Box::pin(passes.spawn(object)),
            |_, never: &Infallible, _| match *never {},
            Arc::clone(&passes),
            self.store,
            queue,
            config,
        );
        turn(&self.runtime, &passes, pin!(ended)).await;
        drop(caches);
    }
}

type Ended<K> = Result<(ObjectRef<K>, Action), Error<Infallible, Infallible>>;

/// Keeps the loop turning until it has ended, and the heartbeat with it.
async fn turn<K: Watched, R: Reconcile<K>>(
    runtime: &Runtime,
    passes: &Passes<K, R>,
    mut ended: impl futures::Stream<Item = Ended<K>> + Unpin,
) {
    let heartbeat = runtime.health.heartbeat(kind_name::<K>());
    let mut beats = tokio::time::interval(BEAT);
    loop {
        let complete = *passes.completed.borrow();
        tokio::select! {
            _ = beats.tick() => heartbeat.beat(),
            // Passes that wait for a cache have nothing to finish.
            () = runtime.shutdown.cancelled(), if !complete => break,
            pass = ended.next() => match pass {
                Some(Ok(_)) => {}
                Some(Err(Error::ObjectNotFound(gone))) => {
                    passes.gone(gone.namespace.as_deref().unwrap_or_default(), &gone.name);
                }
                Some(Err(Error::RunnerError(error))) => {
                    tracing::error!(kind = passes.kind, %error, "the cache ended");
                }
                Some(Err(Error::ReconcilerFailed(never, _) | Error::QueueError(never))) => match never {},
                None => break,
            },
        }
    }
    heartbeat.retire();
}

/// A name for probes that lives as long as the program.
fn kind_name<K: Watched>() -> &'static str {
    std::any::type_name::<K>()
        .rsplit("::")
        .next()
        .unwrap_or("objects")
}

/// What one pass needs.
struct Passes<K: Watched, R> {
    kind: String,
    runtime: Runtime,
    reconciler: Arc<R>,
    only_leader: Option<Leadership>,
    retries: Retries<ObjectRef<K>>,
    completed: watch::Receiver<bool>,
}

impl<K: Watched, R: Reconcile<K>> Passes<K, R> {
    /// One pass in a task of its own, so that passes run on all threads.
    async fn spawn(self: Arc<Self>, object: Arc<K>) -> Result<Action, Infallible> {
        let reference = ObjectRef::from_obj(object.as_ref());
        let passes = Arc::clone(&self);
        let task = AbortOnDropHandle::new(tokio::spawn(async move { passes.pass(object).await }));
        Ok(task.await.unwrap_or_else(|_| {
            tracing::error!(object = %reference, "a pass panicked");
            self.runtime
                .metrics
                .reconciled(&self.kind, "failed", "Panicked", Duration::ZERO);
            Action::requeue(self.retries.failed(&reference, ErrorClass::Bug).delay)
        }))
    }

    async fn pass(&self, object: Arc<K>) -> Action {
        if self
            .completed
            .clone()
            .wait_for(|complete| *complete)
            .await
            .is_err()
        {
            return Action::await_change();
        }
        if let Some(leadership) = &self.only_leader
            && !leadership.is_leader_now()
        {
            // Between the moment a promise has passed and the moment that is told, nobody would wake the object again.
            return match leadership.watch().borrow().leading_until {
                Some(_) => Action::requeue(Duration::from_secs(1)),
                None => Action::await_change(),
            };
        }
        let reference = ObjectRef::from_obj(object.as_ref());
        let begun = Instant::now();
        let pass = self.reconciler.reconcile(Arc::clone(&object));
        match tokio::time::timeout(PASS_LIMIT, pass).await {
            Ok(Ok(outcome)) => self.succeeded(&reference, &outcome, begun.elapsed()),
            Ok(Err(error)) => {
                let failure = Failure {
                    class: error.class(),
                    reason: error.reason(),
                    message: telemetry::chain(&error),
                };
                self.failed(object.as_ref(), &reference, &failure, begun.elapsed())
            }
            Err(_) => {
                let failure = Failure {
                    class: ErrorClass::Transient,
                    reason: "PassTooLong",
                    message: format!("a pass took longer than {} s", PASS_LIMIT.as_secs()),
                };
                self.failed(object.as_ref(), &reference, &failure, begun.elapsed())
            }
        }
    }

    fn succeeded(&self, reference: &ObjectRef<K>, outcome: &Outcome, took: Duration) -> Action {
        self.retries.succeeded(reference);
        let kind = outcome.kind.as_str();
        self.runtime
            .metrics
            .reconciled(&self.kind, kind, outcome.reason, took);
        tracing::debug!(object = %reference, outcome = kind, reason = outcome.reason, took_ms = took.as_millis(), "pass");
        outcome
            .again
            .map_or_else(Action::await_change, Action::requeue)
    }

    fn failed(
        &self,
        object: &K,
        reference: &ObjectRef<K>,
        failure: &Failure,
        took: Duration,
    ) -> Action {
        let retry = self.retries.failed(reference, failure.class);
        self.runtime
            .metrics
            .reconciled(&self.kind, "failed", failure.reason, took);
        let (class, reason, error) = (failure.class.as_str(), failure.reason, &failure.message);
        tracing::warn!(object = %reference, class, reason, error, failures = retry.failures, retry_s = retry.delay.as_secs_f32(), "pass failed");
        if failure.class.is_worth_an_event(retry.failures) && retry.failures.is_power_of_two() {
            let regarding = object.object_ref(&());
            self.runtime
                .events
                .warning(&regarding, reason, "Reconcile", error);
        }
        Action::requeue(retry.delay)
    }

    fn gone(&self, namespace: &str, name: &str) {
        let reference = ObjectRef::<K>::new(name);
        let reference = if namespace.is_empty() {
            reference
        } else {
            reference.within(namespace)
        };
        self.retries.succeeded(&reference);
        self.reconciler.gone(namespace, name);
    }
}

struct Failure {
    class: ErrorClass,
    reason: &'static str,
    message: String,
}

//! Moves of slots under way: a supervised task for each cluster, which holds the operation Lease and ends with this process's leadership.

use crate::redis::{
    balance::ReshardGoal,
    reshard::{self, NodeEndpoints, ReshardEnd, ReshardError, ReshardLimits, ReshardProgress},
};
use common::{
    errors::{Classified, ErrorClass},
    kubernetes::{
        call::ApiError,
        leases::{Holder, Leadership, NotLeader, Operation, OperationLeases},
        trigger::Trigger,
    },
    runtime::{
        Runtime,
        tasks::{NotStarted, TaskEnd, Tasks},
    },
};
use crds::RedisCluster;
use futures::{FutureExt, future::BoxFuture};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Clusters whose slots move at the same time.
const MOST: usize = 16;
/// How long the Lease is promised; it is renewed before half of that has passed.
const LEASE: Duration = Duration::from_secs(30);
const RENEWAL: Duration = Duration::from_secs(5);
/// After a failure the next attempt waits for this long.
const RETRY: Duration = Duration::from_secs(5);

/// A cluster by namespace and name.
type Key = (String, String);

/// What has to be known to move the slots of a cluster.
pub struct ReshardOrder {
    /// Who holds the operation Lease meanwhile.
    pub holder: Holder,
    /// How every primary is reached.
    pub nodes: NodeEndpoints,
    /// Which shards are to have the slots.
    pub goal: ReshardGoal,
    /// How fast.
    pub limits: ReshardLimits,
}

/// How the moves of a cluster are.
#[derive(Clone, Debug, PartialEq)]
pub enum ReshardState {
    /// None is under way.
    Idle,
    /// Slots move.
    Moving(ReshardProgress),
    /// They will be tried again. Why not now.
    Waiting(String),
}

/// The moves of all clusters.
pub struct Resharding {
    tasks: Tasks,
    shared: Arc<Shared>,
}

struct Shared {
    leases: Arc<OperationLeases>,
    leadership: Leadership,
    clusters: Mutex<HashMap<Key, Entry>>,
}

#[derive(Clone)]
struct Entry {
    progress: watch::Receiver<ReshardProgress>,
    goal: ReshardGoal,
    ended: Option<(Instant, Option<String>)>,
}

impl Resharding {
    /// None is under way. The end of each enqueues its cluster.
    pub fn new(
        runtime: &Runtime,
        leases: Arc<OperationLeases>,
        leadership: Leadership,
        trigger: Trigger<RedisCluster>,
    ) -> Self {
        let shared = Arc::new(Shared {
            leases,
            leadership,
            clusters: Mutex::default(),
        });
        let known = Arc::clone(&shared);
        let tasks = runtime.tasks(MOST, move |name, end| {
            let Some((namespace, cluster)) = name.split_once('/') else {
                return;
            };
            known.ended(namespace, cluster, end);
            trigger.object(namespace, cluster);
        });
        Self { tasks, shared }
    }

    /// Starts to move slots, unless they move already or have failed a moment ago.
    pub fn start(
        &self,
        (namespace, name): (&str, &str),
        order: ReshardOrder,
    ) -> Result<(), NotStarted> {
        let key = (namespace.to_owned(), name.to_owned());
        let is_early = |entry: &Entry| match &entry.ended {
            None => true,
            Some((at, failure)) => failure.is_some() && at.elapsed() < RETRY,
        };
        if self.shared.lock().get(&key).is_some_and(is_early) {
            return Ok(());
        }
        let (publish, progress) = watch::channel(ReshardProgress::default());
        let shared = Arc::clone(&self.shared);
        let task = format!("{namespace}/{name}");
        let place = key.clone();
        let entry = Entry {
            progress,
            goal: order.goal.clone(),
            ended: None,
        };
        let started = self.tasks.start(task, |cancel| {
            shared.lock().insert(key.clone(), entry.clone());
            async move { shared.work(&place, &order, &cancel, &publish).await }
        });
        if started == Err(NotStarted::Full) {
            let ended = Some((Instant::now(), Some(waits_its_turn())));
            self.shared.lock().insert(key, Entry { ended, ..entry });
        }
        started
    }

    /// Stops within a second; what is open then is finished by the next start.
    pub fn cancel(&self, (namespace, name): (&str, &str)) {
        self.tasks.cancel(&format!("{namespace}/{name}"));
    }

    /// Stops moves that have another goal: the spec has changed meanwhile.
    pub fn keep_to(&self, (namespace, name): (&str, &str), goal: &ReshardGoal) {
        let key = (namespace.to_owned(), name.to_owned());
        let differs = |entry: &Entry| entry.ended.is_none() && entry.goal.is_outdated_by(goal);
        if self.shared.lock().get(&key).is_some_and(differs) {
            self.cancel((namespace, name));
        }
    }

    /// Whether slots of the cluster are moving.
    pub fn is_moving(&self, place: (&str, &str)) -> bool {
        matches!(self.state(place), ReshardState::Moving(_))
    }

    /// How the moves of a cluster are.
    pub fn state(&self, (namespace, name): (&str, &str)) -> ReshardState {
        let clusters = self.shared.lock();
        match clusters.get(&(namespace.to_owned(), name.to_owned())) {
            Some(Entry {
                ended: None,
                progress,
                ..
            }) => ReshardState::Moving(*progress.borrow()),
            Some(Entry {
                ended: Some((_, Some(failure))),
                ..
            }) => ReshardState::Waiting(failure.clone()),
            Some(Entry {
                ended: Some((_, None)),
                ..
            })
            | None => ReshardState::Idle,
        }
    }

    /// The cluster is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.cancel((namespace, name));
        let key = (namespace.to_owned(), name.to_owned());
        self.shared.lock().remove(&key);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self, namespace: &str, name: &str, end: &TaskEnd) {
        let failure = match end {
            TaskEnd::Done => None,
            TaskEnd::Failed { message, .. } => Some(message.clone()),
            TaskEnd::Aborted => Some("the task that moves slots was aborted".to_owned()),
        };
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(entry) = self.lock().get_mut(&key) {
            entry.ended = Some((Instant::now(), failure));
        }
    }

    /// Holds the Lease while slots move, and releases it whatever happens. Boxed: the compiler cannot prove of a nested future of this size
    /// that it may change threads.
    fn work<'a>(
        &'a self,
        key: &'a Key,
        order: &'a ReshardOrder,
        cancel: &'a CancellationToken,
        publish: &'a watch::Sender<ReshardProgress>,
    ) -> BoxFuture<'a, Result<(), ReshardTaskError>> {
        let moved = async move {
            tokio::select! {
                moved = moves(order, cancel, publish) => moved,
                lost = self.renew(key, &order.holder) => Err(lost),
            }
        };
        let moved: BoxFuture<'a, Result<(), ReshardTaskError>> = moved.boxed();
        let work = async move {
            let moved = match self.hold(key, &order.holder).await {
                Ok(()) => self.leadership.while_leading(moved).await,
                Err(refused) => Ok(Err(refused)),
            };
            // Also where it could not be taken: a rollout that has just ended may have left it to these moves.
            let (namespace, name) = key;
            let released = self.leases.release(namespace, name, &order.holder).await;
            moved??;
            Ok(released?)
        };
        work.boxed()
    }

    fn hold<'a>(
        &'a self,
        (namespace, name): &'a Key,
        holder: &'a Holder,
    ) -> BoxFuture<'a, Result<(), ReshardTaskError>> {
        let hold = async move {
            match self.leases.acquire(namespace, name, holder, LEASE).await? {
                Operation::Held => Ok(()),
                Operation::HeldBy(other) => Err(ReshardTaskError::Held(other)),
            }
        };
        hold.boxed()
    }

    /// Until the Lease is another's. A failure to renew it is tried again while the promise lasts.
    fn renew<'a>(&'a self, key: &'a Key, holder: &'a Holder) -> BoxFuture<'a, ReshardTaskError> {
        let renew = async move {
            let mut renewed = Instant::now();
            loop {
                tokio::time::sleep(RENEWAL).await;
                let asked = Instant::now();
                match self.hold(key, holder).await {
                    Ok(()) => renewed = asked,
                    Err(ReshardTaskError::Api(error)) if renewed.elapsed() < LEASE / 2 => {
                        tracing::info!(%error, "the operation Lease was not renewed: trying again");
                    }
                    Err(error) => return error,
                }
            }
        };
        renew.boxed()
    }
}

fn waits_its_turn() -> String {
    format!("the slots of {MOST} other clusters move now; these move when one of them is done")
}

/// Plans and moves until nothing is left to move.
fn moves<'a>(
    order: &'a ReshardOrder,
    cancel: &'a CancellationToken,
    publish: &'a watch::Sender<ReshardProgress>,
) -> BoxFuture<'a, Result<(), ReshardTaskError>> {
    let moves = async move {
        loop {
            let tables = reshard::tables(&order.nodes).await?;
            let plan = reshard::plan(&tables, |id| order.goal.staying.contains(&id));
            if plan.is_empty() {
                let undecided = plan.undecided().map(ReshardTaskError::Undecided);
                return undecided.map_or(Ok(()), Err);
            }
            let summary = reshard::run(&plan, &order.nodes, &order.limits, cancel, publish).await?;
            tracing::info!(?summary, "slots moved");
            if summary.end == ReshardEnd::Canceled {
                return Ok(());
            }
        }
    };
    moves.boxed()
}

/// Why slots do not move.
#[derive(Debug, thiserror::Error)]
pub enum ReshardTaskError {
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Another replica leads.
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
    /// Another operation needs the slots to stay.
    #[error("slots move when {0} does not need them to stay any more")]
    Held(Holder),
    /// What is left are open slots that nothing can be done about: the first one, and why.
    #[error("{0}")]
    Undecided(String),
    /// A node failed or refused.
    #[error(transparent)]
    Reshard(#[from] ReshardError),
}

impl Classified for ReshardTaskError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Api(error) => error.class(),
            Self::NotLeader(error) => error.class(),
            Self::Held(_) | Self::Undecided(_) => ErrorClass::Transient,
            Self::Reshard(error) => error.class(),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Api(error) => error.reason(),
            Self::NotLeader(error) => error.reason(),
            Self::Held(_) => "OperationHeld",
            Self::Undecided(_) => "SlotsUndecided",
            Self::Reshard(error) => error.reason(),
        }
    }
}

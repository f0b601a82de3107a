//! The replaying side of every replica: takes units by claims, replays them as supervised tasks, reports on them.
//!
//! A slot is free until a unit is taken; as many units are at work as there are slots, over all restores together.

mod session;
mod unit;

use crate::{
    metrics::RestoreMetrics,
    plan::is_finished,
    replay::Progress,
    report::{self, End},
    share::{is_open, moves},
};
use common::{
    kubernetes::{
        call::ApiError,
        claims::{self, Taken},
        leases::Membership,
        share::Move,
        wake::Wake,
    },
    runtime::{Runtime, tasks::Tasks},
    storage::CompressionPool,
};
use crds::RedisRestore;
use kube::{Api, ResourceExt, runtime::reflector::Store};
use serde_json::Map;
use session::{Running, Session};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use unit::Order;
pub use unit::UnitError;

/// How often progress is told at most.
const REPORT_PERIOD: Duration = Duration::from_secs(2);
/// How long to wait after a report that did not arrive.
const REPORT_PAUSE: Duration = Duration::from_secs(1);
/// More reporters than restores can be at work at the same time in one replica.
const MOST_REPORTERS: usize = 256;

/// The replaying side of one replica.
pub struct Worker {
    runtime: Runtime,
    membership: Membership,
    replays: Tasks,
    reporters: Tasks,
    slots: Arc<Semaphore>,
    pool: CompressionPool,
    metrics: RestoreMetrics,
    sessions: Mutex<HashMap<String, Arc<Session>>>,
    number: AtomicU64,
}

impl Worker {
    /// A worker with this many slots. When a slot becomes free, restores with units that nobody has taken are woken.
    pub fn new(
        runtime: &Runtime,
        membership: Membership,
        metrics: RestoreMetrics,
        streams: usize,
        restores: Store<RedisRestore>,
        wake: Wake<RedisRestore>,
    ) -> Arc<Self> {
        Arc::new(Self {
            replays: runtime.tasks(streams, move |_, _| wake_waiting(&restores, &wake)),
            reporters: runtime.tasks(MOST_REPORTERS, |_, _| {}),
            slots: Arc::new(Semaphore::new(streams)),
            pool: CompressionPool::of_machine(),
            runtime: runtime.clone(),
            membership,
            metrics,
            sessions: Mutex::default(),
            number: AtomicU64::new(0),
        })
    }

    /// Takes, goes on with or stops units of a restore as it is seen now.
    pub async fn consider(self: &Arc<Self>, restore: &RedisRestore) -> Result<(), ApiError> {
        let over = restore.metadata.deletion_timestamp.is_some()
            || restore.status.as_ref().is_some_and(is_finished);
        if over && !self.sessions().contains_key(&key(restore)) {
            return Ok(());
        }
        let session = self.session(restore);
        let able = self.membership.is_alive_now() && !self.runtime.shutdown.is_cancelled();
        let free = if able {
            self.slots.available_permits()
        } else {
            0
        };
        for step in moves(restore, self.membership.name(), &session.own(), free) {
            match step {
                Move::Take(position, attempt) => {
                    self.take(restore, &session, position, attempt).await?;
                }
                // What another process began can always be gone on with: there is nothing to give up.
                Move::GoOn(position, attempt) | Move::GiveUp(position, attempt) => {
                    if let Some(permit) = self.permit().filter(|_| able) {
                        self.begin(restore, &session, position, attempt, permit);
                    }
                }
                Move::Stop(position) => session.stop(position),
            }
        }
        if session.is_idle() && (over || session.own().ended.is_empty()) {
            self.sessions().remove(&key(restore));
        }
        Ok(())
    }

    /// The object is gone: nobody wants its units any more.
    pub fn gone(&self, namespace: &str, name: &str) {
        self.sessions().retain(|_, session| {
            let same = session.namespace == namespace && session.name == name;
            if same {
                session.stop_all();
            }
            !same
        });
    }

    async fn take(
        self: &Arc<Self>,
        restore: &RedisRestore,
        session: &Arc<Session>,
        position: usize,
        attempt: i32,
    ) -> Result<(), ApiError> {
        let Some(permit) = self.permit() else {
            return Ok(());
        };
        let api = self.api(&session.namespace);
        let path = report::holding(position, "", attempt).path;
        let me = self.membership.name();
        let taken = claims::take(&api, &restore.name_any(), path, attempt, me, Map::new()).await?;
        if let Taken::Won(now) = taken {
            self.begin(&now, session, position, attempt, permit);
        }
        Ok(())
    }

    fn begin(
        self: &Arc<Self>,
        restore: &RedisRestore,
        session: &Arc<Session>,
        position: usize,
        attempt: i32,
        permit: OwnedSemaphorePermit,
    ) {
        let order = match Order::of(restore, position) {
            Ok(order) => order,
            Err(error) => {
                tracing::error!(%error, restore = restore.name_any(), position, "a unit cannot be read");
                return;
            }
        };
        let (tell, progress) = watch::channel(order.from());
        let cancel = self.runtime.shutdown.child_token();
        if session.begin(position, attempt, Running(progress), cancel.clone()) {
            self.start_reporter(session);
        }
        let name = format!(
            "replay {}/{} unit {position} attempt {attempt}",
            session.namespace, session.name
        );
        let ending = Ending {
            session: Arc::clone(session),
            position,
            attempt,
        };
        let worker = Arc::clone(self);
        let started = self.replays.start(name, move |_| async move {
            let result = worker.replay(&order, &tell, &cancel).await;
            ending.ends(&result);
            // Freed only when the end is known, so that nobody is woken for a slot that is still used.
            drop(permit);
            result.map(|_| ())
        });
        if let Err(error) = started {
            // The moved `ending` was dropped, which tells that the unit failed.
            tracing::warn!(%error, "a replay was not started");
        }
    }

    async fn replay(
        &self,
        order: &Order,
        tell: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Progress, UnitError> {
        let begun = Instant::now();
        let running = Box::pin(unit::run(self, order, tell));
        let result = cancel.run_until_cancelled(running).await;
        let result = result.unwrap_or(Err(UnitError::Cancelled));
        let written = tell.borrow().keys.saturating_sub(order.from().keys);
        self.metrics.replayed(&result, written, begun.elapsed());
        result
    }

    fn start_reporter(self: &Arc<Self>, session: &Arc<Session>) {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let name = format!("report {}/{} {number}", session.namespace, session.name);
        let (worker, session) = (Arc::clone(self), Arc::clone(session));
        let started = self.reporters.start(name, move |_| async move {
            worker.report(&session).await;
            Ok::<(), UnitError>(())
        });
        if let Err(error) = started {
            tracing::error!(%error, "a reporter was not started");
        }
    }

    /// Tells what happens in a session until nothing is left to tell. At shutdown that is soon: the replays are cancelled and
    /// their units handed back.
    async fn report(&self, session: &Session) {
        let me = self.membership.name();
        let api = self.api(&session.namespace);
        let mut next = Instant::now() + REPORT_PERIOD;
        while !session.is_told() {
            tokio::select! {
                () = session.news.notified() => {}
                () = sleep_until(next) => {}
            }
            next = Instant::now() + REPORT_PERIOD;
            let reports = session.news_of(me);
            if reports.is_empty() {
                continue;
            }
            match claims::report(&api, &session.name, reports.clone()).await {
                Ok(answer) => {
                    let lost: Vec<usize> = answer.lost.iter().map(|path| path.index).collect();
                    if !lost.is_empty() {
                        tracing::info!(restore = session.name, units = ?lost, "units are no longer ours");
                    }
                    session.told(&reports, &lost);
                }
                Err(error) => {
                    tracing::warn!(%error, "a report did not arrive");
                    sleep_until(Instant::now() + REPORT_PAUSE).await;
                }
            }
        }
    }

    fn session(&self, restore: &RedisRestore) -> Arc<Session> {
        let mut sessions = self.sessions();
        let session = sessions.entry(key(restore)).or_insert_with(|| {
            Arc::new(Session::new(
                restore.namespace().unwrap_or_default(),
                restore.name_any(),
            ))
        });
        Arc::clone(session)
    }

    fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.slots).try_acquire_owned().ok()
    }

    fn api(&self, namespace: &str) -> Api<RedisRestore> {
        Api::namespaced(self.runtime.client.clone(), namespace)
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(restore: &RedisRestore) -> String {
    restore.uid().unwrap_or_default()
}

/// Wakes the restores that have units nobody has taken.
fn wake_waiting(restores: &Store<RedisRestore>, wake: &Wake<RedisRestore>) {
    for restore in restores.state() {
        let waits = restore.status.as_ref().is_some_and(|status| {
            let free = status
                .units
                .iter()
                .any(|u| u.worker.is_empty() && is_open(u));
            free && !is_finished(status)
        });
        if waits {
            wake.object(
                &restore.namespace().unwrap_or_default(),
                &restore.name_any(),
            );
        }
    }
}

/// Tells the session how a unit ended, even if its task panics or is aborted.
struct Ending {
    session: Arc<Session>,
    position: usize,
    attempt: i32,
}

impl Ending {
    fn ends(&self, result: &Result<Progress, UnitError>) {
        let end = match result {
            Ok(_) => End::Done(()),
            Err(UnitError::Cancelled) => End::HandedBack,
            Err(error) => End::Failed(common::runtime::telemetry::chain(error)),
        };
        self.session.finish(self.position, self.attempt, end);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // Ignored where the end is known already.
        let end = End::Failed("the replay was aborted".to_owned());
        self.session.finish(self.position, self.attempt, end);
    }
}

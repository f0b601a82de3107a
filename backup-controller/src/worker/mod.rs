//! The streaming side of every replica: takes units by claims, captures them as supervised tasks, reports on them.
//!
//! A slot is free until a unit is taken; as many units are at work as there are slots, over all backups together.

mod session;
mod unit;

use crate::{
    metrics::BackupMetrics,
    report::{self, End},
    share::moves,
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
use crds::RedisBackup;
use kube::{Api, ResourceExt, runtime::reflector::Store};
use serde_json::Map;
use session::{Running, Session};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep_until},
};
use unit::Order;
pub use unit::UnitError;

/// How often progress is told at most.
const REPORT_PERIOD: Duration = Duration::from_secs(2);
/// How long to wait after a report that did not arrive.
const REPORT_PAUSE: Duration = Duration::from_secs(1);
/// More reporters than backups can be at work at the same time in one replica.
const MOST_REPORTERS: usize = 256;

/// The streaming side of one replica.
pub struct Worker {
    runtime: Runtime,
    membership: Membership,
    captures: Tasks,
    reporters: Tasks,
    slots: Arc<Semaphore>,
    pool: CompressionPool,
    metrics: BackupMetrics,
    sessions: Mutex<HashMap<String, Arc<Session>>>,
    number: AtomicU64,
}

impl Worker {
    /// A worker with this many slots. When a slot becomes free, backups with units that nobody has taken are woken.
    pub fn new(
        runtime: &Runtime,
        membership: Membership,
        metrics: BackupMetrics,
        streams: usize,
        backups: Store<RedisBackup>,
        wake: Wake<RedisBackup>,
    ) -> Arc<Self> {
        let captures = runtime.tasks(streams, move |_, _| wake_waiting(&backups, &wake));
        Arc::new(Self {
            reporters: runtime.tasks(MOST_REPORTERS, |_, _| {}),
            captures,
            slots: Arc::new(Semaphore::new(streams)),
            pool: CompressionPool::of_machine(),
            runtime: runtime.clone(),
            membership,
            metrics,
            sessions: Mutex::default(),
            number: AtomicU64::new(0),
        })
    }

    /// Takes, goes on with, gives up or stops units of a backup as it is seen now.
    pub async fn consider(self: &Arc<Self>, backup: &RedisBackup) -> Result<(), ApiError> {
        let over = backup.metadata.deletion_timestamp.is_some()
            || backup.status.as_ref().is_some_and(crate::plan::is_finished);
        if over && !self.sessions().contains_key(&key(backup)) {
            return Ok(());
        }
        let session = self.session(backup);
        let takes = self.membership.is_alive_now() && !self.runtime.shutdown.is_cancelled();
        let free = if takes {
            self.slots.available_permits()
        } else {
            0
        };
        for step in moves(backup, self.membership.name(), &session.own(), free) {
            match step {
                Move::Take(position, attempt) => {
                    self.take(backup, &session, position, attempt).await?;
                }
                Move::GoOn(position, attempt) => {
                    if let Some(permit) = self.permit() {
                        self.begin(backup, &session, position, attempt, permit);
                    }
                }
                Move::GiveUp(position, attempt) => self.give_up(backup, position, attempt).await?,
                Move::Stop(position) => session.stop(position),
            }
        }
        if session.is_idle() && (over || session.own().ended.is_empty()) {
            self.sessions().remove(&key(backup));
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
        backup: &RedisBackup,
        session: &Arc<Session>,
        position: usize,
        attempt: i32,
    ) -> Result<(), ApiError> {
        let Some(permit) = self.permit() else {
            return Ok(());
        };
        let api = self.api(backup);
        let path = report::holding(position, "", attempt).path;
        let me = self.membership.name();
        let taken = claims::take(&api, &backup.name_any(), path, attempt, me, Map::new()).await?;
        match taken {
            Taken::Won(now) => self.begin(&now, session, position, attempt, permit),
            Taken::Lost => {}
        }
        Ok(())
    }

    /// A process of this name began the unit and died: its snapshot is gone.
    async fn give_up(
        &self,
        backup: &RedisBackup,
        position: usize,
        attempt: i32,
    ) -> Result<(), ApiError> {
        let me = self.membership.name();
        let unit = common::kubernetes::claims::UnitReport {
            holding: report::holding(position, me, attempt),
            fields: Map::new(),
        };
        let end = End::Failed(format!("the controller replica {me} was restarted"));
        let unit = report::ended(unit, &end);
        claims::report(&self.api(backup), &backup.name_any(), vec![unit]).await?;
        Ok(())
    }

    fn begin(
        self: &Arc<Self>,
        backup: &RedisBackup,
        session: &Arc<Session>,
        position: usize,
        attempt: i32,
        permit: OwnedSemaphorePermit,
    ) {
        let order = match Order::of(backup, position, attempt) {
            Ok(order) => order,
            Err(error) => {
                tracing::error!(%error, backup = backup.name_any(), position, "a unit cannot be read");
                return;
            }
        };
        let (tell, progress) = watch::channel(crate::capture::CaptureProgress::default());
        let pods = Arc::new(OnceLock::new());
        let cancel = self.runtime.shutdown.child_token();
        let running = Running {
            key: order.key(),
            progress,
            pods: Arc::clone(&pods),
        };
        if session.begin(position, attempt, running, cancel.clone()) {
            self.start_reporter(session);
        }
        let name = format!(
            "capture {}/{} unit {position} attempt {attempt}",
            session.namespace, session.name
        );
        let (worker, session) = (Arc::clone(self), Arc::clone(session));
        let ending = Ending {
            session: Arc::clone(&session),
            position,
            attempt,
        };
        let started = self.captures.start(name, move |_| async move {
            let begun = Instant::now();
            let result = unit::run(&worker, &order, &pods, &tell, &session, &cancel).await;
            worker.metrics.captured(&result, begun.elapsed());
            ending.ends(&result);
            // Freed only when the end is known, so that nobody is woken for a slot that is still used.
            drop(permit);
            result.map(|_| ())
        });
        if let Err(error) = started {
            // The moved `ending` was dropped, which tells that the unit failed.
            tracing::warn!(%error, "a capture was not started");
        }
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

    /// Tells what happens in a session until nothing is left to tell. At shutdown that is soon: the captures are cancelled
    /// and their units handed back.
    async fn report(&self, session: &Session) {
        let me = self.membership.name();
        let api: Api<RedisBackup> =
            Api::namespaced(self.runtime.client.clone(), &session.namespace);
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
                        tracing::info!(backup = session.name, units = ?lost, "units are no longer ours");
                    }
                    session.told(&reports, &lost);
                }
                Err(error) => {
                    tracing::warn!(%error, "a report did not arrive");
                    next = Instant::now() + REPORT_PAUSE;
                    sleep_until(next).await;
                }
            }
        }
    }

    fn session(&self, backup: &RedisBackup) -> Arc<Session> {
        let mut sessions = self.sessions();
        let session = sessions.entry(key(backup)).or_insert_with(|| {
            Arc::new(Session::new(
                backup.namespace().unwrap_or_default(),
                backup.name_any(),
            ))
        });
        Arc::clone(session)
    }

    fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.slots).try_acquire_owned().ok()
    }

    fn api(&self, backup: &RedisBackup) -> Api<RedisBackup> {
        let namespace = backup.namespace().unwrap_or_default();
        Api::namespaced(self.runtime.client.clone(), &namespace)
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(backup: &RedisBackup) -> String {
    backup.uid().unwrap_or_default()
}

/// Wakes the backups that have units nobody has taken.
fn wake_waiting(backups: &Store<RedisBackup>, wake: &Wake<RedisBackup>) {
    for backup in backups.state() {
        let status = backup.status.as_ref();
        let waits = status.is_some_and(|status| {
            !crate::plan::is_finished(status)
                && status.shards.iter().any(|unit| unit.worker.is_empty())
        });
        if waits {
            wake.object(&backup.namespace().unwrap_or_default(), &backup.name_any());
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
    fn ends(&self, result: &Result<Box<crate::capture::CapturedShard>, UnitError>) {
        let end = match result {
            Ok(shard) => End::Done(shard.clone()),
            Err(error) if error.is_cancelled() => End::HandedBack,
            Err(error) => End::Failed(error.to_string()),
        };
        self.session.finish(self.position, self.attempt, end);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // Ignored where the end is known already.
        let end = End::Failed("the capture was aborted".to_owned());
        self.session.finish(self.position, self.attempt, end);
    }
}

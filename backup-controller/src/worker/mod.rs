//! The streaming side of every replica: takes units by claims, captures them as supervised tasks, reports on them.
//!
//! A slot is free until a unit is taken; as many units are at work as there are slots, over all backups together.

mod running;
mod unit;

use crate::{
    metrics::BackupMetrics,
    report::{self, End},
    share::{moves, wants_a_slot},
};
use common::{
    kubernetes::{
        call::ApiError,
        claims::{self, UnitReport},
        leases::Membership,
        session::Session,
        sessions::Sessions,
        share::Move,
        wake::Wake,
    },
    runtime::{Runtime, tasks::Tasks},
    storage::CompressionPool,
};
use crds::RedisBackup;
use kube::{ResourceExt, runtime::reflector::Store};
use running::Running;
use serde_json::Map;
use std::sync::{Arc, OnceLock};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use unit::Order;
pub use unit::UnitError;

/// The streaming side of one replica.
pub struct Worker {
    runtime: Runtime,
    sessions: Arc<Sessions<RedisBackup, Running>>,
    captures: Tasks,
    slots: Arc<Semaphore>,
    pool: CompressionPool,
    metrics: BackupMetrics,
}

impl Worker {
    /// A worker with this many slots. When a slot becomes free, backups with units that wait for one are woken.
    pub fn new(
        runtime: &Runtime,
        membership: Membership,
        metrics: BackupMetrics,
        streams: usize,
        backups: Store<RedisBackup>,
        wake: Wake<RedisBackup>,
    ) -> Arc<Self> {
        let me = membership.name().to_owned();
        let captures = runtime.tasks(streams, move |_, _| wake_waiting(&backups, &me, &wake));
        Arc::new(Self {
            sessions: Sessions::new(runtime, membership),
            captures,
            slots: Arc::new(Semaphore::new(streams)),
            pool: CompressionPool::of_machine(),
            runtime: runtime.clone(),
            metrics,
        })
    }

    /// Takes, goes on with, gives up or stops units of a backup as it is seen now.
    pub async fn consider(self: &Arc<Self>, backup: &RedisBackup) -> Result<(), ApiError> {
        let over = backup.metadata.deletion_timestamp.is_some()
            || backup.status.as_ref().is_some_and(crate::plan::is_finished);
        if over && !self.sessions.has(backup) {
            return Ok(());
        }
        let session = self.sessions.of(backup);
        let free = if self.sessions.may_take() {
            self.slots.available_permits()
        } else {
            0
        };
        for step in moves(backup, self.sessions.me(), &session.own(), free) {
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
            self.sessions.close(backup);
        }
        Ok(())
    }

    /// The object is gone: nobody wants its units any more.
    pub fn gone(&self, namespace: &str, name: &str) {
        self.sessions.gone(namespace, name);
    }

    async fn take(
        self: &Arc<Self>,
        backup: &RedisBackup,
        session: &Arc<Session<Running>>,
        position: usize,
        attempt: i32,
    ) -> Result<(), ApiError> {
        let Some(permit) = self.permit() else {
            return Ok(());
        };
        let path = report::holding(position, "", attempt).path;
        if let Some(now) = self.sessions.take(backup, path, attempt).await? {
            self.begin(&now, session, position, attempt, permit);
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
        let me = self.sessions.me();
        let unit = UnitReport {
            holding: report::holding(position, me, attempt),
            fields: Map::new(),
        };
        let end = End::Failed(format!("the controller replica {me} was restarted"));
        let unit = report::ended(unit, &end);
        let api = self.sessions.api(&backup.namespace().unwrap_or_default());
        claims::report(&api, &backup.name_any(), vec![unit]).await?;
        Ok(())
    }

    fn begin(
        self: &Arc<Self>,
        backup: &RedisBackup,
        session: &Arc<Session<Running>>,
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
        let running = Running {
            key: order.key(),
            progress,
            pods: Arc::clone(&pods),
        };
        let (ending, cancel) = self.sessions.begin(session, position, attempt, running);
        let name = format!(
            "capture {}/{} unit {position} attempt {attempt}",
            session.namespace, session.name
        );
        let (worker, session) = (Arc::clone(self), Arc::clone(session));
        let started = self.captures.start(name, move |_| async move {
            let begun = Instant::now();
            let result = unit::run(&worker, &order, &pods, &tell, &session, &cancel).await;
            worker.metrics.captured(&result, begun.elapsed());
            ending.ends(end_of(&result));
            // Freed only when the end is known, so that nobody is woken for a slot that is still used.
            drop(permit);
            result.map(|_| ())
        });
        if let Err(error) = started {
            // The moved `ending` was dropped, which tells that the unit failed.
            tracing::warn!(%error, "a capture was not started");
        }
    }

    fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.slots).try_acquire_owned().ok()
    }
}

/// Wakes the backups with units that wait for a slot of ours.
fn wake_waiting(backups: &Store<RedisBackup>, me: &str, wake: &Wake<RedisBackup>) {
    for backup in backups.state() {
        if wants_a_slot(&backup, me) {
            wake.object(&backup.namespace().unwrap_or_default(), &backup.name_any());
        }
    }
}

fn end_of(result: &Result<Box<crate::capture::CapturedShard>, UnitError>) -> End {
    match result {
        Ok(shard) => End::Done(shard.clone()),
        Err(error) if error.is_cancelled() => End::HandedBack,
        Err(error) => End::Failed(error.to_string()),
    }
}

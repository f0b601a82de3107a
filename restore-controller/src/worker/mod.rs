//! The replaying side of every replica: takes units by claims, replays them as supervised tasks, reports on them.
//!
//! A slot is free until a unit is taken; as many units are at work as there are slots, over all restores together.

mod running;
mod unit;

use crate::{
    metrics::RestoreMetrics,
    plan::is_finished,
    replay::Progress,
    report::{self, End, Ended},
    share::{moves, wants_a_slot},
};
use common::{
    kubernetes::{
        call::{self, ApiError},
        claims::Holding,
        fence,
        leases::Membership,
        session::Session,
        sessions::Sessions,
        share::Move,
        wake::Wake,
    },
    runtime::{Runtime, tasks::Tasks},
    storage::CompressionPool,
};
use crds::RedisRestore;
use kube::{ResourceExt, runtime::reflector::Store};
use running::Running;
use std::sync::Arc;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use unit::Order;
pub use unit::UnitError;

/// The replaying side of one replica.
pub struct Worker {
    runtime: Runtime,
    sessions: Arc<Sessions<RedisRestore, Running>>,
    replays: Tasks,
    slots: Arc<Semaphore>,
    pool: CompressionPool,
    metrics: RestoreMetrics,
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
        let me = membership.name().to_owned();
        Arc::new(Self {
            replays: runtime.tasks(streams, move |_, _| wake_waiting(&restores, &me, &wake)),
            sessions: Sessions::new(runtime, membership),
            slots: Arc::new(Semaphore::new(streams)),
            pool: CompressionPool::of_machine(),
            runtime: runtime.clone(),
            metrics,
        })
    }

    /// Takes, goes on with or stops units of a restore as it is seen now.
    pub async fn consider(self: &Arc<Self>, restore: &RedisRestore) -> Result<(), ApiError> {
        let over = restore.metadata.deletion_timestamp.is_some()
            || restore.status.as_ref().is_some_and(is_finished);
        if over && !self.sessions.has(restore) {
            return Ok(());
        }
        let session = self.sessions.of(restore);
        let able = self.sessions.may_take();
        let free = if able {
            self.slots.available_permits()
        } else {
            0
        };
        for step in moves(restore, self.sessions.me(), &session.own(), free) {
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
            self.sessions.close(restore);
        }
        Ok(())
    }

    /// The object is gone: nobody wants its units any more.
    pub fn gone(&self, namespace: &str, name: &str) {
        self.sessions.gone(namespace, name);
    }

    async fn take(
        self: &Arc<Self>,
        restore: &RedisRestore,
        session: &Arc<Session<Running>>,
        position: usize,
        attempt: i32,
    ) -> Result<(), ApiError> {
        let Some(permit) = self.permit() else {
            return Ok(());
        };
        let path = report::holding(position, "", attempt).path;
        if let Some(now) = self.sessions.take(restore, path, attempt).await? {
            self.begin(&now, session, position, attempt, permit);
        }
        Ok(())
    }

    fn begin(
        self: &Arc<Self>,
        restore: &RedisRestore,
        session: &Arc<Session<Running>>,
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
        let running = Running(progress);
        let (ending, cancel) = self.sessions.begin(session, position, attempt, running);
        let name = format!(
            "replay {}/{} unit {position} attempt {attempt}",
            session.namespace, session.name
        );
        let worker = Arc::clone(self);
        let unit = report::holding(position, self.sessions.me(), attempt);
        let started = self.replays.start(name, move |_| async move {
            let result = worker.replay(&order, &unit, &tell, &cancel).await;
            ending.ends(end_of(&result));
            // Freed only when the end is known, so that nobody is woken for a slot that is still used.
            drop(permit);
            result.map(|_| ())
        });
        if let Err(error) = started {
            // The moved `ending` was dropped, which tells that the unit failed.
            tracing::warn!(%error, "a replay was not started");
        }
    }

    /// Replays a unit while it is ours: values that are written after somebody else has finished the restore would replace
    /// what clients have written since. What a node has received already cannot be called back.
    async fn replay(
        &self,
        order: &Order,
        unit: &Holding,
        tell: &watch::Sender<Progress>,
        cancel: &CancellationToken,
    ) -> Result<Progress, UnitError> {
        let begun = Instant::now();
        let work = || async {
            let from = *tell.borrow();
            unit::run(self, &order.going_on(from), tell).await
        };
        let still_ours = || self.holds(order, unit);
        let fenced = fence::fenced(self.sessions.membership(), still_ours, work);
        let result = cancel.run_until_cancelled(Box::pin(fenced)).await;
        let result = result.flatten().unwrap_or(Err(UnitError::Cancelled));
        let written = tell.borrow().keys.saturating_sub(order.from().keys);
        self.metrics.replayed(&result, written, begun.elapsed());
        result
    }

    /// Reads whether the unit is still ours.
    async fn holds(&self, order: &Order, unit: &Holding) -> Result<bool, ApiError> {
        let api = self.sessions.api(order.namespace());
        let what = format!("get RedisRestore {}/{}", order.namespace(), order.name());
        let now = call::read_optional(what, api.get(order.name())).await?;
        Ok(now.is_some_and(|now| is_held(&now, unit)))
    }

    fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.slots).try_acquire_owned().ok()
    }
}

fn wake_waiting(restores: &Store<RedisRestore>, me: &str, wake: &Wake<RedisRestore>) {
    for restore in restores.state() {
        if wants_a_slot(&restore, me) {
            wake.object(
                &restore.namespace().unwrap_or_default(),
                &restore.name_any(),
            );
        }
    }
}

/// Whether the restore is under way and the unit is still held in this way.
fn is_held(restore: &RedisRestore, unit: &Holding) -> bool {
    let status = restore.status.as_ref();
    status.is_some_and(|status| {
        let now = status.units.get(unit.path.index);
        let same = now.is_some_and(|now| now.worker == unit.worker && now.attempt == unit.attempt);
        same && !is_finished(status)
    })
}

fn end_of(result: &Result<Progress, UnitError>) -> End {
    match result {
        Ok(_) => End::Done(Ended::Loaded),
        Err(UnitError::Cancelled) => End::HandedBack,
        Err(error) if error.is_lasting() => {
            End::Done(Ended::Refused(common::runtime::telemetry::chain(error)))
        }
        Err(error) => End::Failed(common::runtime::telemetry::chain(error)),
    }
}

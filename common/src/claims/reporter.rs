//! All units that this replica holds, by object: takes them by claims, and reports on them until every end is acknowledged.

use super::{
    ClaimPath, Taken,
    held::{End, HeldUnits, Work},
    report, take,
    unit::UnitKind,
};
use crate::{
    kubernetes::{call::ApiError, leases::Membership},
    runtime::{Runtime, tasks::Tasks},
};
use kube::{Api, ResourceExt};
use serde_json::Map;
use std::{
    collections::HashMap,
    marker::PhantomData,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// How often progress is reported at most.
const REPORT_PERIOD: Duration = Duration::from_secs(2);
/// How long to wait after a report that failed.
const REPORT_AGAIN: Duration = Duration::from_secs(1);
/// More reporters than objects can be at work at the same time in one replica.
const MOST_REPORTERS: usize = 256;

/// All units of one kind that this replica holds.
pub struct UnitReporter<U, W: Work> {
    runtime: Runtime,
    membership: Membership,
    tasks: Tasks,
    by_uid: Mutex<HashMap<String, Arc<HeldUnits<W>>>>,
    number: AtomicU64,
    kind: PhantomData<fn() -> U>,
}

impl<U: UnitKind, W: Work> UnitReporter<U, W> {
    /// No unit is held yet.
    pub fn new(runtime: &Runtime, membership: Membership) -> Arc<Self> {
        Arc::new(Self {
            tasks: runtime.tasks(MOST_REPORTERS, |_, _| {}),
            runtime: runtime.clone(),
            membership,
            by_uid: Mutex::default(),
            number: AtomicU64::new(0),
            kind: PhantomData,
        })
    }

    /// The replica's name in claims.
    pub fn me(&self) -> &str {
        self.membership.name()
    }

    /// The replica's member Lease, for [`super::fence`].
    pub fn membership(&self) -> Membership {
        self.membership.clone()
    }

    /// Whether this replica may take units: its member Lease is valid, and it does not shut down.
    pub fn may_take(&self) -> bool {
        self.membership.is_alive_now() && !self.runtime.shutdown.is_cancelled()
    }

    /// Whether a unit of the object is at work or has an end that is not acknowledged.
    pub fn holds(&self, object: &U::Object) -> bool {
        self.lock().contains_key(&uid(object))
    }

    /// The units that are held of an object.
    pub fn of(&self, object: &U::Object) -> Arc<HeldUnits<W>> {
        let new = || {
            let namespace = object.namespace().unwrap_or_default();
            Arc::new(HeldUnits::new(U::UNITS, namespace, object.name_any()))
        };
        Arc::clone(self.lock().entry(uid(object)).or_insert_with(new))
    }

    /// Forgets an object.
    pub fn forget(&self, object: &U::Object) {
        self.lock().remove(&uid(object));
    }

    /// The object was deleted: its units stop.
    pub fn deleted(&self, namespace: &str, name: &str) {
        self.lock().retain(|_, held| {
            let same = held.namespace == namespace && held.name == name;
            if same {
                held.stop_all();
            }
            !same
        });
    }

    /// Takes a free unit. The object as it is then; `None`: another replica was faster.
    pub async fn take(
        &self,
        object: &U::Object,
        path: ClaimPath,
        attempt: i32,
    ) -> Result<Option<Box<U::Object>>, ApiError> {
        let api = self.api(&object.namespace().unwrap_or_default());
        let name = object.name_any();
        let taken = take(&api, &name, path, attempt, self.me(), Map::new()).await?;
        Ok(match taken {
            Taken::Won(now) => Some(now),
            Taken::Lost => None,
        })
    }

    /// Adds work that starts now, and reports on it. Its token is cancelled with the process.
    pub fn start(
        self: &Arc<Self>,
        held: &Arc<HeldUnits<W>>,
        position: usize,
        attempt: i32,
        work: W,
    ) -> (EndGuard<W>, CancellationToken) {
        let cancel = self.runtime.shutdown.child_token();
        if held.start(position, attempt, work, cancel.clone()) {
            self.start_reporting(held);
        }
        let guard = EndGuard {
            held: Arc::clone(held),
            position,
            attempt,
        };
        (guard, cancel)
    }

    /// The API of the objects of a namespace.
    pub fn api(&self, namespace: &str) -> Api<U::Object> {
        Api::namespaced(self.runtime.client.clone(), namespace)
    }

    fn start_reporting(self: &Arc<Self>, held: &Arc<HeldUnits<W>>) {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let name = format!("report {}/{} {number}", held.namespace, held.name);
        let (reporter, held) = (Arc::clone(self), Arc::clone(held));
        let started = self.tasks.start(name, move |_| async move {
            reporter.report(&held).await;
            Ok::<(), ApiError>(())
        });
        if let Err(error) = started {
            tracing::error!(%error, "reports were not started");
        }
    }

    /// Reports until every end is acknowledged. At shutdown that is soon: the work is cancelled and the units are released.
    async fn report(&self, held: &HeldUnits<W>) {
        let api = self.api(&held.namespace);
        let mut next = Instant::now() + REPORT_PERIOD;
        while !held.is_reported() {
            tokio::select! {
                () = held.report_asked() => {}
                () = sleep_until(next) => {}
            }
            next = Instant::now() + REPORT_PERIOD;
            let reports = held.unacknowledged(self.me());
            if reports.is_empty() {
                continue;
            }
            match report(&api, &held.name, reports.clone()).await {
                Ok(reported) => {
                    let lost: Vec<usize> = reported.lost.iter().map(|path| path.index).collect();
                    if !lost.is_empty() {
                        let (namespace, name) = (&held.namespace, &held.name);
                        tracing::info!(namespace, name, units = ?lost, "claims on units were lost");
                    }
                    held.acknowledge(&reports, &lost);
                }
                Err(error) => {
                    tracing::warn!(%error, "a report failed; trying again");
                    sleep_until(Instant::now() + REPORT_AGAIN).await;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<HeldUnits<W>>>> {
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn uid<K: ResourceExt>(object: &K) -> String {
    object.uid().unwrap_or_default()
}

/// Records how a unit ended, even if its task panics or is aborted.
pub struct EndGuard<W: Work> {
    held: Arc<HeldUnits<W>>,
    position: usize,
    attempt: i32,
}

impl<W: Work> EndGuard<W> {
    /// The unit has ended.
    pub fn end(&self, end: End<W::Done>) {
        self.held.finish(self.position, self.attempt, end);
    }
}

impl<W: Work> Drop for EndGuard<W> {
    fn drop(&mut self) {
        // Ignored where the end is known already.
        self.end(End::Failed("the work was aborted".to_owned()));
    }
}

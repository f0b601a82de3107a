//! Everything this replica works on, by object: takes units by claims, and tells of them until nothing is left to tell.

use super::{
    call::ApiError,
    claims::{self, ClaimPath, Claimable, Taken},
    leases::Membership,
    session::{End, Session, Work},
};
use crate::runtime::{Runtime, tasks::Tasks};
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt};
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

/// How often progress is told at most.
const REPORT_PERIOD: Duration = Duration::from_secs(2);
/// How long to wait after a report that did not arrive.
const REPORT_PAUSE: Duration = Duration::from_secs(1);
/// More reporters than objects can be at work at the same time in one replica.
const MOST_REPORTERS: usize = 256;

/// The sessions of one replica with objects of the kind `K`.
pub struct Sessions<K, W: Work> {
    runtime: Runtime,
    membership: Membership,
    reporters: Tasks,
    by_uid: Mutex<HashMap<String, Arc<Session<W>>>>,
    number: AtomicU64,
    kind: PhantomData<fn() -> K>,
}

impl<K, W> Sessions<K, W>
where
    K: Claimable + Resource<Scope = NamespaceResourceScope>,
    W: Work + Send + 'static,
    W::Done: Send,
{
    /// None yet.
    pub fn new(runtime: &Runtime, membership: Membership) -> Arc<Self> {
        Arc::new(Self {
            reporters: runtime.tasks(MOST_REPORTERS, |_, _| {}),
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

    /// Whether others see it as alive; for [`super::fence`].
    pub fn membership(&self) -> Membership {
        self.membership.clone()
    }

    /// Whether this replica may take work: others see it as alive, and it is not about to end.
    pub fn may_take(&self) -> bool {
        self.membership.is_alive_now() && !self.runtime.shutdown.is_cancelled()
    }

    /// Whether something of the object is at work, or is still to be told.
    pub fn has(&self, object: &K) -> bool {
        self.lock().contains_key(&key(object))
    }

    /// The session with an object; a new one at the first time.
    pub fn of(&self, object: &K) -> Arc<Session<W>> {
        let new = || {
            let namespace = object.namespace().unwrap_or_default();
            Arc::new(Session::new(namespace, object.name_any()))
        };
        Arc::clone(self.lock().entry(key(object)).or_insert_with(new))
    }

    /// Forgets an object.
    pub fn close(&self, object: &K) {
        self.lock().remove(&key(object));
    }

    /// The object is gone: nobody wants its units any more.
    pub fn gone(&self, namespace: &str, name: &str) {
        self.lock().retain(|_, session| {
            let same = session.namespace == namespace && session.name == name;
            if same {
                session.stop_all();
            }
            !same
        });
    }

    /// Takes a free unit. The object as it is then; `None`: somebody else was faster.
    pub async fn take(
        &self,
        object: &K,
        path: ClaimPath,
        attempt: i32,
    ) -> Result<Option<Box<K>>, ApiError> {
        let api = self.api(&object.namespace().unwrap_or_default());
        let name = object.name_any();
        let taken = claims::take(&api, &name, path, attempt, self.me(), Map::new()).await?;
        Ok(match taken {
            Taken::Won(now) => Some(now),
            Taken::Lost => None,
        })
    }

    /// Adds work that begins now, and has it told of. Cancelled with the process.
    pub fn begin(
        self: &Arc<Self>,
        session: &Arc<Session<W>>,
        position: usize,
        attempt: i32,
        work: W,
    ) -> (Ending<W>, CancellationToken) {
        let cancel = self.runtime.shutdown.child_token();
        if session.begin(position, attempt, work, cancel.clone()) {
            self.start_reporter(session);
        }
        let ending = Ending {
            session: Arc::clone(session),
            position,
            attempt,
        };
        (ending, cancel)
    }

    /// The API of the objects of a namespace.
    pub fn api(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.runtime.client.clone(), namespace)
    }

    fn start_reporter(self: &Arc<Self>, session: &Arc<Session<W>>) {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let name = format!("report {}/{} {number}", session.namespace, session.name);
        let (all, session) = (Arc::clone(self), Arc::clone(session));
        let started = self.reporters.start(name, move |_| async move {
            all.report(&session).await;
            Ok::<(), ApiError>(())
        });
        if let Err(error) = started {
            tracing::error!(%error, "a reporter was not started");
        }
    }

    /// Tells what happens in a session until nothing is left to tell. At shutdown that is soon: the work is cancelled and the
    /// units are handed back.
    async fn report(&self, session: &Session<W>) {
        let api = self.api(&session.namespace);
        let mut next = Instant::now() + REPORT_PERIOD;
        while !session.is_told() {
            tokio::select! {
                () = session.news.notified() => {}
                () = sleep_until(next) => {}
            }
            next = Instant::now() + REPORT_PERIOD;
            let reports = session.news_of(self.me());
            if reports.is_empty() {
                continue;
            }
            match claims::report(&api, &session.name, reports.clone()).await {
                Ok(answer) => {
                    let lost: Vec<usize> = answer.lost.iter().map(|path| path.index).collect();
                    if !lost.is_empty() {
                        let (namespace, name) = (&session.namespace, &session.name);
                        tracing::info!(namespace, name, units = ?lost, "units are no longer ours");
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

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Session<W>>>> {
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key<K: ResourceExt>(object: &K) -> String {
    object.uid().unwrap_or_default()
}

/// Tells the session how a unit ended, even if its task panics or is aborted.
pub struct Ending<W: Work> {
    session: Arc<Session<W>>,
    position: usize,
    attempt: i32,
}

impl<W: Work> Ending<W> {
    /// This is how.
    pub fn ends(&self, end: End<W::Done>) {
        self.session.finish(self.position, self.attempt, end);
    }
}

impl<W: Work> Drop for Ending<W> {
    fn drop(&mut self) {
        // Ignored where the end is known already.
        self.ends(End::Failed("the work was aborted".to_owned()));
    }
}

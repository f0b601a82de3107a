//! The leader lease: one replica of a controller plans.

use super::{
    client::LeaseClient,
    record::{self, LeaseState, Observer},
    renewal,
};
use crate::{
    errors::{Classified, ErrorClass},
    kubernetes::call::ApiError,
    runtime::{Runtime, metrics::Metrics},
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, api::ObjectMeta};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Who leads, as this replica knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeadershipState {
    /// While this is in the future, this replica leads.
    pub leading_until: Option<Instant>,
    /// How many times this replica has begun to lead: work of one term does not go on in the next.
    pub term: u64,
    /// Who holds the lease, as last seen.
    pub holder: Option<String>,
}

impl LeadershipState {
    fn leads(&self, now: Instant) -> bool {
        self.leading_until.is_some_and(|until| now < until)
    }
}

/// Whether this replica leads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Leadership {
    state: watch::Receiver<LeadershipState>,
    lease: Arc<str>,
}

/// Another replica leads.
#[derive(Debug, thiserror::Error)]
#[error("Lease {lease}: this replica does not lead; another one does the work")]
pub struct NotLeader {
    lease: Arc<str>,
}

impl Classified for NotLeader {
    fn class(&self) -> ErrorClass {
        ErrorClass::Fenced
    }
    fn reason(&self) -> &'static str {
        "NotLeader"
    }
}

impl Leadership {
    /// Starts to compete for the lease `<program>` in the lease namespace. Released at shutdown, after the work has ended.
    pub fn start(runtime: &Runtime) -> Self {
        let (publish, state) = watch::channel(LeadershipState::default());
        let candidate = Candidate {
            leases: LeaseClient::renewing(
                Api::namespaced(runtime.lease_client.clone(), &runtime.lease_namespace),
                runtime.arguments.lease_duration,
            ),
            name: runtime.program.name,
            identity: Arc::clone(&runtime.identity),
            duration: runtime.arguments.lease_duration,
            observer: Observer::default(),
            held: None,
            publish,
            metrics: runtime.metrics.clone(),
        };
        runtime.keep("leader lease", |end| candidate.compete(end));
        let lease = runtime.program.name.into();
        Self { state, lease }
    }

    /// Whether this replica leads now.
    pub fn is_leader_now(&self) -> bool {
        self.state.borrow().leads(Instant::now())
    }

    /// For the step before a write that only the leader may do.
    pub fn ensure(&self) -> Result<(), NotLeader> {
        if self.is_leader_now() {
            return Ok(());
        }
        Err(self.not_leader())
    }

    /// Does `work` while this replica leads. When it ceases to lead, the work is dropped at the await it has reached, so that
    /// nothing more is written.
    pub async fn while_leading<T>(&self, work: impl Future<Output = T>) -> Result<T, NotLeader> {
        let term = {
            let state = self.state.borrow();
            state.leads(Instant::now()).then_some(state.term)
        };
        let Some(term) = term else {
            return Err(self.not_leader());
        };
        tokio::select! {
            biased;
            () = self.ended(term) => Err(self.not_leader()),
            done = work => Ok(done),
        }
    }

    /// When to look again at an object whose work was refused or dropped because this replica does not lead. Every object is enqueued
    /// when it leads again; but between the moment a promise has passed and the moment that is published, that would be missed.
    pub fn look_again(&self) -> Option<Duration> {
        let promised = self.state.borrow().leading_until.is_some();
        promised.then_some(Duration::from_secs(1))
    }

    /// Waits until the term ends: by another holder, or because its promise has passed without a renewal.
    async fn ended(&self, term: u64) {
        let mut state = self.state.clone();
        loop {
            let until = {
                let state = state.borrow_and_update();
                match state.leading_until {
                    Some(until) if state.term == term && Instant::now() < until => until,
                    Some(_) | None => return,
                }
            };
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => {}
                changed = state.changed() => if changed.is_err() {
                    return;
                }
            }
        }
    }

    fn not_leader(&self) -> NotLeader {
        NotLeader {
            lease: Arc::clone(&self.lease),
        }
    }

    /// Waits until this replica begins or ceases to lead. `false`: it will never again.
    pub async fn changed(&mut self) -> bool {
        let led = self.state.borrow_and_update().leading_until.is_some();
        self.state
            .wait_for(|state| state.leading_until.is_some() != led)
            .await
            .is_ok()
    }

    /// Follows the state, for tasks that outlive one reconcile.
    pub fn watch(&self) -> watch::Receiver<LeadershipState> {
        self.state.clone()
    }
}

struct Candidate {
    leases: LeaseClient,
    name: &'static str,
    identity: Arc<str>,
    duration: Duration,
    observer: Observer,
    /// The lease as we last wrote it, while it is ours: renewed without reading it again.
    held: Option<Lease>,
    publish: watch::Sender<LeadershipState>,
    metrics: Metrics,
}

impl Candidate {
    async fn compete(mut self, end: CancellationToken) {
        loop {
            let asked = Instant::now();
            // A try that outlasts the promise is given up, so that the loss is published in time.
            let promised = self.publish.borrow().leading_until;
            let limit = promised.map_or(self.duration, |until| until.duration_since(asked));
            let pause = match tokio::time::timeout(limit, self.attempt(asked)).await {
                Ok(Ok(holder)) => {
                    self.announce(asked, &holder);
                    renewal::pause_after_success(self.duration)
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the leader lease was not read or written; trying again");
                    renewal::pause_after_failure(self.duration, promised.is_some())
                }
                Err(_) => Duration::ZERO,
            };
            self.expire(Instant::now());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = end.cancelled() => break,
            }
        }
        self.release().await;
    }

    /// Takes or renews the lease where that is right; returns who holds it now. After a failure the lease is read again, since the
    /// write may have arrived.
    async fn attempt(&mut self, now: Instant) -> Result<String, ApiError> {
        let lease = if let Some(held) = self.held.take() {
            held
        } else {
            let found = self.leases.get(self.name).await?;
            found.unwrap_or_else(|| Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.to_string()),
                    ..ObjectMeta::default()
                },
                spec: None,
            })
        };
        if let LeaseState::Held(holder) = self.observer.look(self.name, &lease, now)
            && holder != *self.identity
        {
            return Ok(holder);
        }
        let spec = record::held(lease.spec.as_ref(), &self.identity, self.duration);
        let wanted = Lease {
            metadata: lease.metadata,
            spec: Some(spec),
        };
        self.held = Some(self.leases.store(&wanted).await?);
        Ok(self.identity.to_string())
    }

    fn announce(&self, asked: Instant, holder: &str) {
        let now = Instant::now();
        let until = renewal::promised_until(asked, self.duration);
        let leads = *holder == *self.identity && now < until;
        let mut changed = false;
        self.publish.send_modify(|state| {
            changed = state.leads(now) != leads || state.holder.as_deref() != Some(holder);
            let begins = leads && !state.leads(now);
            *state = LeadershipState {
                leading_until: leads.then_some(until),
                term: state.term + u64::from(begins),
                holder: Some(holder.to_string()),
            };
        });
        if changed {
            tracing::info!(lease = self.name, holder, leads, "leadership");
        }
        self.metrics.leading(leads);
    }

    /// The promise has passed without a renewal.
    fn expire(&self, now: Instant) {
        let expired = self.publish.send_if_modified(|state| {
            let expired = state.leading_until.is_some() && !state.leads(now);
            if expired {
                state.leading_until = None;
            }
            expired
        });
        if expired {
            tracing::warn!(
                lease = self.name,
                "leadership lost: the lease was not renewed in time"
            );
            self.metrics.leading(false);
        }
    }

    async fn release(&mut self) {
        self.publish.send_modify(|state| {
            *state = LeadershipState {
                term: state.term,
                ..LeadershipState::default()
            };
        });
        self.metrics.leading(false);
        let Some(lease) = self.held.take() else {
            return;
        };
        let spec = record::released(&lease.spec.unwrap_or_default());
        let wanted = Lease {
            metadata: lease.metadata,
            spec: Some(spec),
        };
        match self.leases.store(&wanted).await {
            Ok(_) => tracing::info!(lease = self.name, "leader lease released"),
            Err(error) => tracing::warn!(%error, "the leader lease was not released; it expires"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leadership(state: LeadershipState) -> (watch::Sender<LeadershipState>, Leadership) {
        let (publish, state) = watch::channel(state);
        let lease = "test".into();
        (publish, Leadership { state, lease })
    }

    fn leading(term: u64, left: Duration) -> LeadershipState {
        LeadershipState {
            leading_until: Some(Instant::now() + left),
            term,
            holder: Some("a".into()),
        }
    }

    #[tokio::test]
    async fn work_is_dropped_when_the_promise_passes() {
        let (_publish, leadership) = leadership(leading(1, Duration::from_millis(30)));
        let endless = leadership.while_leading(std::future::pending::<()>());
        assert!(endless.await.is_err());
        assert!(leadership.while_leading(async {}).await.is_err());
    }

    #[test]
    fn dropped_work_is_checked_again_until_the_end_is_published() {
        let (publish, leadership) = leadership(leading(1, Duration::ZERO));
        assert!(leadership.ensure().is_err());
        assert!(leadership.look_again().is_some());
        publish.send_replace(LeadershipState::default());
        assert_eq!(leadership.look_again(), None);
    }

    #[tokio::test]
    async fn work_goes_on_over_renewals_and_not_into_another_term() {
        let (publish, leadership) = leadership(leading(1, Duration::from_mins(1)));
        let work = tokio::spawn({
            let leadership = leadership.clone();
            async move { leadership.while_leading(std::future::pending::<()>()).await }
        });
        tokio::task::yield_now().await;
        publish.send_replace(leading(1, Duration::from_mins(2)));
        tokio::task::yield_now().await;
        assert!(!work.is_finished());
        publish.send_replace(leading(2, Duration::from_mins(3)));
        assert!(work.await.unwrap().is_err());
        assert_eq!(leadership.while_leading(async { 7 }).await.unwrap(), 7);
    }
}

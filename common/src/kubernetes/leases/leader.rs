//! The leader lease: one replica of a controller plans.

use super::record::{self, Observer, Standing};
use crate::{
    kubernetes::{
        call::{self, ApiError},
        errors::{Classified, ErrorClass},
    },
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
    /// Who holds the lease, as last seen.
    pub holder: Option<String>,
}

/// Whether this replica leads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Leadership {
    state: watch::Receiver<LeadershipState>,
    lease: Arc<str>,
}

/// Another replica leads.
#[derive(Debug, thiserror::Error)]
#[error("lease {lease}: this replica does not lead (any more)")]
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
    /// Starts to compete for the lease `<program>` in the lease namespace. Given back at shutdown, after the work has ended.
    pub fn start(runtime: &Runtime) -> Self {
        let (publish, state) = watch::channel(LeadershipState::default());
        let candidate = Candidate {
            api: Api::namespaced(runtime.client.clone(), &runtime.lease_namespace),
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
        self.state
            .borrow()
            .leading_until
            .is_some_and(|until| Instant::now() < until)
    }

    /// For the step before a write that only the leader may do.
    pub fn ensure(&self) -> Result<(), NotLeader> {
        if self.is_leader_now() {
            return Ok(());
        }
        Err(NotLeader {
            lease: Arc::clone(&self.lease),
        })
    }

    /// Waits until this replica begins or ceases to lead. `false`: it will never again.
    pub async fn changed(&mut self) -> bool {
        let led = self.state.borrow_and_update().leading_until.is_some();
        self.state
            .wait_for(|state| state.leading_until.is_some() != led)
            .await
            .is_ok()
    }

    /// The channel.
    pub fn watch(&self) -> watch::Receiver<LeadershipState> {
        self.state.clone()
    }
}

struct Candidate {
    api: Api<Lease>,
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
            // A renewal that takes longer than what was promised is given up, so that the loss is told in time.
            let promised = self.publish.borrow().leading_until;
            let limit = promised.map_or(call::WRITE_TIMEOUT, |until| until.duration_since(asked));
            let pause = match tokio::time::timeout(limit, self.attempt(asked)).await {
                Ok(Ok(holder)) => {
                    self.announce(asked, &holder);
                    self.duration / 3
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the leader lease cannot be read or written now");
                    (self.duration / 6).min(Duration::from_secs(2))
                }
                Err(_) => Duration::ZERO,
            };
            self.expire(Instant::now());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = end.cancelled() => break,
            }
        }
        self.vacate().await;
    }

    /// Takes or renews the lease where that is right; returns who holds it now.
    async fn attempt(&mut self, now: Instant) -> Result<String, ApiError> {
        let lease = if let Some(held) = self.held.take() {
            held
        } else {
            let what = format!("get Lease {}", self.name);
            let found = call::read_optional(what, self.api.get(self.name)).await?;
            found.unwrap_or_else(|| Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.to_string()),
                    ..ObjectMeta::default()
                },
                spec: None,
            })
        };
        if let Standing::Held(holder) = self.observer.look(self.name, &lease, now)
            && holder != *self.identity
        {
            return Ok(holder);
        }
        let spec = record::held(lease.spec.as_ref(), &self.identity, self.duration);
        let wanted = Lease {
            metadata: lease.metadata,
            spec: Some(spec),
        };
        self.held = Some(record::store(&self.api, &wanted).await?);
        Ok(self.identity.to_string())
    }

    /// Others take over when they have seen no change for the whole duration; that begins after `asked`. A tenth is left for
    /// clocks that run at different speeds and for writes that are under way.
    fn announce(&self, asked: Instant, holder: &str) {
        let until = asked + self.duration * 9 / 10;
        let leads = *holder == *self.identity && until > Instant::now();
        let before = self.publish.send_replace(LeadershipState {
            leading_until: leads.then_some(until),
            holder: Some(holder.to_string()),
        });
        if before.leading_until.is_some() != leads || before.holder.as_deref() != Some(holder) {
            tracing::info!(lease = self.name, holder, leads, "leadership");
        }
        self.metrics.leading(leads);
    }

    /// What was promised has passed without a renewal: says so.
    fn expire(&self, now: Instant) {
        let expired = self.publish.send_if_modified(|state| {
            let expired = state.leading_until.is_some_and(|until| until <= now);
            if expired {
                state.leading_until = None;
            }
            expired
        });
        if expired {
            tracing::warn!(
                lease = self.name,
                "leadership lost: the lease could not be renewed in time"
            );
            self.metrics.leading(false);
        }
    }

    async fn vacate(&mut self) {
        self.publish.send_replace(LeadershipState::default());
        self.metrics.leading(false);
        let Some(lease) = self.held.take() else {
            return;
        };
        let spec = record::vacated(&lease.spec.unwrap_or_default());
        let wanted = Lease {
            metadata: lease.metadata,
            spec: Some(spec),
        };
        match record::store(&self.api, &wanted).await {
            Ok(_) => tracing::info!(lease = self.name, "leader lease given back"),
            Err(error) => tracing::warn!(%error, "the leader lease was not given back; it expires"),
        }
    }
}

//! Member leases: which replicas of a controller live.

use super::{
    client::LeaseClient,
    record::{self, LeaseState, Observer},
    renewal,
};
use crate::{
    kubernetes::call::{ApiError, READ_TIMEOUT},
    runtime::Runtime,
};
use crds::LABEL_MEMBER_OF;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, ResourceExt, api::ObjectMeta};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

/// How long the list of living replicas is good for.
const LIST_IS_FRESH: Duration = Duration::from_secs(3);

/// This replica's own member lease, renewed in the background, deleted at shutdown after the work has ended.
#[derive(Clone, Debug)]
pub struct Membership {
    name: Arc<str>,
    alive: watch::Receiver<Option<Alive>>,
}

/// For how long others see this replica as alive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alive {
    until: Instant,
    /// How many times it was not renewed in time.
    lapses: u64,
}

impl Membership {
    /// Starts to renew the lease `<program>-<identity>`.
    pub fn start(runtime: &Runtime) -> Self {
        let (publish, alive) = watch::channel(None);
        let name: Arc<str> = member_name(runtime.program.name, &runtime.identity).into();
        let member = Member {
            leases: runtime_leases(runtime),
            name: Arc::clone(&name),
            program: runtime.program.name,
            duration: runtime.arguments.lease_duration,
            held: None,
            publish,
        };
        runtime.keep("member lease", |end| member.live(end));
        Self { name, alive }
    }

    /// The replica's name: what goes into a claim's `worker`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether others see this replica as alive. Not before its lease is first written; and when it could not be renewed, its claims
    /// may have been freed: take none, and learn from the next report what was lost.
    pub fn is_alive_now(&self) -> bool {
        self.lapses().is_some()
    }

    /// How many times others may have taken this replica for dead; `None`: they may do so now.
    pub(crate) fn lapses(&self) -> Option<u64> {
        let alive = (*self.alive.borrow())?;
        (Instant::now() < alive.until).then_some(alive.lapses)
    }

    /// The lease was written.
    pub(crate) fn publish(to: &watch::Sender<Option<Alive>>, until: Instant) {
        to.send_modify(|alive| {
            let missed = |alive: &Alive| u64::from(alive.until <= Instant::now());
            let lapses = alive.as_ref().map_or(0, |last| last.lapses + missed(last));
            *alive = Some(Alive { until, lapses });
        });
    }

    /// One whose lease a test writes.
    #[cfg(test)]
    pub(crate) fn of(name: &str, alive: watch::Receiver<Option<Alive>>) -> Self {
        let name = name.into();
        Self { name, alive }
    }

    /// Waits for the next time the lease is written.
    pub(crate) async fn renewed(&mut self) -> bool {
        self.alive.changed().await.is_ok()
    }

    /// Waits until the lease is first written. `false`: it will never be.
    pub async fn joined(&mut self) -> bool {
        self.alive.wait_for(Option::is_some).await.is_ok()
    }
}

/// Pods are named after their Deployment, so the prefix is mostly there already.
fn member_name(program: &str, identity: &str) -> String {
    let prefix = format!("{program}-");
    if identity.starts_with(&prefix) {
        return identity.to_string();
    }
    prefix + identity
}

fn runtime_leases(runtime: &Runtime) -> LeaseClient {
    let api = Api::namespaced(runtime.lease_client.clone(), &runtime.lease_namespace);
    LeaseClient::renewing(api, runtime.arguments.lease_duration)
}

struct Member {
    leases: LeaseClient,
    name: Arc<str>,
    program: &'static str,
    duration: Duration,
    held: Option<Lease>,
    publish: watch::Sender<Option<Alive>>,
}

impl Member {
    async fn live(mut self, end: CancellationToken) {
        loop {
            let asked = Instant::now();
            let pause = match self.renew().await {
                Ok(lease) => {
                    self.held = Some(lease);
                    let until = renewal::promised_until(asked, self.duration);
                    Membership::publish(&self.publish, until);
                    renewal::pause_after_success(self.duration)
                }
                Err(error) => {
                    tracing::warn!(%error, "the member lease was not renewed; trying again");
                    let promised = self
                        .publish
                        .borrow()
                        .is_some_and(|alive| asked < alive.until);
                    renewal::pause_after_failure(self.duration, promised)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = end.cancelled() => break,
            }
        }
        self.leave().await;
    }

    /// What was written last is renewed without a read; after a failure it is read again, since the write may have arrived.
    async fn renew(&mut self) -> Result<Lease, ApiError> {
        let lease = if let Some(held) = self.held.take() {
            held
        } else {
            let found = self.leases.get(&self.name).await?;
            found.unwrap_or_else(|| self.new_lease())
        };
        let wanted = Lease {
            spec: Some(record::held(lease.spec.as_ref(), &self.name, self.duration)),
            metadata: lease.metadata,
        };
        self.leases.store(&wanted).await
    }

    fn new_lease(&self) -> Lease {
        let label = (LABEL_MEMBER_OF.to_string(), self.program.to_string());
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.to_string()),
                labels: Some(BTreeMap::from([label])),
                ..ObjectMeta::default()
            },
            spec: None,
        }
    }

    async fn leave(&self) {
        self.publish.send_replace(None);
        if let Err(error) = self.leases.delete_by_name(&self.name).await {
            tracing::warn!(%error, "the member lease was not deleted; it expires");
        }
    }
}

/// All replicas of this controller, as the planner sees them.
pub struct Members {
    leases: LeaseClient,
    selector: String,
    observer: Mutex<Observer>,
    listed: Mutex<Option<(Instant, BTreeSet<String>)>>,
}

impl Members {
    /// The replicas of the running program. One instance in each controller: it remembers since when each has been unresponsive.
    pub fn new(runtime: &Runtime) -> Self {
        Self {
            leases: LeaseClient::new(
                Api::namespaced(runtime.client.clone(), &runtime.lease_namespace),
                READ_TIMEOUT,
            ),
            selector: format!("{LABEL_MEMBER_OF}={}", runtime.program.name),
            observer: Mutex::default(),
            listed: Mutex::default(),
        }
    }

    /// [`Self::live`], from a list that is some seconds old if it has all of `named`. A list that lacks one of them says
    /// nothing about it: the replica may have joined since.
    pub async fn living<'a>(
        &self,
        named: impl IntoIterator<Item = &'a str>,
    ) -> Result<BTreeSet<String>, ApiError> {
        let mut listed = self.listed.lock().await;
        if let Some((at, live)) = listed.as_ref()
            && at.elapsed() < LIST_IS_FRESH
            && named.into_iter().all(|name| live.contains(name))
        {
            return Ok(live.clone());
        }
        let live = self.live().await?;
        *listed = Some((Instant::now(), live.clone()));
        Ok(live)
    }

    /// Names of the replicas that live: their lease has changed within its duration on our own clock. One API read. A replica
    /// that is seen for the first time counts as alive; the lease of one that died long ago is deleted.
    pub async fn live(&self) -> Result<BTreeSet<String>, ApiError> {
        let leases = self.leases.list(&self.selector).await?;
        let now = Instant::now();
        let mut observer = self.observer.lock().await;
        observer.retain(|name| leases.iter().any(|lease| lease.name_any() == name));
        let mut live = BTreeSet::new();
        let mut long_dead = Vec::new();
        for lease in &leases {
            let name = lease.name_any();
            if let LeaseState::Held(_) = observer.look(&name, lease, now) {
                live.insert(name);
            } else if observer.unchanged_for(&name, now) > record::duration(lease) * 10 {
                long_dead.push(lease);
            }
        }
        drop(observer);
        for lease in long_dead {
            if let Err(error) = self.leases.delete(lease).await {
                tracing::debug!(%error, "the lease of a dead replica was not deleted; trying again later");
            }
        }
        Ok(live)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_named_once() {
        assert_eq!(
            member_name("backup-controller", "backup-controller-5d9-x7"),
            "backup-controller-5d9-x7"
        );
        assert_eq!(
            member_name("backup-controller", "laptop-1f"),
            "backup-controller-laptop-1f"
        );
    }
}

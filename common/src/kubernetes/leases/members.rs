//! Member leases: which replicas of a controller live.

use super::record::{self, Observer, Standing};
use crate::{
    kubernetes::call::{self, ApiError},
    runtime::Runtime,
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, Preconditions},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

/// Label of a member lease: whose member.
pub const LABEL_MEMBER_OF: &str = "redis.danieldorado.github.io/member-of";
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
pub(in crate::kubernetes) struct Alive {
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
            api: Api::namespaced(runtime.client.clone(), &runtime.lease_namespace),
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
    pub(in crate::kubernetes) fn lapses(&self) -> Option<u64> {
        let alive = (*self.alive.borrow())?;
        (Instant::now() < alive.until).then_some(alive.lapses)
    }

    /// The lease was written.
    pub(in crate::kubernetes) fn publish(to: &watch::Sender<Option<Alive>>, until: Instant) {
        to.send_modify(|alive| {
            let missed = |alive: &Alive| u64::from(alive.until <= Instant::now());
            let lapses = alive.as_ref().map_or(0, |last| last.lapses + missed(last));
            *alive = Some(Alive { until, lapses });
        });
    }

    /// One whose lease a test writes.
    #[cfg(test)]
    pub(in crate::kubernetes) fn of(name: &str, alive: watch::Receiver<Option<Alive>>) -> Self {
        let name = name.into();
        Self { name, alive }
    }

    /// Waits for the next time the lease is written.
    pub(in crate::kubernetes) async fn renewed(&mut self) -> bool {
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

struct Member {
    api: Api<Lease>,
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
                    Membership::publish(&self.publish, asked + self.duration * 9 / 10);
                    self.duration / 3
                }
                Err(error) => {
                    tracing::warn!(%error, "the member lease cannot be written now");
                    (self.duration / 6).min(Duration::from_secs(2))
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = end.cancelled() => break,
            }
        }
        self.leave().await;
    }

    async fn renew(&mut self) -> Result<Lease, ApiError> {
        let lease = if let Some(held) = self.held.take() {
            held
        } else {
            let what = format!("get Lease {}", self.name);
            let found = call::read_optional(what, self.api.get(&self.name)).await?;
            found.unwrap_or_else(|| self.new_lease())
        };
        let wanted = Lease {
            spec: Some(record::held(lease.spec.as_ref(), &self.name, self.duration)),
            metadata: lease.metadata,
        };
        record::store(&self.api, &wanted).await
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
        let what = format!("delete Lease {}", self.name);
        let parameters = DeleteParams::default();
        match call::write(what, self.api.delete(&self.name, &parameters)).await {
            Ok(_) | Err(ApiError::NotFound { .. }) => {}
            Err(error) => tracing::warn!(%error, "the member lease was not given back; it expires"),
        }
    }
}

/// All replicas of this controller, as the planner sees them.
pub struct Members {
    api: Api<Lease>,
    selector: String,
    observer: Mutex<Observer>,
    listed: Mutex<Option<(Instant, BTreeSet<String>)>>,
}

impl Members {
    /// The replicas of the running program. One instance in each controller: it remembers since when each has been silent.
    pub fn new(runtime: &Runtime) -> Self {
        Self {
            api: Api::namespaced(runtime.client.clone(), &runtime.lease_namespace),
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
        let parameters = ListParams::default().labels(&self.selector);
        let leases = call::read("list member Leases", self.api.list(&parameters)).await?;
        let now = Instant::now();
        let mut observer = self.observer.lock().await;
        observer.retain(|name| leases.items.iter().any(|l| l.name_any() == name));
        let mut live = BTreeSet::new();
        let mut long_dead = Vec::new();
        for lease in &leases.items {
            let name = lease.name_any();
            if let Standing::Held(_) = observer.look(&name, lease, now) {
                live.insert(name);
            } else if observer.unchanged_for(&name, now) > record::duration(lease) * 10 {
                long_dead.push(lease);
            }
        }
        drop(observer);
        for lease in long_dead {
            self.bury(lease).await;
        }
        Ok(live)
    }

    async fn bury(&self, lease: &Lease) {
        let name = lease.name_any();
        let parameters = DeleteParams::default().preconditions(Preconditions {
            uid: lease.uid(),
            resource_version: lease.resource_version(),
        });
        let what = format!("delete Lease {name}");
        if let Err(error) = call::write(what, self.api.delete(&name, &parameters)).await {
            tracing::debug!(%error, "the lease of a dead replica stays for now");
        }
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

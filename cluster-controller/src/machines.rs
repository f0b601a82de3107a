//! Reads Kubernetes nodes: those of lost primaries while the majority of the primaries is lost, and the one that a primary is to be handed
//! over to. Each seldom.
//!
//! A read and no watch: the controller needs no other node, and an installation for one namespace may not read nodes at all.

use crate::fencing::MachineState;
use common::{errors::Classified, kubernetes::call};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// How long an answer is good for.
const FRESH: Duration = Duration::from_secs(2);
/// All reads of a reconcile together. Of the rest nothing is known until the next one.
const LONGEST: Duration = Duration::from_secs(10);
/// Nodes read at the same time.
const CONCURRENCY: usize = 8;

/// What is known of Kubernetes nodes.
pub struct Machines {
    client: Client,
    known: Mutex<HashMap<String, (Instant, Machine)>>,
}

/// What was read of a Kubernetes node.
#[derive(Clone, Debug)]
struct Machine {
    state: MachineState,
    /// Whether it takes no new pods (`kubectl cordon`): it is about to be drained. Not where it could not be read.
    cordoned: bool,
}

impl Machines {
    /// Nothing is known.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            known: Mutex::default(),
        }
    }

    /// The states of these nodes.
    pub async fn states(&self, names: &BTreeSet<String>) -> BTreeMap<String, MachineState> {
        let machines = self.machines(names).await.into_iter();
        machines.map(|(name, one)| (name, one.state)).collect()
    }

    /// Whether this node is cordoned.
    pub async fn is_cordoned(&self, name: &str) -> bool {
        let machines = self.machines(&BTreeSet::from([name.to_owned()])).await;
        machines.values().any(|one| one.cordoned)
    }

    async fn machines(&self, names: &BTreeSet<String>) -> BTreeMap<String, Machine> {
        let due = self.due(names, Instant::now());
        let read: Vec<(String, Machine)> = stream::iter(due)
            .map(|name| async move {
                let machine = self.read(&name).await;
                (name, machine)
            })
            .buffer_unordered(CONCURRENCY)
            .take_until(sleep(LONGEST))
            .collect()
            .await;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        known.retain(|_, (at, _)| now.saturating_duration_since(*at) < FRESH);
        for (name, machine) in read {
            known.insert(name, (now, machine));
        }
        names
            .iter()
            .filter_map(|name| Some((name.clone(), known.get(name)?.1.clone())))
            .collect()
    }

    /// All that are asked for: of some alone it would stay unknown whether the majority can return. They are as many as primaries are lost.
    fn due(&self, names: &BTreeSet<String>, now: Instant) -> Vec<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = |name: &&String| {
            let known = known.get(*name);
            known.is_some_and(|(at, _)| now.saturating_duration_since(*at) < FRESH)
        };
        names
            .iter()
            .filter(|name| !is_fresh(name))
            .cloned()
            .collect()
    }

    async fn read(&self, name: &str) -> Machine {
        let api: Api<Node> = Api::all(self.client.clone());
        match call::read_optional(format!("get Node {name}"), api.get(name)).await {
            Ok(node) => Machine {
                state: MachineState::of(node.as_ref()),
                cordoned: node.is_some_and(|node| takes_no_pods(&node)),
            },
            Err(error) => {
                tracing::debug!(%error, "a Kubernetes node was not read");
                Machine {
                    state: MachineState::Unknown(error.reason().to_owned()),
                    cordoned: false,
                }
            }
        }
    }
}

fn takes_no_pods(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    spec.is_some_and(|spec| spec.unschedulable == Some(true))
}

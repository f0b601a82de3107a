//! What the controller is doing to a cluster that serves: for the status. Pure.

use crate::rollout::{Rollout, RolloutStep};
use common::sentence::names;
use crds::OperationKind;

/// A change of the running cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What is done.
    pub kind: OperationKind,
    /// Pods that are done.
    pub done: usize,
    /// Pods in all.
    pub total: usize,
    /// What is done next; none where the cluster has to be healthy first.
    pub next: Option<String>,
}

impl Operation {
    /// A rollout, of so many pods in all. `holder`: who needs the pods to stay as they are.
    pub fn of_rollout(rollout: &Rollout, total: usize, holder: Option<&str>) -> Option<Self> {
        if !rollout.is_under_way() {
            return None;
        }
        let next = match (&rollout.next, holder) {
            (RolloutStep::None, _) => None,
            (_, Some(holder)) => Some(format!(
                "waiting for {holder}, which needs the pods to stay"
            )),
            (RolloutStep::Replace(pods), None) => {
                let pods: Vec<&str> = pods.iter().map(|pod| pod.pod.as_str()).collect();
                Some(format!("replacing {}", names("pod", &pods)))
            }
            (RolloutStep::HandOver(step), None) => Some(step.reason.clone()),
            (RolloutStep::Refused { .. }, None) => None,
        };
        Some(Self {
            kind: OperationKind::Update,
            done: total.saturating_sub(rollout.outdated.len()),
            total,
            next,
        })
    }

    /// The progress, in words.
    pub fn progress(&self) -> String {
        let Self { done, total, .. } = self;
        match self.kind {
            OperationKind::Update => format!("{done} of {total} pods have the wanted template"),
        }
    }
}

//! The serving condition of the pods, their readiness gate: whether each node serves, as it reports itself. Pure.
//!
//! A kubelet knows only whether the port is open: asking the server by a program that it starts in the container every two seconds
//! cost 65 millicores a pod. The controller asks every node in each reconcile anyway.

use crate::{
    observe::Observed,
    pod_patch::{PodChange, PodPatch},
    pods::{
        NOT_ANSWERING, SCRIPT_RUNNING, containers_ready, has_serving_gate, is_terminating, serving,
        started,
    },
    redis::member::{Answer, Member, Report},
};
use common::cluster::topology::{ClusterNode, Flag, NodeAddress};
use crds::CONDITION_SERVING;
use k8s_openapi::{
    api::core::v1::{Pod, PodCondition},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use std::{collections::HashSet, time::Duration};

/// Nothing is written about a new pod that does not serve for so long after its start: to a kubelet a missing condition is as good as
/// False, and while a cluster forms every write counts.
const NEW: Duration = Duration::from_secs(30);

/// Whether a node serves, and what it lacks if it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeReadiness {
    /// Its data is loaded, and it is a primary with slots or a replica that is linked to its primary.
    Serving,
    /// It loads its data.
    Loading,
    /// A replica without a link to its primary.
    NotLinked,
    /// A primary without slots holds nothing: counted as ready, it would allow the eviction of the node that it is yet to copy.
    NoSlots,
    /// The server at its address belongs to another cluster.
    Foreign,
    /// It runs a script or a function, and refuses everything else until that ends.
    Busy,
    /// There is no answer from its server.
    NotAnswering,
}

impl NodeReadiness {
    fn of(answer: &Answer) -> Self {
        match answer {
            Answer::Report(report) => Self::of_report(report),
            Answer::Loading => Self::Loading,
            Answer::Foreign(_) => Self::Foreign,
            Answer::Busy => Self::Busy,
            Answer::Absent(_) | Answer::Unresponsive(_) => Self::NotAnswering,
        }
    }

    fn of_report(report: &Report) -> Self {
        match &report.replication.upstream {
            Some(link) if link.up => Self::Serving,
            Some(_) => Self::NotLinked,
            None if report.own().slots.is_empty() => Self::NoSlots,
            None => Self::Serving,
        }
    }

    fn status(self) -> &'static str {
        if self == Self::Serving {
            "True"
        } else {
            "False"
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Serving => "Serving",
            Self::Loading => "Loading",
            Self::NotLinked => "NotLinked",
            Self::NoSlots => "NoSlots",
            Self::Foreign => "ForeignNode",
            Self::Busy => SCRIPT_RUNNING,
            Self::NotAnswering => NOT_ANSWERING,
        }
    }

    fn message(self) -> &'static str {
        match self {
            Self::Serving => "a primary with slots, or a replica that is linked to its primary",
            Self::Loading => "the server loads its data",
            Self::NotLinked => "the replica is not linked to its primary",
            Self::NoSlots => "the server is a primary without slots: it holds no data yet",
            Self::Foreign => "the server at the pod's address belongs to another cluster",
            Self::Busy => {
                "the server is busy running a script or function: it answers BUSY to everything else"
            }
            Self::NotAnswering => "the server does not answer the cluster-controller",
        }
    }
}

/// Whether a node that answers so serves.
pub fn serves(answer: &Answer) -> bool {
    NodeReadiness::of(answer) == NodeReadiness::Serving
}

/// Whether a node that answers does not serve yet: the moment when it does raises no event in Kubernetes.
pub fn is_awaited(members: &[Member]) -> bool {
    let mut found = members.iter().map(|one| NodeReadiness::of(&one.answer));
    found.any(|one| !matches!(one, NodeReadiness::Serving | NodeReadiness::NotAnswering))
}

/// Pods whose condition differs from what was seen.
pub fn changes(observed: &Observed, now: Timestamp) -> Vec<PodPatch> {
    let failed = failed(&observed.members);
    let members = observed.members.iter();
    members
        .filter_map(|member| {
            let pod = observed.pods.get(&member.expected.pod)?.clone();
            let address = member.expected.address;
            let has_failed = address.is_some_and(|address| failed.contains(&address));
            let change = PodChange::Serving(change(&pod, member, has_failed, now)?);
            Some(PodPatch { pod, change })
        })
        .collect()
}

/// The condition to write, if one has to be. `has_failed`: the other nodes have agreed on that.
fn change(pod: &Pod, member: &Member, has_failed: bool, now: Timestamp) -> Option<PodCondition> {
    if !has_serving_gate(pod) || is_terminating(pod) {
        return None;
    }
    let before = serving(pod);
    let found = NodeReadiness::of(&member.answer);
    let differs = match before {
        None => found == NodeReadiness::Serving || has_waited(pod, now),
        Some(before) => {
            before.status != found.status() || before.reason.as_deref() != Some(found.reason())
        }
    };
    if !differs || (found == NodeReadiness::NotAnswering && stays(pod, member, has_failed)) {
        return None;
    }
    let since = match before {
        Some(before) if before.status == found.status() => before.last_transition_time.clone(),
        // It has not served yet: its gate has not been closed now.
        None if found != NodeReadiness::Serving => pod.metadata.creation_timestamp.clone(),
        Some(_) | None => None,
    };
    Some(PodCondition {
        type_: CONDITION_SERVING.to_owned(),
        status: found.status().to_owned(),
        reason: Some(found.reason().to_owned()),
        message: Some(found.message().to_owned()),
        last_transition_time: Some(since.unwrap_or(Time(now))),
        ..PodCondition::default()
    })
}

/// Whether the condition stays as it is although there is no answer. What a node that did not serve has said last stands. One that served
/// is ready until a second witness says otherwise: its kubelet, or the nodes, whose majority has to agree before one of them lists it
/// as failed. Without that, a controller that is cut off from the pods would take every one of them out of the Services.
fn stays(pod: &Pod, member: &Member, has_failed: bool) -> bool {
    let is_unready = serving(pod).is_none_or(|before| before.status != "True");
    let doubtful = matches!(member.answer, Answer::Unresponsive(_));
    is_unready || (doubtful && containers_ready(pod) && !has_failed)
}

/// The addresses of nodes that an answering node lists as failed, and none as reachable.
fn failed(members: &[Member]) -> HashSet<NodeAddress> {
    let listed = |wanted: fn(&ClusterNode) -> bool| -> HashSet<NodeAddress> {
        let reports = members.iter().filter_map(Member::report);
        let nodes = reports.flat_map(|report| report.view.others());
        let nodes = nodes.filter(|node| wanted(node));
        nodes.filter_map(|node| node.address).collect()
    };
    let failed = listed(|node| node.flags.has(Flag::Fail));
    let reachable = listed(|node| node.linked && !node.is_failing());
    failed.difference(&reachable).copied().collect()
}

fn has_waited(pod: &Pod, now: Timestamp) -> bool {
    let over = |since: Timestamp| now.duration_since(since).unsigned_abs() >= NEW;
    started(pod).is_some_and(|since| now > since && over(since))
}

#[cfg(test)]
mod tests;

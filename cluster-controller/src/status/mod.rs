//! The status, computed from what was seen: a pure function. What changes from second to second is not in it, so that an
//! unchanged cluster is not written.

mod conditions;

pub use crate::checkpoint::formed_before;
use crate::{
    errors::Failure,
    observe::Observed,
    pods::is_ready,
    redis::{
        assess::{Assessment, Shard, ShardNode},
        identity::KnownNodes,
        plan::Plan,
    },
    validate::{InvalidSpec, Shape, ValidatedCluster},
};
use common::{
    cluster::{slot_map::topology_hash, slots::SLOT_COUNT},
    kubernetes::conditions::{ConditionUpdate, find, merge},
    sentence::{grouped, list, shortened},
};
pub use conditions::NOT_HEALTHY;
use conditions::{conditions, reconciling, stalled};
use crds::{
    KnownNode, NodeStatus, RedisCluster, RedisClusterStatus, ShardStatus, SlotsStatus,
    VersionStatus, endpoint,
};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use std::{collections::BTreeSet, time::Duration};

/// How long a cluster that serves may still be called forming while its replicas come.
const FORMING: Duration = Duration::from_mins(1);

/// The node ids that the status records. One written before `nodes` existed has those of its shards.
pub fn known_before(cluster: &RedisCluster) -> KnownNodes {
    let Some(status) = &cluster.status else {
        return KnownNodes::new();
    };
    let recorded = status.nodes.iter().map(|node| (&node.node_id, &node.pod));
    let shards = status.shard_statuses.iter();
    let listed = shards.flat_map(|shard| shard.primary.iter().chain(&shard.replicas));
    listed
        .map(|node| (&node.node_id, &node.pod))
        .chain(recorded)
        .filter_map(|(id, pod)| Some((id.parse().ok()?, pod.clone())))
        .collect()
}

/// The status of a cluster of which not even the shape can be known.
pub fn invalid(cluster: &RedisCluster, error: &InvalidSpec, now: Timestamp) -> RedisClusterStatus {
    let mut status = cluster.status.clone().unwrap_or_default();
    let formed = formed_before(cluster);
    status.observed_generation = cluster.metadata.generation;
    status.phase = Some(if formed { "Degraded" } else { "Pending" }.to_owned());
    status.message = Some(shortened(&error.to_string()));
    let ready = ConditionUpdate::no("Ready", error.reason(), error.to_string());
    let progressing = ConditionUpdate::no("Progressing", error.reason(), error.to_string());
    let updates = [
        reconciling(&progressing),
        stalled(&ready, &progressing),
        ready,
        progressing,
    ];
    status.conditions = merge(
        &status.conditions,
        &updates,
        cluster.metadata.generation,
        now,
    );
    status
}

/// What a reconcile has found out.
pub struct StatusInputs<'a> {
    /// What repairing the nodes needs.
    pub shape: &'a Shape,
    /// What is wanted besides; none where the spec is wrong.
    pub cluster: Option<&'a ValidatedCluster>,
    /// Why the spec, or a part of it, is not acted upon.
    pub failure: Option<&'a Failure>,
    /// Pods and nodes.
    pub observed: &'a Observed,
    /// The node ids that belong to the cluster.
    pub known: &'a KnownNodes,
    /// How the cluster is.
    pub assessment: &'a Assessment,
    /// What is left to do.
    pub plan: &'a Plan,
}

impl StatusInputs<'_> {
    /// Whether nothing is wrong with the nodes, and nothing is left to do about them.
    pub fn is_healthy(&self) -> bool {
        self.assessment.is_healthy() && self.plan.steps.is_empty()
    }

    /// What keeps the spec from being acted upon until the user changes something.
    fn refused(&self) -> Option<&Failure> {
        self.failure.filter(|failure| !failure.transient)
    }
}

/// The status after a reconcile.
pub fn compute(
    object: &RedisCluster,
    found: &StatusInputs<'_>,
    now: Timestamp,
) -> RedisClusterStatus {
    let shape = found.shape;
    let old = object.status.clone().unwrap_or_default();
    // What could not be put into effect for a moment has not been answered yet; a refusal is an answer.
    let generation = match found.failure {
        Some(failure) if failure.transient => old.observed_generation,
        _ => object.metadata.generation,
    };
    let all = conditions(formed_before(object), found);
    let conditions = merge(&old.conditions, &all, generation, now);
    let phase = phase(&old, found, &conditions, now);
    let members = found.observed.members.iter();
    let views = members.filter_map(|member| Some(&member.report()?.view));
    let assigned = found.assessment.slots_assigned > 0;
    let ready_shards = found.assessment.shards.iter().filter(|shard| shard.ready);
    let ready_nodes = found.observed.pods.values().filter(|pod| is_ready(pod));
    RedisClusterStatus {
        observed_generation: generation,
        phase: Some(phase.to_owned()),
        message: Some(list(&message(found, phase))),
        version: version(old.version, found),
        size: shape.shards * (1 + shape.replicas),
        ready_shards: count(ready_shards.count()),
        ready_nodes: count(ready_nodes.count()),
        endpoint: Some(endpoint(&shape.name, &shape.namespace)),
        slots: SlotsStatus {
            assigned: count(found.assessment.slots_assigned),
            ok: count(found.assessment.slots_ok),
        },
        topology_hash: assigned.then(|| topology_hash(views)),
        shard_statuses: shard_statuses(&found.assessment.shards),
        nodes: nodes(found.known),
        conditions,
    }
}

fn version(old: VersionStatus, found: &StatusInputs<'_>) -> VersionStatus {
    // While no node answers the last known answer stands.
    let running = running(found.observed).or(old.running);
    match found.cluster {
        Some(cluster) => VersionStatus {
            name: cluster.server.entry.clone(),
            image: Some(cluster.server.image.clone()),
            running,
        },
        None => VersionStatus { running, ..old },
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn shard_statuses(shards: &[Shard]) -> Vec<ShardStatus> {
    let node = |node: &ShardNode| NodeStatus {
        pod: node.pod.clone(),
        node_id: node.id.to_string(),
        linked: node.linked,
    };
    shards
        .iter()
        .enumerate()
        .map(|(index, shard)| ShardStatus {
            index: count(index),
            primary: shard.primary.as_ref().map(node),
            replicas: shard.replicas.iter().map(node).collect(),
            slot_ranges: shard.slot_ranges.clone(),
        })
        .collect()
}

fn nodes(known: &KnownNodes) -> Vec<KnownNode> {
    let mut nodes: Vec<KnownNode> = known
        .iter()
        .map(|(id, pod)| KnownNode {
            pod: pod.clone(),
            node_id: id.to_string(),
        })
        .collect();
    nodes.sort_unstable_by(|a, b| (&a.pod, &a.node_id).cmp(&(&b.pod, &b.node_id)));
    nodes
}

/// What the servers report, each kind once.
fn running(observed: &Observed) -> Option<String> {
    let kinds: BTreeSet<String> = observed
        .members
        .iter()
        .filter_map(|member| Some(member.report()?.server.to_string()))
        .collect();
    let kinds: Vec<String> = kinds.into_iter().collect();
    (!kinds.is_empty()).then(|| kinds.join(", "))
}

fn phase(
    old: &RedisClusterStatus,
    found: &StatusInputs<'_>,
    conditions: &[Condition],
    now: Timestamp,
) -> &'static str {
    if found.shape.paused {
        return "Paused";
    }
    let served = found.assessment.slots_ok == usize::from(SLOT_COUNT);
    match find(conditions, "Formed").filter(|formed| formed.status == "True") {
        None => {
            let members = &found.observed.members;
            let some = members.iter().any(|member| member.report().is_some());
            if some { "Forming" } else { "Pending" }
        }
        Some(_) if found.is_healthy() && found.refused().is_none() => "Ready",
        Some(formed) if served && is_still_forming(old, formed, now) => "Forming",
        Some(_) if served => "Degraded",
        Some(_) => "Down",
    }
}

/// Whether it has come to serve a moment ago and its replicas are still to come.
fn is_still_forming(old: &RedisClusterStatus, formed: &Condition, now: Timestamp) -> bool {
    let since = formed.last_transition_time.0;
    matches!(old.phase.as_deref(), None | Some("Pending" | "Forming"))
        && now.duration_since(since).unsigned_abs() < FORMING
}

/// What the status says now and did not say before, each text in full however long: for the log.
pub fn new_texts(
    object: &RedisCluster,
    status: &RedisClusterStatus,
    found: &StatusInputs<'_>,
) -> Vec<String> {
    let old = object.status.clone().unwrap_or_default();
    let mut texts = Vec::new();
    if old.message != status.message {
        texts.push(full_message(status, found));
    }
    let message = |conditions, kind| find(conditions, kind).map(|one| one.message.clone());
    for update in conditions(formed_before(object), found) {
        let shown = message(&status.conditions, update.kind);
        let is_cut = shown.as_ref() != Some(&update.message);
        let is_new = shown != message(&old.conditions, update.kind);
        if is_cut && is_new && !texts.contains(&update.message) {
            texts.push(update.message);
        }
    }
    texts
}

fn full_message(status: &RedisClusterStatus, found: &StatusInputs<'_>) -> String {
    message(found, status.phase.as_deref().unwrap_or_default()).join("; ")
}

fn message(found: &StatusInputs<'_>, phase: &str) -> Vec<String> {
    if phase == "Paused" {
        return vec!["spec.paused is true: nothing is changed".to_owned()];
    }
    if let Some(refused) = found.refused() {
        return vec![refused.message.clone()];
    }
    if found.is_healthy() {
        let (shards, replicas) = (found.shape.shards, found.shape.replicas);
        return vec![match replicas {
            1 => format!("{shards} shards with a replica each serve all slots"),
            _ => format!("{shards} shards with {replicas} replicas each serve all slots"),
        }];
    }
    failure_sentences(found)
}

/// What is wrong, within the limit of a message: what the user has to know first.
fn failure_sentence(found: &StatusInputs<'_>) -> String {
    list(&failure_sentences(found))
}

fn failure_sentences(found: &StatusInputs<'_>) -> Vec<String> {
    let urgent = found
        .plan
        .blockers
        .iter()
        .find(|blocker| !blocker.clears_itself());
    if let Some(blocker) = urgent.or(found.plan.blockers.first()) {
        return blocker.sentences();
    }
    let problems = &found.assessment.problems;
    let general = problems.iter().filter(|one| one.pod().is_none());
    let mut sentences: Vec<String> = general.map(ToString::to_string).collect();
    let of_pods = problems
        .iter()
        .filter_map(|one| Some((one.pod()?, one.to_string())));
    sentences.extend(grouped(of_pods));
    if sentences.is_empty() {
        let next = found.plan.steps.first();
        sentences.extend(next.map(|step| step.reason.clone()));
    }
    sentences
}

#[cfg(test)]
mod tests;

//! The status, computed from what was seen: a pure function. What changes from second to second is not in it, so that an
//! unchanged cluster is not written.

mod access;
mod certificates;
mod conditions;
mod configuration;
mod hibernation;
mod users;

pub use crate::checkpoint::formed_before;
use crate::{
    access::report::AccessReport,
    certificates::report::CertificatesReport,
    errors::Failure,
    fencing::{LastSeen, LastSeenNodes},
    observe::Observed,
    operation::Operation,
    pods::{grace_seconds, is_ready, kubernetes_node},
    redis::{
        assess::{Assessment, ShardNode},
        identity::KnownNodes,
        member::WriteRefusal,
        plan::Plan,
    },
    rollout::Rollout,
    settings::{assess::ClusterSettings, trial::Gate},
    users::report::UsersReport,
    validate::{InvalidSpec, Shape, ValidatedCluster, takeover_annotation},
    volumes::Growth,
};
use access::access_ready;
use certificates::certificates_valid;
use common::{
    cluster::{slot_map::topology_hash, slots::SLOT_COUNT, topology::NodeId},
    kubernetes::conditions::{ConditionUpdate, find, merge},
    sentence::{grouped, list, names, shortened},
};
pub use conditions::NOT_HEALTHY;
use conditions::{conditions, reconciling, stalled};
use crds::{
    KnownNode, LABEL_CLUSTER, LABEL_ROLE, LossStatus, MinReplicas, NodeStatus, OperationKind,
    OperationStatus, ROLE_PRIMARY, RedisCluster, RedisClusterStatus, ShardStatus, SlotsStatus,
    VersionStatus, endpoint,
};
pub use hibernation::{HIBERNATED, HIBERNATING};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

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

/// Where the recorded nodes were last seen.
pub fn last_seen_before(cluster: &RedisCluster) -> LastSeenNodes {
    let nodes = cluster.status.iter().flat_map(|status| &status.nodes);
    let seen = |node: &KnownNode| LastSeen {
        pod_uid: node.pod_uid.clone(),
        kubernetes_node: node.kubernetes_node.clone(),
        grace: node
            .grace_seconds
            .and_then(|seconds| seconds.try_into().ok()),
        refusal: node.min_replicas.as_ref().and_then(refusal),
        current_until: node.current_until.as_ref().map(|time| time.0),
        unresponsive_since: node.unresponsive_since.as_ref().map(|time| time.0),
    };
    nodes
        .filter_map(|node| Some((node.node_id.parse().ok()?, seen(node))))
        .collect()
}

fn refusal(recorded: &MinReplicas) -> Option<WriteRefusal> {
    Some(WriteRefusal {
        min_replicas: recorded.to_write.try_into().ok()?,
        max_lag: Duration::from_secs(recorded.max_lag_seconds.try_into().ok()?),
        snapshots: false,
    })
}

fn min_replicas(refusal: &WriteRefusal) -> Option<MinReplicas> {
    let to_write = i64::try_from(refusal.min_replicas).ok()?;
    (to_write > 0).then_some(MinReplicas {
        to_write,
        max_lag_seconds: refusal.max_lag.as_secs().try_into().ok()?,
    })
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
    /// Pods of an older template.
    pub rollout: &'a Rollout,
    /// What is being done to the running cluster.
    pub operation: Option<&'a Operation>,
    /// How far the volumes have grown; none where they were not looked at.
    pub growth: Option<&'a Growth>,
    /// Whether the wanted configuration may reach the pods.
    pub gate: &'a Gate,
    /// What the servers have of the wanted settings.
    pub settings: &'a ClusterSettings,
    /// Keys that are about to be given up.
    pub loss: Option<&'a LossStatus>,
    /// How far the servers have their users.
    pub users: &'a UsersReport,
    /// How far the servers have their certificate.
    pub certificates: &'a CertificatesReport,
    /// How far clients outside reach the servers.
    pub access: &'a AccessReport,
}

impl StatusInputs<'_> {
    /// Whether nothing is wrong with the nodes, and nothing is left to repair.
    pub fn is_healthy(&self) -> bool {
        self.assessment.is_healthy() && self.plan.repairs_nothing()
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
    let all = all_conditions(object, found, now);
    let conditions = merge(&old.conditions, &all, generation, now);
    let phase = phase(&old, found, &conditions, now);
    let members = found.observed.members.iter();
    let views = members.filter_map(|member| Some(&member.report()?.view));
    let assigned = found.assessment.slots_assigned > 0;
    let ready_shards = found.assessment.shards.iter().filter(|shard| shard.ready);
    let with_slots = found.assessment.shards.iter();
    let with_slots = with_slots.filter(|shard| !shard.slot_ranges.is_empty());
    let ready_nodes = found.observed.pods.values().filter(|pod| is_ready(pod));
    RedisClusterStatus {
        observed_generation: generation,
        phase: Some(phase.to_owned()),
        message: Some(list(&message(found, phase))),
        version: version(old.version, found),
        size: shape.shards * (1 + shape.replicas),
        shards: if shape.hibernate {
            old.shards
        } else {
            count(with_slots.count())
        },
        // One pod a shard: an autoscaler takes what it counts for the number of shards.
        selector: Some(format!(
            "{LABEL_CLUSTER}={},{LABEL_ROLE}={ROLE_PRIMARY}",
            shape.name
        )),
        ready_shards: count(ready_shards.count()),
        ready_nodes: count(ready_nodes.count()),
        endpoint: Some(endpoint(&shape.name, &shape.namespace, shape.port())),
        slots: SlotsStatus {
            assigned: count(found.assessment.slots_assigned),
            ok: count(found.assessment.slots_ok),
        },
        operation: operation(old.operation, found, now),
        topology_hash: assigned.then(|| topology_hash(views)),
        shard_statuses: shard_statuses(found),
        nodes: nodes(found, &last_seen_before(object)),
        takeover_done: takeover_done(object, found),
        last_loss: found.loss.cloned().or(old.last_loss),
        authentication: found.users.authentication,
        tls: found.certificates.shown.clone(),
        access: found.access.status.clone(),
        conditions,
    }
}

fn all_conditions(
    object: &RedisCluster,
    found: &StatusInputs<'_>,
    now: Timestamp,
) -> Vec<ConditionUpdate> {
    let mut all = conditions(formed_before(object), found);
    all.extend(certificates_valid(found.certificates, now));
    all.extend(access_ready(found.access));
    hibernation::replace(&mut all, found);
    all
}

fn operation(
    old: Option<OperationStatus>,
    found: &StatusInputs<'_>,
    now: Timestamp,
) -> Option<OperationStatus> {
    let operation = found.operation?;
    let same = old.filter(|old| old.kind == operation.kind);
    Some(OperationStatus {
        kind: operation.kind,
        start_time: same.map_or(Time(now), |old| old.start_time),
        done: count(operation.done),
        total: count(operation.total),
        message: shortened(&operation.next.clone().unwrap_or_else(|| waits_for(found))),
    })
}

/// Why the next step of an operation is not taken.
fn waits_for(found: &StatusInputs<'_>) -> String {
    let why = failure_sentence(found);
    if !why.is_empty() {
        return format!("waiting for a healthy cluster: {why}");
    }
    let pods = found.observed.pods.iter();
    let mut unready: Vec<&str> = pods
        .filter(|(_, pod)| !is_ready(pod))
        .map(|(name, _)| name.as_str())
        .collect();
    unready.sort_unstable();
    if unready.is_empty() {
        return match writing_files(found).as_slice() {
            [] => "waiting until a replica can take over".to_owned(),
            pods => format!(
                "waiting until {} has rewritten its append-only file: until then what it copied is not whole on its volume",
                names("pod", pods)
            ),
        };
    }
    format!("waiting for {} to become ready", names("pod", &unready))
}

/// Pods of shards that are updated whose volumes do not have everything yet.
fn writing_files<'a>(found: &'a StatusInputs<'_>) -> Vec<&'a str> {
    let outdated = &found.rollout.outdated;
    let members = || found.observed.members.iter();
    let updated = members().filter(|member| outdated.contains(&member.expected.pod));
    let shards: BTreeSet<usize> = updated.map(|member| member.expected.shard).collect();
    members()
        .filter(|member| member.rewrites_its_file() && shards.contains(&member.expected.shard))
        .map(|member| member.expected.pod.as_str())
        .collect()
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

fn shard_statuses(found: &StatusInputs<'_>) -> Vec<ShardStatus> {
    let server = |node: &ShardNode| {
        let report = found.observed.members.get(node.index)?.report()?;
        Some(report.server.to_string())
    };
    let node = |node: &ShardNode| NodeStatus {
        pod: node.pod.clone(),
        node_id: node.id.to_string(),
        server: server(node),
        linked: node.linked,
    };
    let shards = &found.assessment.shards;
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

fn nodes(found: &StatusInputs<'_>, before: &LastSeenNodes) -> Vec<KnownNode> {
    let members = found.observed.members.iter();
    let answering: BTreeMap<NodeId, (&str, WriteRefusal)> = members
        .filter_map(|member| {
            let report = member.report()?;
            Some((report.id(), (member.expected.pod.as_str(), report.refusal)))
        })
        .collect();
    let seen_now = |id: &NodeId| {
        let (pod, refusal) = answering.get(id)?;
        let pod = found.observed.pods.get(*pod)?;
        Some(LastSeen {
            pod_uid: pod.metadata.uid.clone(),
            kubernetes_node: kubernetes_node(pod).map(ToOwned::to_owned),
            grace: grace_seconds(pod),
            refusal: Some(*refusal),
            ..LastSeen::default()
        })
    };
    let expected = || found.observed.members.iter().map(|one| &one.expected);
    let current_until: BTreeMap<NodeId, Timestamp> = expected()
        .flat_map(|one| one.current_until.clone())
        .collect();
    let unresponsive_since: BTreeMap<NodeId, Timestamp> = expected()
        .flat_map(|one| one.unresponsive_since.clone())
        .collect();
    // Of a pod that is not there, and that the spec does not ask for, nothing was seen.
    let unseen = |pod: &String| expected().all(|one| one.pod != *pod);
    let mut nodes: Vec<KnownNode> = found
        .known
        .iter()
        .map(|(id, pod)| {
            let seen = seen_now(id).or_else(|| before.get(id).cloned());
            let seen = seen.unwrap_or_default();
            let (mut until, mut since) = (current_until.get(id), unresponsive_since.get(id));
            if unseen(pod) {
                (until, since) = (
                    seen.current_until.as_ref(),
                    seen.unresponsive_since.as_ref(),
                );
            }
            KnownNode {
                pod: pod.clone(),
                node_id: id.to_string(),
                pod_uid: seen.pod_uid,
                kubernetes_node: seen.kubernetes_node,
                grace_seconds: seen.grace.and_then(|seconds| seconds.try_into().ok()),
                min_replicas: seen.refusal.as_ref().and_then(min_replicas),
                current_until: until.copied().map(Time),
                unresponsive_since: since.copied().map(Time),
            }
        })
        .collect();
    nodes.sort_unstable_by(|a, b| (&a.pod, &a.node_id).cmp(&(&b.pod, &b.node_id)));
    nodes
}

/// The annotation is done with once no primary is lost that it could be meant for: it must not count for a loss that is yet to come.
fn takeover_done(object: &RedisCluster, found: &StatusInputs<'_>) -> Option<String> {
    let asked = takeover_annotation(object)?;
    let served = found.assessment.slots_ok == usize::from(SLOT_COUNT);
    let before = object.status.as_ref();
    let done = before.and_then(|status| status.takeover_done.as_deref()) == Some(asked);
    (done || (served && found.assessment.has_quorum())).then(|| asked.to_owned())
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
    let operation = found.operation.filter(|_| served).map(|one| one.kind);
    if let Some(phase) = hibernation::phase(old.phase.as_deref(), found, served) {
        return phase;
    }
    match find(conditions, "Formed").filter(|formed| formed.status == "True") {
        None => {
            let members = &found.observed.members;
            let some = members.iter().any(|member| member.report().is_some());
            if some { "Forming" } else { "Pending" }
        }
        Some(_) if operation == Some(OperationKind::Update) => "Updating",
        Some(_) if operation == Some(OperationKind::Scale) => "Scaling",
        Some(_) if operation == Some(OperationKind::Hibernate) => HIBERNATING,
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
    now: Timestamp,
) -> Vec<String> {
    let old = object.status.clone().unwrap_or_default();
    let mut texts = Vec::new();
    if old.message != status.message {
        texts.push(full_message(status, found));
    }
    let message = |conditions, kind| find(conditions, kind).map(|one| one.message.clone());
    for update in all_conditions(object, found, now) {
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
    if found.shape.hibernate {
        return vec![hibernation::sentence(found)];
    }
    if let Some(operation) = found
        .operation
        .filter(|_| matches!(phase, "Updating" | "Scaling" | HIBERNATING))
    {
        let doing = operation.next.iter().cloned();
        let waiting = operation.next.is_none().then(|| failure_sentences(found));
        let sentences = doing.chain(waiting.into_iter().flatten());
        return std::iter::once(operation.progress())
            .chain(sentences)
            .collect();
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
        .find(|blocker| blocker.is_named());
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

//! The status, computed from what was seen: a pure function. What changes from second to second is not in it, so that an
//! unchanged cluster is not written.

use crate::{
    observe::{Observed, is_ready, restart_hash},
    redis::{
        assess::{Assessment, Problem, Shard, ShardNode},
        plan::{Hold, Plan},
    },
    validate::{InvalidSpec, ValidatedCluster},
};
use common::{
    cluster::{info::Family, slots::SLOT_COUNT, topology::topology_hash},
    kubernetes::conditions::{Finding, holds, merge},
};
use crds::{
    Distribution, NodeStatus, RedisCluster, RedisClusterStatus, ShardStatus, SlotsStatus,
    VersionStatus, endpoint,
};
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeSet;

/// Whether the cluster has been whole before: a checkpoint of what nobody can see any more once all data is lost.
pub fn formed_before(cluster: &RedisCluster) -> bool {
    cluster
        .status
        .as_ref()
        .is_some_and(|status| holds(&status.conditions, "Formed"))
}

/// The status of a cluster whose spec cannot be acted upon.
pub fn invalid(cluster: &RedisCluster, error: &InvalidSpec, now: Timestamp) -> RedisClusterStatus {
    let mut status = cluster.status.clone().unwrap_or_default();
    let formed = formed_before(cluster);
    status.observed_generation = cluster.metadata.generation;
    status.phase = Some(if formed { "Degraded" } else { "Pending" }.to_owned());
    status.message = Some(error.to_string());
    let findings = [
        Finding::no("Ready", error.reason(), error.to_string()),
        Finding::no("Progressing", error.reason(), error.to_string()),
    ];
    status.conditions = merge(
        &status.conditions,
        &findings,
        cluster.metadata.generation,
        now,
    );
    status
}

/// What a pass has found out.
pub struct Findings<'a> {
    /// The validated cluster.
    pub cluster: &'a ValidatedCluster,
    /// Pods and nodes.
    pub observed: &'a Observed,
    /// How the cluster is.
    pub assessment: &'a Assessment,
    /// What is left to do.
    pub plan: &'a Plan,
}

/// The status after a pass.
pub fn compute(object: &RedisCluster, found: &Findings<'_>, now: Timestamp) -> RedisClusterStatus {
    let cluster = found.cluster;
    let old = object.status.clone().unwrap_or_default();
    let conditions = merge(
        &old.conditions,
        &conditions(object, found),
        object.metadata.generation,
        now,
    );
    let phase = phase(found, holds(&conditions, "Formed"));
    let views = found.observed.members.iter().filter_map(|member| {
        let report = member.report()?;
        Some(&report.view)
    });
    let assigned = found.assessment.slots_assigned > 0;
    RedisClusterStatus {
        observed_generation: object.metadata.generation,
        phase: Some(phase.to_owned()),
        message: Some(message(found, phase)),
        version: VersionStatus {
            name: cluster.server.entry.clone(),
            image: Some(cluster.server.image.clone()),
            // While no node answers the last known answer stands.
            running: running(found.observed).or(old.version.running),
        },
        size: cluster.shards * (1 + cluster.replicas),
        ready_shards: count(
            found
                .assessment
                .shards
                .iter()
                .filter(|shard| shard.ready)
                .count(),
        ),
        ready_nodes: count(
            found
                .observed
                .pods
                .values()
                .filter(|pod| is_ready(pod))
                .count(),
        ),
        endpoint: Some(endpoint(&cluster.name, &cluster.namespace)),
        slots: SlotsStatus {
            assigned: count(found.assessment.slots_assigned),
            ok: count(found.assessment.slots_ok),
        },
        topology_hash: assigned.then(|| topology_hash(views)),
        shard_statuses: shard_statuses(&found.assessment.shards),
        conditions,
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

fn phase(found: &Findings<'_>, formed: bool) -> &'static str {
    if found.cluster.paused {
        return "Paused";
    }
    if !formed {
        let some = found
            .observed
            .members
            .iter()
            .any(|member| member.report().is_some());
        return if some { "Forming" } else { "Pending" };
    }
    if is_whole(found) {
        "Ready"
    } else if found.assessment.slots_ok < usize::from(SLOT_COUNT) {
        "Down"
    } else {
        "Degraded"
    }
}

fn is_whole(found: &Findings<'_>) -> bool {
    found.assessment.is_whole() && found.plan.steps.is_empty()
}

fn message(found: &Findings<'_>, phase: &str) -> String {
    if phase == "Paused" {
        return "spec.paused is true: nothing is changed".to_owned();
    }
    if is_whole(found) {
        let cluster = found.cluster;
        return match cluster.replicas {
            1 => format!(
                "{} shards with a replica each serve all slots",
                cluster.shards
            ),
            replicas => format!(
                "{} shards with {replicas} replicas each serve all slots",
                cluster.shards
            ),
        };
    }
    trouble(found)
}

/// What is wrong, in a sentence: what the user has to know first.
fn trouble(found: &Findings<'_>) -> String {
    let urgent = found.plan.holds.iter().find(|hold| !is_patient(hold));
    if let Some(hold) = urgent.or(found.plan.holds.first()) {
        return hold.to_string();
    }
    let words: Vec<String> = found
        .assessment
        .problems
        .iter()
        .take(3)
        .map(ToString::to_string)
        .collect();
    let more = found.assessment.problems.len().saturating_sub(3);
    match (words.is_empty(), more) {
        (true, _) => found
            .plan
            .steps
            .first()
            .map_or_else(String::new, |step| step.reason.clone()),
        (false, 0) => words.join("; "),
        (false, more) => format!("{}; and {more} more", words.join("; ")),
    }
}

/// Whether waiting alone may mend it.
fn is_patient(hold: &Hold) -> bool {
    match hold {
        Hold::WaitingForNodes { .. } | Hold::OwnerDown { .. } => true,
        Hold::SlotsLost { .. } | Hold::KeysWithoutSlots { .. } | Hold::Foreign { .. } => false,
    }
}

fn conditions(object: &RedisCluster, found: &Findings<'_>) -> Vec<Finding> {
    let mut findings = vec![ready(found), available(found), progressing(found)];
    if is_whole(found) {
        findings.push(Finding::yes(
            "Formed",
            "Formed",
            "every node has joined and every slot has an owner",
        ));
    } else if !formed_before(object) {
        findings.push(Finding::no("Formed", "Forming", trouble(found)));
    }
    findings.extend([
        slots(found),
        replication(found),
        quorum(found),
        up_to_date(found),
        paused(found),
    ]);
    findings
}

fn ready(found: &Findings<'_>) -> Finding {
    if is_whole(found) {
        return Finding::yes(
            "Ready",
            "Whole",
            "every node agrees that the cluster is whole",
        );
    }
    let lost = found.plan.holds.iter().find(|hold| !is_patient(hold));
    Finding::no("Ready", lost.map_or("NotWhole", reason), trouble(found))
}

fn reason(hold: &Hold) -> &'static str {
    match hold {
        Hold::WaitingForNodes { .. } => "WaitingForNodes",
        Hold::SlotsLost { .. } => "SlotsLost",
        Hold::KeysWithoutSlots { .. } => "KeysWithoutSlots",
        Hold::Foreign { .. } => "ForeignNode",
        Hold::OwnerDown { .. } => "PrimaryDown",
    }
}

fn available(found: &Findings<'_>) -> Finding {
    let down = found
        .assessment
        .problems
        .iter()
        .any(|problem| matches!(problem, Problem::NotServing { .. }));
    if found.assessment.slots_ok == usize::from(SLOT_COUNT) && !down {
        return Finding::yes("Available", "AllSlotsServed", "every slot is served");
    }
    Finding::no("Available", "SlotsNotServed", trouble(found))
}

fn progressing(found: &Findings<'_>) -> Finding {
    if found.cluster.paused {
        return Finding::no("Progressing", "Paused", "spec.paused is true");
    }
    if is_whole(found) {
        return Finding::no("Progressing", "Settled", "nothing is left to do");
    }
    let stuck = found.plan.steps.is_empty()
        && !found.plan.holds.is_empty()
        && found.plan.holds.iter().all(|hold| !is_patient(hold));
    if stuck {
        return Finding::no("Progressing", "Stuck", trouble(found));
    }
    Finding::yes("Progressing", "Mending", trouble(found))
}

fn slots(found: &Findings<'_>) -> Finding {
    let (ok, all) = (found.assessment.slots_ok, usize::from(SLOT_COUNT));
    if ok == all {
        return Finding::yes(
            "SlotsCovered",
            "AllSlotsCovered",
            "every slot has a living owner",
        );
    }
    let lost = found
        .plan
        .holds
        .iter()
        .find(|hold| matches!(hold, Hold::SlotsLost { .. }));
    match lost {
        Some(hold) => Finding::no("SlotsCovered", "SlotsLost", hold.to_string()),
        None => Finding::no(
            "SlotsCovered",
            "SlotsUncovered",
            format!("{} of {all} slots have no living owner", all - ok),
        ),
    }
}

fn replication(found: &Findings<'_>) -> Finding {
    let wanted = found.cluster.replicas;
    let behind: Vec<String> = found
        .assessment
        .shards
        .iter()
        .enumerate()
        .filter(|(_, shard)| !shard.ready)
        .map(|(index, _)| index.to_string())
        .collect();
    if behind.is_empty() {
        return Finding::yes(
            "ReplicationHealthy",
            "ReplicasLinked",
            format!("linked replicas of every primary: {wanted}"),
        );
    }
    Finding::no(
        "ReplicationHealthy",
        "ReplicasMissing",
        format!(
            "shards without a primary or with fewer than {wanted} linked replicas: {}",
            behind.join(", ")
        ),
    )
}

fn quorum(found: &Findings<'_>) -> Finding {
    let (live, all) = found.assessment.quorum;
    if all == 0 {
        return Finding::unknown("QuorumHealthy", "NotFormed", "there are no primaries yet");
    }
    if found.assessment.has_quorum() {
        return Finding::yes(
            "QuorumHealthy",
            "MajorityAlive",
            "the majority of the primaries is alive",
        );
    }
    Finding::no(
        "QuorumHealthy",
        "MajorityLost",
        format!("only {live} of {all} primaries are alive: replicas cannot be elected"),
    )
}

fn paused(found: &Findings<'_>) -> Finding {
    if found.cluster.paused {
        Finding::yes(
            "Paused",
            "Paused",
            "spec.paused is true: nothing is changed",
        )
    } else {
        Finding::no("Paused", "Active", "the cluster is looked after")
    }
}

fn up_to_date(found: &Findings<'_>) -> Finding {
    let mut outdated: Vec<&str> = found
        .observed
        .pods
        .iter()
        .filter(|(_, pod)| restart_hash(pod) != Some(&found.cluster.restart_hash))
        .map(|(name, _)| name.as_str())
        .collect();
    outdated.sort_unstable();
    if !outdated.is_empty() {
        return Finding::no(
            "UpToDate",
            "PodsOutdated",
            format!(
                "{} run with an older image, older resources or older settings: delete these pods one at a time, replicas \
                 before primaries, each when the cluster is Ready again",
                outdated.join(", ")
            ),
        );
    }
    if let Some(sentence) = broken_promise(found) {
        return Finding::no("UpToDate", "VersionMismatch", sentence);
    }
    Finding::yes("UpToDate", "UpToDate", "every pod runs what is wanted")
}

/// What the servers are, compared with what the catalog says.
fn broken_promise(found: &Findings<'_>) -> Option<String> {
    let (distribution, version) = found.cluster.server.promised.as_ref()?;
    let family = match distribution {
        Distribution::Redis => Family::Redis,
        Distribution::Valkey => Family::Valkey,
    };
    let entry = found.cluster.server.entry.as_deref().unwrap_or_default();
    let other = found.observed.members.iter().find_map(|member| {
        let server = &member.report()?.server;
        let kept = server.family == family && server.version == *version;
        (!kept).then(|| (member.place.pod.clone(), server.to_string()))
    });
    let (pod, server) = other?;
    Some(format!(
        "{pod} runs {server}, but the RedisVersion {entry} says {family} {version}: correct the entry, or name another one"
    ))
}

#[cfg(test)]
mod tests;

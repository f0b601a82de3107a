//! The conditions: each question answered from what was found.

use super::{
    HIBERNATING, StatusInputs,
    configuration::{config_applied, kept_back},
    failure_sentence,
    users::users_applied,
};
use crate::{
    pods::{ends_for_memory, is_ready},
    redis::{assess::Problem, member::Member, plan::Blocker},
    rollout::RolloutStep,
    support::VersionSupport,
    upgrade::family,
    validate::Server,
};
use common::{
    cluster::slots::SLOT_COUNT, kubernetes::conditions::ConditionUpdate, sentence::names,
};
use crds::OperationKind;

/// Why a cluster is not Ready when nothing more has to be said of it.
pub const NOT_HEALTHY: &str = "NotHealthy";

/// All conditions. `formed_before`: what the status has said of `Formed` until now.
pub(super) fn conditions(formed_before: bool, found: &StatusInputs<'_>) -> Vec<ConditionUpdate> {
    let (ready, progressing) = (ready(found), progressing(found));
    let growth = found.growth;
    let volumes = growth.and_then(|growth| growth.condition(found.cluster));
    let mut all = vec![
        reconciling(&progressing),
        stalled(&ready, &progressing),
        ready,
        available(found),
        progressing,
        formed(formed_before, found),
        slots(found),
        replication(found),
        quorum(found),
        up_to_date(found),
        supported(found),
        config_applied(found),
        users_applied(found.users),
        paused(found),
    ];
    all.extend(volumes);
    all
}

fn ready(found: &StatusInputs<'_>) -> ConditionUpdate {
    if let Some(refused) = found.refused() {
        return ConditionUpdate::no("Ready", refused.reason, &refused.message);
    }
    if found.is_healthy() {
        return match found.operation {
            Some(operation) => {
                ConditionUpdate::no("Ready", under_way(operation.kind), operation.progress())
            }
            None => {
                ConditionUpdate::yes("Ready", "Healthy", "every node reports a healthy cluster")
            }
        };
    }
    let lost = found
        .plan
        .blockers
        .iter()
        .find(|blocker| blocker.is_named());
    ConditionUpdate::no(
        "Ready",
        lost.map_or_else(|| problem_reason(found), reason),
        failure_sentence(found),
    )
}

/// The reason where no blocker is named: what only a person ends.
fn problem_reason(found: &StatusInputs<'_>) -> &'static str {
    let is = |problem: fn(&Problem) -> bool| found.assessment.problems.iter().any(problem);
    let mut pods = found.observed.pods.values();
    if pods.any(|pod| !is_ready(pod) && ends_for_memory(pod).is_some()) {
        return "OutOfMemory";
    }
    if is(|problem| matches!(problem, Problem::DiskRefusesWrites { .. })) {
        return "DiskRefusesWrites";
    }
    if is(|problem| matches!(problem, Problem::Loading { why: Some(_), .. })) {
        return "LoadingSlow";
    }
    NOT_HEALTHY
}

fn under_way(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Update => "Updating",
        OperationKind::Scale => "Scaling",
        OperationKind::Hibernate => HIBERNATING,
    }
}

fn reason(blocker: &Blocker) -> &'static str {
    match blocker {
        Blocker::WaitingForNodes { .. } => "WaitingForNodes",
        Blocker::SlotsLost { .. } => "SlotsLost",
        Blocker::KeysWithoutSlots { .. } => "KeysWithoutSlots",
        Blocker::ForeignNode { .. } => "ForeignNode",
        Blocker::NodeWithoutPod { .. } => "NodeWithoutPod",
        Blocker::PrimaryDown { .. } => "PrimaryDown",
        Blocker::OldCopy { .. } => "ReplicaBehind",
        Blocker::EmptyCopy { .. } => "ReplicaEmpty",
        Blocker::SlotsUnassigned { .. } => "SlotsUnassigned",
        Blocker::SlotsContested { .. } => "SlotsContested",
        Blocker::ScriptRunning { .. } => "ScriptRunning",
        Blocker::Unfenced { .. } | Blocker::RecreationUnfenced { .. } => "PrimaryNotFenced",
        Blocker::TakeoverManual { .. } => "TakeoverManual",
    }
}

/// Whether clients can write to every slot. A node that has just come up empty does not serve, and takes nothing away from those that do.
fn is_available(found: &StatusInputs<'_>) -> bool {
    let reports = found.observed.members.iter().filter_map(Member::report);
    let mut primaries = reports.filter(|report| !report.own().slots.is_empty());
    let covered = found.assessment.slots_ok == usize::from(SLOT_COUNT);
    covered && primaries.all(|primary| primary.cluster.ok)
}

fn available(found: &StatusInputs<'_>) -> ConditionUpdate {
    if is_available(found) {
        return ConditionUpdate::yes("Available", "AllSlotsServed", "every slot is served");
    }
    ConditionUpdate::no("Available", "SlotsNotServed", failure_sentence(found))
}

/// Stays True: what was served once may have been written to, and is never created again without the user.
fn formed(before: bool, found: &StatusInputs<'_>) -> ConditionUpdate {
    if before || is_available(found) {
        let message = "every slot has been served once: lost slots are not created again while a volume may hold their keys";
        return ConditionUpdate::yes("Formed", "Formed", message);
    }
    ConditionUpdate::no("Formed", "Forming", failure_sentence(found))
}

fn progressing(found: &StatusInputs<'_>) -> ConditionUpdate {
    if found.shape.paused {
        return ConditionUpdate::no("Progressing", "Paused", "spec.paused is true");
    }
    if let Some(failure) = found.failure {
        return ConditionUpdate::new(
            "Progressing",
            Some(failure.transient),
            failure.reason,
            &failure.message,
        );
    }
    if found.is_healthy() {
        return match found.operation {
            Some(operation) => ConditionUpdate::yes(
                "Progressing",
                under_way(operation.kind),
                operation.progress(),
            ),
            None => ConditionUpdate::no("Progressing", "Settled", "nothing is left to do"),
        };
    }
    if found.plan.is_stuck() {
        return ConditionUpdate::no("Progressing", "Stuck", failure_sentence(found));
    }
    ConditionUpdate::yes("Progressing", "Repairing", failure_sentence(found))
}

/// For kstatus, which does not know `Progressing`.
pub(super) fn reconciling(progressing: &ConditionUpdate) -> ConditionUpdate {
    ConditionUpdate {
        kind: "Reconciling",
        ..progressing.clone()
    }
}

/// For kstatus: not Ready, and the controller does nothing about it.
pub(super) fn stalled(ready: &ConditionUpdate, progressing: &ConditionUpdate) -> ConditionUpdate {
    ConditionUpdate {
        kind: "Stalled",
        holds: Some(ready.holds == Some(false) && progressing.holds == Some(false)),
        ..progressing.clone()
    }
}

fn slots(found: &StatusInputs<'_>) -> ConditionUpdate {
    let (ok, all) = (found.assessment.slots_ok, usize::from(SLOT_COUNT));
    if ok == all {
        return ConditionUpdate::yes(
            "SlotsCovered",
            "AllSlotsCovered",
            "every slot has a living primary",
        );
    }
    let lost = found
        .plan
        .blockers
        .iter()
        .find(|blocker| matches!(blocker, Blocker::SlotsLost { .. }));
    match lost {
        Some(blocker) => ConditionUpdate::no("SlotsCovered", "SlotsLost", blocker.to_string()),
        None => ConditionUpdate::no(
            "SlotsCovered",
            "SlotsUncovered",
            format!("{} of {all} slots have no living primary", all - ok),
        ),
    }
}

fn replication(found: &StatusInputs<'_>) -> ConditionUpdate {
    let wanted = found.shape.replicas;
    let behind: Vec<String> = found
        .assessment
        .shards
        .iter()
        .enumerate()
        .filter(|(_, shard)| !shard.ready)
        .map(|(index, _)| index.to_string())
        .collect();
    if behind.is_empty() {
        return ConditionUpdate::yes(
            "ReplicationHealthy",
            "ReplicasLinked",
            format!("linked replicas of every primary: {wanted}"),
        );
    }
    ConditionUpdate::no(
        "ReplicationHealthy",
        "ReplicasMissing",
        format!(
            "shards without a primary or with fewer than {wanted} linked replicas: {}",
            behind.join(", ")
        ),
    )
}

fn quorum(found: &StatusInputs<'_>) -> ConditionUpdate {
    let (live, all) = found.assessment.quorum;
    if all == 0 {
        return ConditionUpdate::unknown(
            "QuorumHealthy",
            "NotFormed",
            "there are no primaries yet",
        );
    }
    if found.assessment.has_quorum() {
        return ConditionUpdate::yes(
            "QuorumHealthy",
            "MajorityAlive",
            "the majority of the primaries is alive",
        );
    }
    ConditionUpdate::no(
        "QuorumHealthy",
        "MajorityLost",
        format!("only {live} of {all} primaries are alive: replicas cannot be elected"),
    )
}

fn paused(found: &StatusInputs<'_>) -> ConditionUpdate {
    if found.shape.paused {
        ConditionUpdate::yes(
            "Paused",
            "Paused",
            "spec.paused is true: nothing is changed",
        )
    } else {
        ConditionUpdate::no("Paused", "Active", "the controller reconciles this cluster")
    }
}

fn up_to_date(found: &StatusInputs<'_>) -> ConditionUpdate {
    let Some(cluster) = found.cluster else {
        let message = "unknown while the spec is invalid";
        return ConditionUpdate::unknown("UpToDate", "InvalidSpec", message);
    };
    if let Some(refusal) = &cluster.server.refused {
        return ConditionUpdate::no("UpToDate", refusal.reason(), refusal.to_string());
    }
    if let Some((reason, message)) = kept_back(found.gate) {
        return ConditionUpdate::no("UpToDate", reason, message);
    }
    let rollout = found.rollout;
    if !rollout.outdated.is_empty() {
        let pods = names("pod", &rollout.outdated);
        let why = format!(
            "{pods}: made before the last change of image, resources, podTemplate, placement or of a setting that needs a restart"
        );
        return match &rollout.next {
            RolloutStep::Refused { pod } => ConditionUpdate::no(
                "UpToDate",
                "UpdateRefused",
                format!(
                    "{why}, and {pod} has the only copy of its shard's keys, in memory: give the cluster replicas, or delete the \
                     pod if the keys are not needed"
                ),
            ),
            RolloutStep::None
            | RolloutStep::Unwritten { .. }
            | RolloutStep::Replace(_)
            | RolloutStep::HandOver(_) => {
                if rollout.is_automatic {
                    return ConditionUpdate::no("UpToDate", "Updating", why);
                }
                let cure = "delete such pods one at a time, replicas before primaries, each when the cluster is Ready again";
                ConditionUpdate::no("UpToDate", "PodsOutdated", format!("{why}; {cure}"))
            }
        };
    }
    if let Some(sentence) = broken_promise(&cluster.server, found) {
        return ConditionUpdate::no("UpToDate", "VersionMismatch", sentence);
    }
    ConditionUpdate::yes("UpToDate", "UpToDate", "every pod runs what is wanted")
}

fn supported(found: &StatusInputs<'_>) -> ConditionUpdate {
    match found.cluster.map(|cluster| &cluster.server) {
        Some(server) => server.support.condition(server.entry.as_deref()),
        None => VersionSupport::Unlisted.condition(None),
    }
}

/// What the servers are, compared with what the catalog says.
fn broken_promise(server: &Server, found: &StatusInputs<'_>) -> Option<String> {
    let (distribution, version) = server.promised.as_ref()?;
    let family = family(*distribution);
    let entry = server.entry.as_deref().unwrap_or_default();
    let other = found.observed.members.iter().find_map(|member| {
        let server = &member.report()?.server;
        let kept = server.family == family && server.version == *version;
        (!kept).then(|| (member.expected.pod.clone(), server.to_string()))
    });
    let (pod, server) = other?;
    Some(format!(
        "{pod} runs {server}, but the RedisVersion {entry} says {family} {version}: correct the entry, or name another one"
    ))
}

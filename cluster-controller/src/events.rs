//! Events, as data: what was done and why, and when the cluster as a whole changed its state. Pure.

use crate::{
    pods::replace::ReplacePod,
    redis::{
        execute::Done,
        plan::{Action, Assignment},
    },
    status::{HIBERNATED, HIBERNATING, NOT_HEALTHY},
    support,
};
use common::kubernetes::{conditions::find, events::EventNote};
use crds::{CONDITION_CERTIFICATES, CONDITION_USERS, RedisCluster, RedisClusterStatus};

/// The Events of a reconcile. A step that failed makes none: the next reconcile tries again, and a failure that lasts shows in the
/// conditions.
pub fn events(
    object: &RedisCluster,
    status: &RedisClusterStatus,
    done: &[Done],
    replaced: &[ReplacePod],
) -> Vec<EventNote> {
    let formed = crate::status::formed_before(object);
    let steps = done.iter().filter(|one| one.result.is_ok());
    let mut events: Vec<EventNote> = steps
        .filter_map(|one| of_step(&one.step.action, &one.step.reason, formed))
        .collect();
    let pods = replaced.iter();
    events.extend(pods.map(|pod| EventNote::normal("PodReplaced", "Replace", &pod.to_string())));
    let before = object.status.as_ref();
    events.extend(of_phase(
        before.and_then(|one| one.phase.as_deref()),
        status,
    ));
    let parts = [
        ("ConfigApplied", &["SettingRefused", "MemoryExceeded"][..]),
        (CONDITION_USERS, &["RulesRefused", "PasswordMissing"]),
        (
            CONDITION_CERTIFICATES,
            &[
                "SecretNotFound",
                "CertificateRefused",
                "SecretExpired",
                "ExpiresSoon",
                "Expired",
            ],
        ),
    ];
    let refused = parts.into_iter();
    events.extend(refused.filter_map(|part| refused_part(before, status, part)));
    if let Some((reason, words)) = needs_person(status)
        && before.and_then(needs_person).map(|(old, _)| old) != Some(reason)
    {
        events.push(EventNote::warning(reason, "Observe", words));
    }
    events.extend(of_support(before, status));
    events
}

/// Once for each reason why the version should not be run any more.
fn of_support(
    before: Option<&RedisClusterStatus>,
    status: &RedisClusterStatus,
) -> Option<EventNote> {
    let warned = |status: &RedisClusterStatus| {
        let found = find(&status.conditions, support::CONDITION)?;
        (found.status == "False").then(|| (found.reason.clone(), found.message.clone()))
    };
    let (reason, words) = warned(status)?;
    let known = before.and_then(warned);
    let is_new = known.as_ref() != Some(&(reason.clone(), words.clone()));
    is_new.then(|| EventNote::warning(&reason, "Observe", &words))
}

fn of_phase(old: Option<&str>, status: &RedisClusterStatus) -> Option<EventNote> {
    let new = status.phase.as_deref();
    let message = status.message.as_deref().unwrap_or_default();
    match (old, new) {
        _ if old == new => None,
        (Some("Down" | "Degraded"), Some("Ready")) => {
            Some(EventNote::normal("Recovered", "Repair", message))
        }
        (_, Some("Ready")) => Some(EventNote::normal("Ready", "Form", message)),
        (_, Some(HIBERNATED)) => Some(EventNote::normal(HIBERNATED, "Hibernate", message)),
        (_, Some(phase @ ("Down" | "Degraded"))) => {
            Some(EventNote::warning(phase, "Observe", message))
        }
        _ => None,
    }
}

/// A part of the spec that servers refuse, or that is incomplete, while the cluster stays Ready.
fn refused_part(
    before: Option<&RedisClusterStatus>,
    status: &RedisClusterStatus,
    (kind, reasons): (&str, &[&str]),
) -> Option<EventNote> {
    let condition = |status: &RedisClusterStatus| {
        let found = find(&status.conditions, kind)?;
        let is_refused = reasons.contains(&found.reason.as_str());
        is_refused.then(|| (found.reason.clone(), found.message.clone()))
    };
    let (reason, words) = condition(status)?;
    let is_known = before
        .and_then(condition)
        .is_some_and(|(old, _)| old == reason);
    let is_said = needs_person(status).is_some_and(|(said, _)| said == reason);
    (!is_known && !is_said).then(|| EventNote::warning(&reason, "Configure", &words))
}

/// What a person has to do something about, if that is why the cluster is not Ready: reason and words.
fn needs_person(status: &RedisClusterStatus) -> Option<(&str, &str)> {
    let ready = find(&status.conditions, "Ready").filter(|ready| ready.status == "False")?;
    let is_known = [NOT_HEALTHY, HIBERNATED, HIBERNATING].contains(&ready.reason.as_str());
    (!is_known).then_some((&ready.reason, &ready.message))
}

/// None: it changes nothing that a user has asked for.
fn of_step(action: &Action, why: &str, formed: bool) -> Option<EventNote> {
    let is_loss = action.gives_keys_up(formed);
    let note = match action {
        Action::AssignSlots { .. } if is_loss => {
            EventNote::warning("SlotsRecreatedEmpty", "AssignSlots", why)
        }
        Action::AssignSlots {
            how: Assignment::Restored { .. },
            ..
        } => EventNote::normal("SlotsRestored", "AssignSlots", why),
        Action::AssignSlots { .. } => EventNote::normal("SlotsAssigned", "AssignSlots", why),
        Action::Meet { .. } => EventNote::normal("NodesIntroduced", "Meet", why),
        Action::Promote { .. } if is_loss => {
            EventNote::warning("SlotsRecreatedEmpty", "Failover", why)
        }
        Action::Promote { .. } => EventNote::warning("FailoverRequested", "Failover", why),
        Action::HandOver { .. } => EventNote::normal("PrimaryHandedOver", "HandOver", why),
        Action::Admit { .. } => EventNote::normal("ReplicasAdmitted", "Replicate", why),
        Action::Replicate { .. } => EventNote::normal("ReplicaAttached", "Replicate", why),
        Action::Forget { .. } => EventNote::normal("NodeForgotten", "Forget", why),
        Action::RestoreNodeTimeout { .. } | Action::TellClients { .. } => return None,
    };
    Some(note)
}

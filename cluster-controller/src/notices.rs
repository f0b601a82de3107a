//! Events: what was done and why, and when the cluster as a whole changed its state.

use crate::{
    redis::{
        execute::Done,
        plan::{Action, Assignment},
    },
    status::NOT_WHOLE,
};
use common::kubernetes::{conditions::find, events::Events};
use crds::{RedisCluster, RedisClusterStatus};
use kube::{Resource, ResourceExt};

/// Tells of the steps and of a change of phase.
pub fn tell(events: &Events, object: &RedisCluster, status: &RedisClusterStatus, done: &[Done]) {
    let regarding = object.object_ref(&());
    let formed = crate::status::formed_before(object);
    for one in done {
        let (reason, action, alarming) = name(&one.step.action, formed);
        match &one.result {
            Ok(()) if alarming => events.warning(&regarding, reason, action, &one.step.reason),
            // A detail of forming.
            Ok(()) if matches!(one.step.action, Action::Calm { .. }) => {}
            Ok(()) => events.normal(&regarding, reason, action, &one.step.reason),
            // The next pass tries again; a failure that lasts shows in the conditions.
            Err(error) => {
                tracing::info!(step = ?one.step.action, %error, "a step failed");
            }
        }
        let (namespace, name) = (object.namespace(), object.name_any());
        let why = &one.step.reason;
        tracing::info!(namespace, name, reason, why, "a step was tried");
    }
    let before = object.status.as_ref();
    let old = before.and_then(|status| status.phase.as_deref());
    let new = status.phase.as_deref();
    let message = status.message.as_deref().unwrap_or_default();
    if old != new {
        match (old, new) {
            (Some("Down" | "Degraded"), Some("Ready")) => {
                events.normal(&regarding, "Recovered", "Heal", message);
            }
            (_, Some("Ready")) => events.normal(&regarding, "Ready", "Form", message),
            (_, Some(phase @ ("Down" | "Degraded"))) => {
                events.warning(&regarding, phase, "Observe", message);
            }
            _ => {}
        }
    }
    if let Some((reason, words)) = needs_person(status)
        && before.and_then(needs_person).map(|(old, _)| old) != Some(reason)
    {
        events.warning(&regarding, reason, "Observe", words);
    }
}

/// What a person has to do something about, if that is why the cluster is not Ready: reason and words.
fn needs_person(status: &RedisClusterStatus) -> Option<(&str, &str)> {
    let ready = find(&status.conditions, "Ready").filter(|ready| ready.status == "False")?;
    (ready.reason != NOT_WHOLE).then_some((&ready.reason, &ready.message))
}

/// Reason, action, and whether it deserves a warning.
fn name(action: &Action, formed: bool) -> (&'static str, &'static str, bool) {
    match action {
        Action::AssignSlots { how, .. } => match how {
            Assignment::Recreated { .. } => ("SlotsRecreatedEmpty", "AssignSlots", true),
            Assignment::Alone { .. } | Assignment::Joined if formed => {
                ("SlotsRecreatedEmpty", "AssignSlots", true)
            }
            Assignment::Alone { .. } | Assignment::Joined => {
                ("SlotsAssigned", "AssignSlots", false)
            }
        },
        Action::Meet { .. } => ("NodesIntroduced", "Meet", false),
        Action::Promote { .. } => ("FailoverRequested", "Failover", true),
        Action::Replicate { .. } => ("ReplicaAttached", "Replicate", false),
        Action::Forget { .. } => ("NodeForgotten", "Forget", false),
        Action::Calm { .. } => ("TimeoutRestored", "Configure", false),
    }
}

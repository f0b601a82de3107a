//! How soon to look at a cluster again: often while something happens, seldom when nothing has happened for long. Pure.

use crate::{
    pods::{changed, started},
    redis::{member::Answer, plan::Blocker},
    serving::is_awaited,
    status::{HIBERNATED, HIBERNATING, StatusInputs},
};
use common::kubernetes::{conditions::find, outcome::Outcome};
use crds::RedisClusterStatus;
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

/// While something may change at any moment: Redis changes raise no Kubernetes event, so they are polled.
pub const SOON: Duration = Duration::from_millis(300);
/// After nodes were introduced or given a role: the servers exchange that every 100 ms (`clusterCron` in the engine's `cluster.c`), and the
/// next step waits for it.
const NEXT: Duration = Duration::from_millis(100);
/// While it takes longer than it should.
const LATER: Duration = Duration::from_secs(2);
/// When it has taken so long that it will hardly end by itself. Pods that come up still trigger a reconcile at once.
const SELDOM: Duration = Duration::from_secs(10);
/// When nothing is to be done, or nothing can be done but by a person.
const IDLE: Duration = Duration::from_secs(30);
/// The shortest interval of a healthy cluster. Its pods' readiness depends on it: a replica that loses its link raises no event.
const HEALTHY: Duration = Duration::from_secs(5);
/// The interval of a healthy cluster for each of its nodes, up to [`IDLE`]: a large cluster costs no more a second than a small one.
const HEALTHY_PER_NODE: Duration = Duration::from_millis(60);

/// So long after the last event everything is looked at closely.
const CLOSELY: Duration = Duration::from_mins(1);
/// So long after the last event there is still hope.
const HOPE: Duration = Duration::from_mins(10);

/// The outcome of a reconcile without a failure.
pub fn outcome(status: &RedisClusterStatus, found: &StatusInputs<'_>, now: Timestamp) -> Outcome {
    if found.shape.hibernate {
        return if found.observed.pods.is_empty() {
            Outcome::waiting(HIBERNATED, IDLE)
        } else {
            Outcome::progressing(HIBERNATING, LATER)
        };
    }
    if found.shape.paused && found.is_healthy() {
        return Outcome::waiting("Paused", healthy(found));
    }
    if found.is_healthy() && found.plan.steps.is_empty() {
        return match found.operation {
            Some(operation) if operation.waits => Outcome::progressing("Updating", LATER),
            Some(_) => Outcome::progressing("Updating", SOON),
            None => Outcome::settled(healthy(found)),
        };
    }
    if found.is_healthy() {
        return Outcome::progressing("Spreading", SOON);
    }
    let delay = delay(status, found, now);
    if found.shape.paused {
        return Outcome::waiting("Paused", delay.max(LATER));
    }
    if found.plan.steps.is_empty() {
        Outcome::waiting("Converging", delay)
    } else if delay == SOON && found.plan.only_joins() {
        Outcome::progressing("Repairing", NEXT)
    } else {
        Outcome::progressing("Repairing", delay)
    }
}

/// The outcome where the spec could not be acted upon: what is refused is tried again, but not several times a second.
pub fn failed(
    reason: &'static str,
    status: &RedisClusterStatus,
    found: &StatusInputs<'_>,
    now: Timestamp,
) -> Outcome {
    let none_answers = found
        .observed
        .members
        .iter()
        .all(|member| member.report().is_none());
    let delay = if is_awaited(&found.observed.members) {
        delay(status, found, now).max(LATER)
    } else if found.shape.paused || found.is_healthy() || none_answers {
        // A pod that starts triggers a reconcile at once.
        IDLE
    } else if found.plan.steps.is_empty() {
        delay(status, found, now).max(SELDOM)
    } else {
        delay(status, found, now).max(LATER)
    };
    Outcome::waiting(reason, delay)
}

fn healthy(found: &StatusInputs<'_>) -> Duration {
    let nodes = u32::try_from(found.observed.members.len()).unwrap_or(u32::MAX);
    HEALTHY_PER_NODE.saturating_mul(nodes).clamp(HEALTHY, IDLE)
}

fn delay(status: &RedisClusterStatus, found: &StatusInputs<'_>, now: Timestamp) -> Duration {
    let age = last_event(status, found).map_or(Duration::ZERO, |last| {
        now.duration_since(last).unsigned_abs()
    });
    let members = &found.observed.members;
    let any_answers = members.iter().any(|member| member.report().is_some());
    // The pods that are waited for raise an event when they start, and until then nothing changes in Redis.
    if waits_for_pods(found) {
        return LATER;
    }
    // The end of loading raises no event, and then every moment counts. Where it takes long, seconds do.
    let mut loading = members
        .iter()
        .filter(|member| member.answer == Answer::Loading)
        .map(|member| &member.expected)
        .peekable();
    if loading.peek().is_some() {
        let takes_long = loading.all(|expected| expected.why_loading.is_some());
        return if takes_long { LATER } else { SOON };
    }
    if age < CLOSELY {
        return if any_answers { SOON } else { LATER };
    }
    if found.plan.is_stuck() {
        return IDLE;
    }
    // As long as there is something to try, it is tried steadily; and a replica that comes to be linked after a long copy is to be ready.
    if age < HOPE || !found.plan.steps.is_empty() || is_awaited(members) {
        LATER
    } else {
        SELDOM
    }
}

/// Whether a cluster that has yet to be formed only waits for pods that have no address.
fn waits_for_pods(found: &StatusInputs<'_>) -> bool {
    let plan = found.plan;
    let mut members = found.observed.members.iter();
    plan.steps.is_empty()
        && matches!(plan.blockers.as_slice(), [Blocker::WaitingForNodes { .. }])
        && members.any(|member| member.expected.address.is_none())
}

/// When it stopped being Ready, or when the last container started or became ready or unready if that was later.
fn last_event(status: &RedisClusterStatus, found: &StatusInputs<'_>) -> Option<Timestamp> {
    let ready = find(&status.conditions, "Ready").map(|ready| ready.last_transition_time.0);
    let pods = found.observed.pods.values();
    let events = pods.flat_map(|pod| [started(pod), changed(pod)]).flatten();
    events.chain(ready).max()
}

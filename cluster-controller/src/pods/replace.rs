//! Pods that are to be replaced by new ones: which, and why. Pure.

use super::{gate_closed, is_terminating, kubernetes_node, server};
use crate::pods::Pods;
use k8s_openapi::{
    api::core::v1::{ContainerStateTerminated, Pod},
    jiff::Timestamp,
};
use std::{fmt, time::Duration};

/// A run of this length has served: what ended it was not what it was started with.
const SERVED: Duration = Duration::from_secs(10);
/// The back-off begins with 10 s and doubles with each restart: before this many, waiting is as quick.
const RESTARTS: i32 = 3;
/// A younger pod is not replaced: so often at most is the same pod replaced again.
const YOUNGEST: Duration = Duration::from_mins(1);
/// Exit status of a process that was ended by SIGKILL.
const KILLED: i32 = 137;

/// A pod to be deleted, so that its StatefulSet creates a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplacePod {
    /// Name of the pod.
    pub pod: String,
    /// Its uid: a pod that was replaced meanwhile is left alone.
    pub uid: String,
    /// Shown in the Event and in the log.
    pub reason: ReplaceReason,
}

/// Why a pod is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplaceReason {
    /// Its container waits in the back-off of crashes although its runs served until they were killed.
    BackOff,
    /// It was created from an older template.
    Outdated,
}

impl fmt::Display for ReplacePod {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pod, reason, .. } = self;
        match reason {
            ReplaceReason::BackOff => write!(
                out,
                "pod {pod} waits in CrashLoopBackOff although its server served until it was killed: a new pod starts at once"
            ),
            ReplaceReason::Outdated => write!(out, "pod {pod} was created from an older template"),
        }
    }
}

/// Pods that a back-off keeps from coming back. Nothing is lost by a new pod: the process is gone, the volume stays, and what was in
/// memory is lost already. A server that was ended for its memory, that refuses its configuration or that ends by itself is never
/// hurried. `outdated`: pods in whose place another one would come, which may not run: they wait for their turn.
pub fn kept_by_back_off(pods: &Pods, outdated: &[String], now: Timestamp) -> Vec<ReplacePod> {
    let mut found: Vec<ReplacePod> = pods
        .iter()
        .filter(|(name, pod)| !outdated.contains(name) && is_kept_by_back_off(pod, now))
        .filter_map(|(name, pod)| {
            Some(ReplacePod {
                pod: name.clone(),
                uid: pod.metadata.uid.clone()?,
                reason: ReplaceReason::BackOff,
            })
        })
        .collect();
    found.sort_unstable_by(|a, b| a.pod.cmp(&b.pod));
    found
}

fn is_kept_by_back_off(pod: &Pod, now: Timestamp) -> bool {
    let created = pod.metadata.creation_timestamp.as_ref();
    let is_old = created.is_some_and(|created| {
        now >= created.0 && now.duration_since(created.0).unsigned_abs() >= YOUNGEST
    });
    let Some(container) = server(pod) else {
        return false;
    };
    let waiting = container
        .state
        .as_ref()
        .and_then(|state| state.waiting.as_ref());
    let backs_off =
        waiting.is_some_and(|waiting| waiting.reason.as_deref() == Some("CrashLoopBackOff"));
    let last = container.last_state.as_ref();
    let ended = last.and_then(|last| last.terminated.as_ref());
    is_old
        && backs_off
        && !is_terminating(pod)
        && kubernetes_node(pod).is_some()
        && container.restart_count >= RESTARTS
        && ended.is_some_and(|run| was_killed_while_serving(run, gate_closed(pod)))
}

/// `gate_closed`: when the pod stopped to serve. After the end of a run, however short: this run had served.
fn was_killed_while_serving(
    run: &ContainerStateTerminated,
    gate_closed: Option<Timestamp>,
) -> bool {
    let killed = run.exit_code == KILLED && run.reason.as_deref() != Some("OOMKilled");
    let (started, finished) = (run.started_at.as_ref(), run.finished_at.as_ref());
    let was_long = started.zip(finished).is_some_and(|(started, finished)| {
        finished.0 >= started.0 && finished.0.duration_since(started.0).unsigned_abs() >= SERVED
    });
    let served = gate_closed
        .zip(finished)
        .is_some_and(|(closed, finished)| closed >= finished.0);
    killed && (was_long || served)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::{CONDITION_SERVING, CONTAINER};
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn pod(change: impl Fn(&mut Value)) -> Pods {
        let mut pod = json!({
            "metadata": {"name": "shop-0-0", "uid": "uid", "creationTimestamp": "2026-01-01T09:00:00Z"},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"containerStatuses": [{"name": CONTAINER, "image": "", "imageID": "", "ready": false, "restartCount": 5,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 137, "reason": "Error", "startedAt": "2026-01-01T09:59:00Z",
                                             "finishedAt": "2026-01-01T09:59:24Z"}}}]},
        });
        change(&mut pod);
        let pod: Pod = serde_json::from_value(pod).unwrap();
        [("shop-0-0".to_owned(), Arc::new(pod))].into()
    }

    fn replaced(change: impl Fn(&mut Value)) -> bool {
        let now = "2026-01-01T10:00:00Z".parse().unwrap();
        !kept_by_back_off(&pod(change), &[], now).is_empty()
    }

    #[test]
    fn a_pod_killed_while_it_served_is_replaced() {
        let now = "2026-01-01T10:00:00Z".parse().unwrap();
        let found = kept_by_back_off(&pod(|_| {}), &[], now);
        let [one] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!((one.pod.as_str(), one.uid.as_str()), ("shop-0-0", "uid"));
        assert_eq!(one.reason, ReplaceReason::BackOff);
    }

    /// Its StatefulSet has another template by now, which may not run, or which the user brings to pods by hand.
    #[test]
    fn a_pod_of_an_older_template_waits_for_its_turn() {
        let now = "2026-01-01T10:00:00Z".parse().unwrap();
        let outdated = ["shop-0-0".to_owned()];
        assert!(kept_by_back_off(&pod(|_| {}), &outdated, now).is_empty());
    }

    /// The gate was open until the end of the run, and closed then.
    #[test]
    fn a_short_run_that_served_counts_as_well() {
        let closed = |at: &'static str| {
            replaced(|pod| {
                let status = &mut pod["status"];
                let run = &mut status["containerStatuses"][0]["lastState"]["terminated"];
                run["startedAt"] = "2026-01-01T09:59:20Z".into();
                status["conditions"] = json!([{"type": CONDITION_SERVING, "status": "False", "lastTransitionTime": at}]);
            })
        };
        assert!(closed("2026-01-01T09:59:25Z"));
        assert!(!closed("2026-01-01T09:59:10Z"), "of an earlier run");
    }

    #[test]
    fn what_fails_by_itself_is_not_hurried() {
        let status = |pod: &mut Value| pod["status"]["containerStatuses"][0].take();
        let with = |change: fn(&mut Value)| {
            replaced(|pod| {
                let mut container = status(pod);
                change(&mut container);
                pod["status"]["containerStatuses"][0] = container;
            })
        };
        assert!(with(|_| {}));
        // Memory, a refused configuration, a run that never served, a container that is about to start, few restarts.
        assert!(!with(
            |one| one["lastState"]["terminated"]["reason"] = "OOMKilled".into()
        ));
        assert!(!with(
            |one| one["lastState"]["terminated"]["exitCode"] = 1.into()
        ));
        assert!(!with(
            |one| one["lastState"]["terminated"]["startedAt"] = "2026-01-01T09:59:20Z".into()
        ));
        assert!(!with(
            |one| one["state"] = json!({"waiting": {"reason": "ContainerCreating"}})
        ));
        assert!(!with(|one| one["state"] = json!({"running": {}})));
        assert!(!with(|one| one["restartCount"] = 2.into()));
        assert!(!replaced(
            |pod| pod["metadata"]["creationTimestamp"] = "2026-01-01T09:59:30Z".into()
        ));
        assert!(!replaced(
            |pod| pod["metadata"]["deletionTimestamp"] = "2026-01-01T10:00:00Z".into()
        ));
    }
}

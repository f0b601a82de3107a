//! Whether a pod will ever start its server. Pure.

use super::{is_terminating, is_unscheduled, kubernetes_node, server};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use std::time::Duration;

/// A container that has not started this long after its pod was created is kept from it by something that waiting does not end.
pub const STARTED_BY: Duration = Duration::from_mins(1);

/// Whether it has found its Kubernetes node, and its container has yet to be created.
pub fn is_being_created(pod: &Pod) -> bool {
    let state = server(pod).and_then(|container| container.state.as_ref());
    let waiting = state.and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
    kubernetes_node(pod).is_some()
        && !is_terminating(pod)
        && (state.is_none() || reason == Some("ContainerCreating"))
}

/// Whether no server runs in it, and none will as it is: it finds no room, its image cannot be pulled, its container ends at once, or it has not
/// started for so long.
pub fn cannot_start(pod: &Pod, patience: Duration, now: Timestamp) -> bool {
    if is_unscheduled(pod) {
        return true;
    }
    let state = server(pod).and_then(|container| container.state.as_ref());
    if state.is_some_and(|state| state.running.is_some() || state.terminated.is_some()) {
        return false;
    }
    let waiting = state.and_then(|state| state.waiting.as_ref());
    match waiting.and_then(|waiting| waiting.reason.as_deref()) {
        // How every container begins.
        Some("ContainerCreating" | "PodInitializing") | None => {
            let created = pod.metadata.creation_timestamp.as_ref();
            created.is_some_and(|created| {
                now >= created.0 && now.duration_since(created.0).unsigned_abs() >= patience
            })
        }
        Some(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn starts(status: &Value) -> bool {
        let pod =
            json!({"metadata": {"creationTimestamp": "2026-01-01T10:00:00Z"}, "status": status});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let now = "2026-01-01T10:00:30Z".parse().unwrap();
        !cannot_start(&pod, Duration::from_mins(1), now)
    }

    fn container_is(state: &Value) -> Value {
        json!({"containerStatuses": [{"name": crds::CONTAINER, "image": "", "imageID": "", "ready": false,
                                      "restartCount": 0, "state": state}]})
    }

    #[test]
    fn a_pod_that_waits_for_a_correction_does_not_start() {
        for reason in [
            "ErrImagePull",
            "ImagePullBackOff",
            "CrashLoopBackOff",
            "InvalidImageName",
        ] {
            let waiting = container_is(&json!({"waiting": {"reason": reason}}));
            assert!(!starts(&waiting), "{reason}");
        }
        let unscheduled = json!({"conditions": [{"type": "PodScheduled", "status": "False"}]});
        assert!(!starts(&unscheduled));
    }

    #[test]
    fn a_pod_that_is_starting_or_runs_starts() {
        let creating = container_is(&json!({"waiting": {"reason": "ContainerCreating"}}));
        let running = container_is(&json!({"running": {"startedAt": "2026-01-01T10:00:10Z"}}));
        assert!(starts(&json!({})) && starts(&creating) && starts(&running));
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"creationTimestamp": "2026-01-01T09:00:00Z"}, "status": creating}))
        .unwrap();
        let now = "2026-01-01T10:00:30Z".parse().unwrap();
        assert!(
            cannot_start(&pod, Duration::from_mins(1), now),
            "for an hour"
        );
    }
}

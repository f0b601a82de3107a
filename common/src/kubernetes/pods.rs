//! The address of a pod, and whether it is still its own. Pure.

use crds::CONTAINER;
use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod},
    jiff::Timestamp,
};
use std::net::IpAddr;

/// Its address. None where that may be another pod's by now: of a pod that has ended, or is being deleted and runs no more. Where it is
/// given, a server of another pod may still answer there: the status of a pod on a Kubernetes node that is cut off stays as it was.
pub fn ip(pod: &Pod) -> Option<IpAddr> {
    let status = pod.status.as_ref()?;
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if ended || (is_terminating(pod) && started(pod).is_none()) {
        return None;
    }
    status.pod_ip.as_deref()?.parse().ok()
}

/// Whether it is being deleted.
pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// The server's container.
pub fn server(pod: &Pod) -> Option<&ContainerStatus> {
    let all = pod.status.as_ref()?.container_statuses.as_ref()?;
    all.iter().find(|container| container.name == CONTAINER)
}

/// Since when the server's container runs.
pub fn started(pod: &Pod) -> Option<Timestamp> {
    let running = server(pod)?.state.as_ref()?.running.as_ref()?;
    running.started_at.as_ref().map(|time| time.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(metadata: &Value, status: &Value) -> Pod {
        serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
    }

    #[test]
    fn a_pod_that_has_ended_has_no_address() {
        let terminating = json!({"deletionTimestamp": "2026-01-01T10:00:00Z"});
        let stays = json!({});
        let running = json!([{"name": CONTAINER, "image": "", "imageID": "", "ready": false, "restartCount": 1,
                              "state": {"running": {"startedAt": "2026-01-01T09:00:00Z"}}}]);
        let runs = json!({"phase": "Running", "podIP": "10.0.0.7", "containerStatuses": running});
        let ends = json!({"phase": "Running", "podIP": "10.0.0.7"});
        let ended = json!({"phase": "Failed", "podIP": "10.0.0.7"});
        assert!(ip(&pod(&stays, &runs)).is_some());
        assert!(ip(&pod(&terminating, &runs)).is_some());
        assert!(ip(&pod(&stays, &ends)).is_some());
        assert!(ip(&pod(&terminating, &ends)).is_none());
        assert!(ip(&pod(&stays, &ended)).is_none());
    }
}

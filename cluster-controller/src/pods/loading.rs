//! Why a server takes so long to load its data, as far as Kubernetes knows. Pure.

use super::{ends_for_memory, started};
use k8s_openapi::{
    api::core::v1::Pod,
    jiff::{SignedDuration, Timestamp},
};

/// How long a server has been loading, the longest first: words that change seldom. Loading has no time limit, so that nothing ends a large
/// one; 10 minutes are enough for about 50 GB of a snapshot, or 20 GB of an append-only file.
const STEPS: [(SignedDuration, &str); 4] = [
    (SignedDuration::from_hours(24), "a day"),
    (SignedDuration::from_hours(6), "6 hours"),
    (SignedDuration::from_hours(1), "an hour"),
    (SignedDuration::from_mins(10), "10 minutes"),
];

/// Why the server of this pod, which is loading, is not through with it; with the cure. None: it has not taken long yet.
pub fn why_loading(pod: &Pod, now: Timestamp) -> Option<String> {
    if let Some(times) = ends_for_memory(pod) {
        return Some(format!(
            "again: OOMKilled {times} times; raise spec.resources.limits.memory"
        ));
    }
    let since = now.duration_since(started(pod)?);
    let (_, words) = STEPS.into_iter().find(|(limit, _)| since >= *limit)?;
    Some(format!(
        "for more than {words}; loading_loaded_perc in redis-cli info says how far it is: if that stands still, see kubectl logs"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn why(last: &Value, restarts: i32, now: &str) -> Option<String> {
        let pod: Pod = serde_json::from_value(json!({"status": {"containerStatuses": [
            {"name": crds::CONTAINER, "image": "", "imageID": "", "ready": false, "restartCount": restarts,
             "state": {"running": {"startedAt": "2026-01-01T10:00:00Z"}}, "lastState": last}]}}))
        .unwrap();
        why_loading(&pod, now.parse().unwrap())
    }

    #[test]
    fn loading_for_long_is_named_in_steps() {
        let at = |now| why(&json!({}), 0, now);
        assert_eq!(at("2026-01-01T10:09:59Z"), None);
        let ten = at("2026-01-01T10:10:00Z").unwrap();
        assert!(ten.starts_with("for more than 10 minutes; "), "{ten}");
        // The same words for most of the time: the status is not written again and again.
        assert_eq!(at("2026-01-01T10:59:59Z"), Some(ten));
        let hour = at("2026-01-01T11:00:00Z").unwrap();
        assert!(
            hour.contains("an hour") && hour.contains("kubectl logs"),
            "{hour}"
        );
        assert!(at("2026-01-09T10:00:00Z").unwrap().contains("a day"));
    }

    /// It loads, is ended for its memory, and loads again.
    #[test]
    fn an_out_of_memory_loop_is_named_while_loading() {
        let killed = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
        assert_eq!(
            why(&killed, 4, "2026-01-01T10:00:05Z").unwrap(),
            "again: OOMKilled 4 times; raise spec.resources.limits.memory"
        );
        // Once is no loop, and another end is none for memory.
        assert_eq!(why(&killed, 1, "2026-01-01T10:00:05Z"), None);
        let other = json!({"terminated": {"exitCode": 137, "reason": "Error"}});
        assert_eq!(why(&other, 4, "2026-01-01T10:00:05Z"), None);
    }
}

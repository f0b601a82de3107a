//! The conditions by which kstatus, and with it Argo CD and Flux, reads objects of every kind alike: `Ready`, `Reconciling` and
//! `Stalled`. [`conditions`] sets them, [`evaluate`] reads them as the library does.

use super::conditions::ConditionUpdate;
use serde_json::Value;

/// How far the controller is with what an object asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Everything is as the spec asks.
    Done,
    /// The controller works on it, or waits for something that may come.
    UnderWay,
    /// It goes on only when a person changes something.
    Stalled,
}

/// The three conditions, with the same reason and message.
pub fn conditions(
    completion: Completion,
    reason: &'static str,
    message: &str,
) -> [ConditionUpdate; 3] {
    [
        ("Ready", completion == Completion::Done),
        ("Reconciling", completion == Completion::UnderWay),
        ("Stalled", completion == Completion::Stalled),
    ]
    .map(|(kind, holds)| ConditionUpdate::new(kind, Some(holds), reason, message))
}

/// What kstatus says of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kstatus {
    /// Not there yet.
    InProgress,
    /// As desired.
    Current,
    /// It stays as it is until a person acts.
    Failed,
    /// Being deleted.
    Terminating,
}

/// What kstatus says of a custom resource, given as JSON. The same rules in the same order as `pkg/kstatus/status` of
/// kubernetes-sigs/cli-utils: an object without status is current, a status of another generation is not read.
pub fn evaluate(object: &Value) -> Kstatus {
    if object.pointer("/metadata/deletionTimestamp").is_some() {
        return Kstatus::Terminating;
    }
    let generation = |path| object.pointer(path).and_then(Value::as_i64);
    let observed = generation("/status/observedGeneration");
    let wanted = generation("/metadata/generation");
    if observed.is_some() && wanted.is_some() && observed != wanted {
        return Kstatus::InProgress;
    }
    let list = object.pointer("/status/conditions");
    let conditions: Vec<(&str, &str)> = list
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|one| Some((one.get("type")?.as_str()?, one.get("status")?.as_str()?)))
        .collect();
    for condition in &conditions {
        match *condition {
            ("Reconciling", "True") => return Kstatus::InProgress,
            ("Stalled", "True") => return Kstatus::Failed,
            _ => {}
        }
    }
    if conditions.contains(&("Ready", "False")) || conditions.contains(&("Ready", "Unknown")) {
        return Kstatus::InProgress;
    }
    Kstatus::Current
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::conditions::merge;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    fn read(generation: i64, status: &Value) -> Kstatus {
        evaluate(&json!({"metadata": {"generation": generation}, "status": status}))
    }

    #[test]
    fn each_completion_is_read_as_it_is_meant() {
        for (completion, expected) in [
            (Completion::Done, Kstatus::Current),
            (Completion::UnderWay, Kstatus::InProgress),
            (Completion::Stalled, Kstatus::Failed),
        ] {
            let updates = conditions(completion, "Reason", "message");
            let merged = merge(&[], &updates, Some(2), Timestamp::UNIX_EPOCH);
            let status = json!({"observedGeneration": 2, "conditions": merged});
            assert_eq!(read(2, &status), expected, "{completion:?}");
            assert_eq!(read(3, &status), Kstatus::InProgress, "{completion:?}");
        }
    }

    #[test]
    fn an_object_is_current_until_it_says_otherwise() {
        assert_eq!(read(1, &Value::Null), Kstatus::Current);
        assert_eq!(
            read(1, &json!({"observedGeneration": -1})),
            Kstatus::InProgress
        );
        let deleted = json!({"metadata": {"deletionTimestamp": "2026-11-25T00:00:00Z"}});
        assert_eq!(evaluate(&deleted), Kstatus::Terminating);
    }
}

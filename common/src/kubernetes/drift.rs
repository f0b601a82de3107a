//! Whether an object of the server still shows every field that we applied.
//!
//! The applied hash says that our intent has not changed; this says that no other client changed the object.

use serde_json::Value;

/// Whether `observed` contains all of `wanted`. What the server adds (defaults, status, injected members) does not count; an
/// empty, zero or false value equals an absent one; quantities are compared by value, because the server rewrites them.
pub fn contains(wanted: &Value, observed: &Value) -> bool {
    match (wanted, observed) {
        (Value::Object(wanted), Value::Object(observed)) => wanted
            .iter()
            .all(|(key, value)| contains_member(key, value, observed.get(key))),
        (Value::Array(wanted), Value::Array(observed)) => {
            wanted.len() == observed.len()
                && wanted.iter().zip(observed).all(|(w, o)| contains(w, o))
        }
        (Value::String(wanted), Value::String(observed)) => {
            wanted == observed || same_quantity(wanted, observed)
        }
        (Value::Number(wanted), Value::Number(observed)) => {
            wanted == observed || wanted.as_f64() == observed.as_f64()
        }
        (wanted, observed) => wanted == observed,
    }
}

fn contains_member(key: &str, wanted: &Value, observed: Option<&Value>) -> bool {
    let Some(observed) = observed else {
        return is_nothing(wanted);
    };
    // Sets that others may add to.
    if let ("ownerReferences" | "finalizers", Some(wanted), Some(observed)) =
        (key, wanted.as_array(), observed.as_array())
    {
        return wanted
            .iter()
            .all(|w| observed.iter().any(|o| contains(w, o)));
    }
    (is_nothing(wanted) && is_nothing(observed)) || contains(wanted, observed)
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(items) => items.iter().all(is_nothing),
        Value::Object(members) => members.values().all(is_nothing),
    }
}

fn same_quantity(a: &str, b: &str) -> bool {
    match (quantity(a), quantity(b)) {
        (Some(a), Some(b)) => a == b,
        (None, _) | (_, None) => false,
    }
}

/// A Kubernetes quantity in thousand-millionths, as far as it is exact: digits, at most one point, a suffix
/// (<https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>). The suffix E is not the exponent of `12E3`,
/// which is not read.
pub fn quantity(text: &str) -> Option<i128> {
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(split)?;
    let unit: i128 = match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => ONE,
        "k" => ONE * 1_000,
        "M" => ONE * 1_000_000,
        "G" => ONE * 1_000_000_000,
        "T" => ONE * 1_000_000_000_000,
        "P" => ONE * 1_000_000_000_000_000,
        "E" => ONE * 1_000_000_000_000_000_000,
        "Ki" => ONE << 10,
        "Mi" => ONE << 20,
        "Gi" => ONE << 30,
        "Ti" => ONE << 40,
        "Pi" => ONE << 50,
        "Ei" => ONE << 60,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let scaled = digits.checked_mul(unit)?;
    (scaled % scale == 0).then(|| scaled / scale)
}

/// The quantity `1`.
const ONE: i128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn defaults_of_the_server_are_no_drift() {
        let wanted = json!({"spec": {"replicas": 2, "template": {"containers": [
            {"name": "redis", "env": [], "resources": {"limits": {"cpu": "0.5", "memory": "1024Mi"}}}
        ]}}});
        let observed = json!({"spec": {"replicas": 2, "revisionHistoryLimit": 10, "template": {"containers": [
            {"name": "redis", "imagePullPolicy": "IfNotPresent", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}
        ], "dnsPolicy": "ClusterFirst"}}, "status": {"replicas": 2}});
        assert!(contains(&wanted, &observed));
    }

    #[test]
    fn edits_are_drift() {
        let wanted = json!({"spec": {"replicas": 2, "ports": [{"port": 6379}]}});
        for observed in [
            json!({"spec": {"replicas": 3, "ports": [{"port": 6379}]}}),
            json!({"spec": {"replicas": 2, "ports": [{"port": 6379}, {"port": 1}]}}),
            json!({"spec": {"replicas": 2}}),
            json!({"spec": {"replicas": 2, "ports": [{"port": 1}]}}),
        ] {
            assert!(!contains(&wanted, &observed), "{observed}");
        }
    }

    #[test]
    fn a_scaled_down_zero_is_seen() {
        assert!(!contains(&json!({"replicas": 0}), &json!({"replicas": 1})));
        assert!(contains(&json!({"replicas": 0}), &json!({})));
        assert!(contains(&json!({"publishNotReady": false}), &json!({})));
    }

    #[test]
    fn others_may_add_owners_and_finalizers() {
        assert!(contains(
            &json!({"ownerReferences": [{"uid": "a"}]}),
            &json!({"ownerReferences": [{"uid": "b"}, {"uid": "a", "controller": true}]})
        ));
    }

    #[test]
    fn quantities_are_numbers_and_other_words_are_not() {
        assert!(same_quantity("1.5Gi", "1536Mi"));
        assert!(same_quantity("1", "1000m"));
        assert!(same_quantity("0.0005", "500u"));
        assert!(same_quantity("0.5u", "500n"));
        assert!(same_quantity("1P", "1000T"));
        assert!(same_quantity("0.5E", "500P"));
        assert!(same_quantity("1Pi", "1024Ti"));
        assert!(same_quantity("1.5Ei", "1536Pi"));
        assert!(!same_quantity("1E", "1Ei"));
        assert!(!same_quantity("1", "1Ki"));
        assert!(!same_quantity("10s", "10"));
        assert!(!same_quantity("redis", "redis2"));
        assert!(!same_quantity("..", "1"));
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-3..3i64).prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 3, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map("[a-c]", inner, 0..3)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_value_contains_itself(value in value()) {
            prop_assert!(contains(&value, &value));
        }

        #[test]
        fn additions_are_no_drift(value in value()) {
            let wanted = json!({"a": value.clone()});
            let observed = json!({"a": value, "added": {"by": "server"}});
            prop_assert!(contains(&wanted, &observed));
        }
    }
}

//! Hashes of what was rendered: canonical JSON, SHA-256, `v1-` and the first 16 bytes in hex.

use crate::hexadecimal::short_hash;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The hash of a value's canonical JSON: keys sorted, nulls dropped, no white space.
///
/// The prefix names the form: a change of the form must not look like a change of the content.
pub fn canonical_hash<T: Serialize>(value: &T) -> Result<String, serde_json::Error> {
    Ok(hash_value(&serde_json::to_value(value)?))
}

/// [`canonical_hash`] of a JSON value.
pub fn hash_value(value: &Value) -> String {
    let mut text = String::new();
    write_canonical(value, &mut text);
    let digest = Sha256::digest(text.as_bytes());
    short_hash(&digest)
}

/// Canonical JSON text. Keys are sorted here because the order of `serde_json`'s map depends on a feature that any crate
/// in the tree can switch on.
fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(members) => {
            let mut present: Vec<_> = members.iter().filter(|(_, v)| !v.is_null()).collect();
            present.sort_unstable_by_key(|(key, _)| *key);
            out.push('{');
            for (position, (key, member)) in present.into_iter().enumerate() {
                if position > 0 {
                    out.push(',');
                }
                out.push_str(&Value::String(key.clone()).to_string());
                out.push(':');
                write_canonical(member, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (position, item) in items.iter().enumerate() {
                if position > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            out.push_str(&value.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Changing this value rewrites every child object of every cluster once: decide it, do not let it happen.
    #[test]
    fn the_form_is_pinned() {
        let value = json!({"b": [1, null, "x\n"], "a": {"z": null, "y": true}, "n": null});
        let mut text = String::new();
        write_canonical(&value, &mut text);
        assert_eq!(text, r#"{"a":{"y":true},"b":[1,null,"x\n"]}"#);
        assert_eq!(hash_value(&value), "v1-2c6db981064e8049c80de216f1bcf449");
    }

    proptest! {
        #[test]
        fn order_and_nulls_do_not_matter(members in proptest::collection::btree_map("[a-z]{1,4}", 0..9i32, 0..6)) {
            let forward: serde_json::Map<String, Value> =
                members.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            let mut backward: serde_json::Map<String, Value> =
                members.iter().rev().map(|(k, v)| (k.clone(), json!(v))).collect();
            backward.insert("nothing".into(), Value::Null);
            prop_assert_eq!(hash_value(&forward.into()), hash_value(&backward.into()));
        }

        #[test]
        fn content_matters(a in "[a-z]{1,6}", b in "[a-z]{1,6}") {
            prop_assert_eq!(a == b, hash_value(&json!({"k": &a})) == hash_value(&json!({"k": &b})));
        }
    }
}

//! Whether an object of the server still shows every field that we applied.

use serde_json::Value;

/// Whether `observed` contains all of `wanted`. What the server adds (defaults, status, injected fields) does not count;
/// an empty or zero value equals an absent one; quantities are compared by value.
pub fn contains(wanted: &Value, observed: &Value) -> bool {
    todo!()
}

//! Types that more than one resource uses.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::Rule;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// A reference to an object of a known kind in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalRef {
    /// Name of the object.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,
}

/// What happens to stored data when the object that describes it is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// The data is kept.
    #[default]
    Retain,
    /// The data is deleted together with the object.
    Delete,
}

/// A length of time as Go and Kubernetes write it, for example 1h2m3s or 250ms. Whole milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(extend("pattern" = r"^([0-9]+(\.[0-9]+)?(h|m|s|ms))+$"))]
pub struct ElapsedTime(String);

impl From<Duration> for ElapsedTime {
    fn from(time: Duration) -> Self {
        let (all, millis) = (time.as_secs(), time.subsec_millis());
        if all == 0 && millis > 0 {
            return Self(format!("{millis}ms"));
        }
        let (hours, minutes, seconds) = (all / 3600, all / 60 % 60, all % 60);
        let fraction = format!(".{millis:03}");
        let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
        Self(match (hours, minutes) {
            (0, 0) => format!("{seconds}{fraction}s"),
            (0, _) => format!("{minutes}m{seconds}{fraction}s"),
            _ => format!("{hours}h{minutes}m{seconds}{fraction}s"),
        })
    }
}

/// The rule for a reference to a RedisCluster: a name that no cluster can have is refused, not waited for.
pub(crate) fn cluster_name_rule() -> Rule {
    Rule::new("size(self.name) <= 40 && self.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message(
        "not the name of a RedisCluster: at most 40 lower case letters, digits and dashes, starting with a letter",
    )
}

/// Makes every field of a spec immutable, except for those named. A new field is immutable until it is named here.
pub(crate) fn immutable_except(
    kind: &'static str,
    mutable: &'static [&'static str],
) -> impl Fn(&mut Schema) {
    move |schema| {
        let fields = schema.get("properties").and_then(Value::as_object);
        let rules: Vec<_> = fields
            .into_iter()
            .flat_map(Map::keys)
            .filter(|field| !mutable.contains(&field.as_str()))
            .map(|field| {
                let same = format!(
                    "has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
                );
                let message = format!("{field} cannot be changed: create another {kind}");
                json!({"rule": same, "message": message, "fieldPath": format!(".{field}")})
            })
            .collect();
        schema.insert("x-kubernetes-validations".into(), rules.into());
    }
}

/// The status of an object that no controller has seen yet. Without it, tools that read the status (kstatus, Argo CD, Flux) take
/// a new object for finished.
pub(crate) fn not_observed(schema: &mut Schema) {
    schema.insert("default".into(), json!({"observedGeneration": -1}));
}

/// Schema of a `conditions` list: a list map by `type`, so that two writers never overwrite each other's entries.
pub(crate) fn conditions_schema(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = generator.subschema_for::<Vec<Condition>>();
    schema.insert("x-kubernetes-list-type".into(), "map".into());
    schema.insert("x-kubernetes-list-map-keys".into(), vec!["type"].into());
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elapsed_times_read_like_those_of_go() {
        for (millis, text) in [
            (0, "0s"),
            (250, "250ms"),
            (1_250, "1.25s"),
            (7_000, "7s"),
            (72_000, "1m12s"),
            (3_600_000, "1h0m0s"),
            (3_723_040, "1h2m3.04s"),
        ] {
            let time = Duration::from_millis(millis);
            assert_eq!(ElapsedTime::from(time).0, text);
            let read: kube::core::Duration = text.parse().unwrap();
            assert_eq!(Duration::from(read), time);
        }
    }
}

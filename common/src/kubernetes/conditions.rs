//! Conditions: a pure merge that keeps old transition times.

use crate::sentence::shortened;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// What is known of one condition now, without the time it has been so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionUpdate {
    /// Type, for example `Ready`.
    pub kind: &'static str,
    /// Whether it holds; `None` is Unknown.
    pub holds: Option<bool>,
    /// CamelCase.
    pub reason: &'static str,
    /// A sentence for people, however long: [`merge`] shortens it.
    pub message: String,
}

impl ConditionUpdate {
    /// It holds.
    pub fn yes(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(kind, Some(true), reason, message)
    }

    /// It does not hold.
    pub fn no(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(kind, Some(false), reason, message)
    }

    /// Not known.
    pub fn unknown(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(kind, None, reason, message)
    }

    /// All parts.
    pub fn new(
        kind: &'static str,
        holds: Option<bool>,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            holds,
            reason,
            message: message.into(),
        }
    }

    fn status(&self) -> &'static str {
        match self.holds {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        }
    }
}

/// Merges updates into a list: a known type keeps its place, and its transition time while its status stays; a new type
/// is appended; a type without an update stays as it is. Equal updates give an equal list, so nothing is written. Messages are kept
/// within the limit of [`crate::sentence`].
pub fn merge(
    old: &[Condition],
    updates: &[ConditionUpdate],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut merged = old.to_vec();
    for update in updates {
        let known = merged.iter_mut().find(|c| c.type_ == update.kind);
        let since = known
            .as_ref()
            .filter(|c| c.status == update.status())
            .map_or(Time(now), |c| c.last_transition_time.clone());
        let condition = Condition {
            type_: update.kind.to_string(),
            status: update.status().to_string(),
            reason: update.reason.to_string(),
            message: shortened(&update.message),
            observed_generation: generation,
            last_transition_time: since,
        };
        match known {
            Some(place) => *place = condition,
            None => merged.push(condition),
        }
    }
    merged
}

/// Whether the list says that `kind` holds.
pub fn holds(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|c| c.status == "True")
}

/// The condition of that type.
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn time_moves_only_with_the_status() {
        let first = merge(
            &[],
            &[ConditionUpdate::no("Ready", "Starting", "0 of 3")],
            Some(1),
            at(10),
        );
        let second = merge(
            &first,
            &[ConditionUpdate::no("Ready", "Starting", "1 of 3")],
            Some(1),
            at(20),
        );
        assert_eq!(second[0].last_transition_time.0, at(10));
        assert_eq!(second[0].message, "1 of 3");
        let third = merge(
            &second,
            &[ConditionUpdate::yes("Ready", "Formed", "")],
            Some(2),
            at(30),
        );
        assert_eq!(third[0].last_transition_time.0, at(30));
        assert_eq!(third[0].observed_generation, Some(2));
    }

    #[test]
    fn equal_updates_change_nothing() {
        let updates = [
            ConditionUpdate::yes("Ready", "Formed", "all well"),
            ConditionUpdate::unknown("Degraded", "NotSeen", ""),
        ];
        let first = merge(&[], &updates, Some(4), at(10));
        assert_eq!(merge(&first, &updates, Some(4), at(99)), first);
    }

    #[test]
    fn a_long_message_is_shortened_and_keeps_its_cure() {
        let message = format!("pod shop-0-0: {}; make room for it", "x".repeat(300));
        let update = ConditionUpdate::no("Ready", "NotHealthy", message);
        let merged = merge(&[], &[update.clone()], Some(1), at(10));
        let shown = &merged[0].message;
        assert!(shown.chars().count() <= crate::sentence::LIMIT, "{shown}");
        assert!(shown.ends_with("; make room for it"), "{shown}");
        assert_eq!(merge(&merged, &[update], Some(1), at(20)), merged);
    }

    #[test]
    fn other_types_stay_in_place() {
        let old = merge(
            &[],
            &[
                ConditionUpdate::yes("A", "X", ""),
                ConditionUpdate::yes("B", "X", ""),
            ],
            None,
            at(1),
        );
        let new = merge(
            &old,
            &[
                ConditionUpdate::no("B", "Y", ""),
                ConditionUpdate::yes("C", "Z", ""),
            ],
            None,
            at(2),
        );
        assert_eq!(new[0], old[0]);
        assert_eq!(
            new.iter().map(|c| c.type_.as_str()).collect::<Vec<_>>(),
            ["A", "B", "C"]
        );
        assert!(holds(&new, "A") && !holds(&new, "B") && holds(&new, "C"));
    }
}

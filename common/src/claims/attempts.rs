//! Which attempts are lost, which units get another one and when. Pure.

use super::unit::{Stage, Unit};
use crate::sentence::{list, names};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// What the leader knows about the attempts of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttemptFacts {
    /// Names of the replicas that live; `None`: not asked yet.
    pub members: Option<BTreeSet<String>>,
    /// For how long each failed unit has been seen as failed, by [`Unit::index`].
    pub failed_for: BTreeMap<i32, Duration>,
}

/// A unit that gets another attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostUnit {
    /// Position in the status.
    pub position: usize,
    /// Name of the replica that held it.
    pub worker: String,
    /// The attempt that is lost.
    pub attempt: i32,
    /// Why the attempt is lost.
    pub error: String,
}

/// Which units are tried again, and why, within the limit of a message. `failed`: each unit's number and error. Units whose errors
/// differ only in the key of the object share a sentence.
pub fn retry_message<'a>(
    noun: &str,
    failed: impl IntoIterator<Item = (String, &'a str)>,
) -> String {
    let mut groups: Vec<(String, Vec<(String, &str)>)> = Vec::new();
    for (number, error) in failed {
        let cause = without_keys(error);
        match groups.iter_mut().find(|(known, _)| *known == cause) {
            Some((_, units)) => units.push((number, error)),
            None => groups.push((cause, vec![(number, error)])),
        }
    }
    let sentences: Vec<String> = groups
        .iter()
        .map(|(cause, units)| {
            let numbers: Vec<&str> = units.iter().map(|(number, _)| number.as_str()).collect();
            let mut errors = units.iter().map(|(_, error)| *error);
            let first = errors.next().unwrap_or_default();
            let error = if errors.all(|error| error == first) {
                first
            } else {
                cause
            };
            let verb = if units.len() == 1 { "is" } else { "are" };
            format!("{} {verb} tried again: {error}", names(noun, &numbers))
        })
        .collect();
    list(&sentences)
}

/// The error with `s3://bucket/…` for every object: each unit has its own.
fn without_keys(error: &str) -> String {
    let words: Vec<String> = error
        .split(' ')
        .map(|word| {
            let path = word.split_once("s3://");
            let bucket = path.and_then(|(before, path)| Some((before, path.split_once('/')?.0)));
            match bucket {
                Some((before, bucket)) => format!("{before}s3://{bucket}/…"),
                None => word.to_owned(),
            }
        })
        .collect();
    words.join(" ")
}

impl AttemptFacts {
    /// Whether the members have to be asked for before the units can be judged.
    pub fn lacks_members(&self, units: &[Unit<'_>]) -> bool {
        self.members.is_none() && units.iter().any(Unit::is_claimed)
    }

    /// The first unit whose last attempt of `most` is lost, with its position.
    pub fn exhausted<'a>(&self, units: &'a [Unit<'a>], most: i32) -> Option<(usize, &'a Unit<'a>)> {
        let lost = |unit: &Unit<'_>| unit.stage == Stage::Failed || self.is_orphan(unit);
        units
            .iter()
            .enumerate()
            .find(|(_, unit)| unit.attempt >= most && lost(unit))
    }

    /// Units whose attempt is lost and whose delay has passed.
    pub fn to_free(&self, units: &[Unit<'_>]) -> Vec<LostUnit> {
        let is_due = |unit: &Unit<'_>| {
            let failed_for = self.failed_for.get(&unit.index).copied();
            unit.stage == Stage::Failed && failed_for.unwrap_or_default() >= delay(unit.attempt)
        };
        let lost = units.iter().enumerate();
        lost.filter(|(_, unit)| is_due(unit) || self.is_orphan(unit))
            .map(|(position, unit)| LostUnit {
                position,
                worker: unit.worker.to_owned(),
                attempt: unit.attempt,
                error: self.cause(unit),
            })
            .collect()
    }

    /// Why the attempt is lost.
    pub fn cause(&self, unit: &Unit<'_>) -> String {
        if self.is_orphan(unit) {
            return format!(
                "controller replica {} that worked on it is gone",
                unit.worker
            );
        }
        unit.error.unwrap_or("no cause was reported").to_owned()
    }

    /// Whether the replica that holds the unit no longer lives.
    fn is_orphan(&self, unit: &Unit<'_>) -> bool {
        let members = self.members.as_ref();
        unit.is_claimed() && members.is_some_and(|live| !live.contains(unit.worker))
    }
}

/// How long a unit stays failed after its `attempt`-th attempt: 2 s, 4 s, 8 s … at most 64 s. A failover takes seconds, an outage of a
/// store minutes.
pub fn delay(attempt: i32) -> Duration {
    let doublings = u32::try_from(attempt.clamp(1, 6) - 1).unwrap_or(0);
    Duration::from_secs(2 << doublings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sentence::LIMIT;

    #[test]
    fn equal_causes_of_a_retry_are_named_once() {
        let failed = [(0, "timeout"), (2, "lost"), (3, "timeout"), (5, "timeout")];
        let failed = failed.map(|(number, error)| (number.to_string(), error));
        assert_eq!(
            retry_message("shard", failed),
            "3 shards (0, 3, …) are tried again: timeout; shard 2 is tried again: lost"
        );
    }

    /// Each unit's error names its own object.
    #[test]
    fn a_dead_store_is_one_sentence_for_all_units() {
        let error = |number: usize| {
            format!(
                "cannot upload a part of s3://backups/team/shop/20260101t000000z-5a28832d/shard-{number}.rdb at http://store:9000: \
                 the store cannot be reached or broke the connection (connection refused): check the endpoint, DNS and network policies"
            )
        };
        let errors: Vec<String> = (0..500).map(error).collect();
        let numbered = |count| {
            let errors = errors.iter().take(count).enumerate();
            errors.map(|(number, error)| (number.to_string(), error.as_str()))
        };
        let message = retry_message("shard", numbered(500));
        assert_eq!(
            message,
            "500 shards (0, 1, …) are tried again: cannot upload a part of s3://backups/… at http://store:9000: the store \
             cannot be reached or broke the connection (connection refused): check the endpoint, DNS and network policies"
        );
        // One alone names its object.
        let message = retry_message("shard", numbered(1));
        assert!(message.contains("shop/2026"), "{message}");
        assert!(message.chars().count() <= LIMIT, "{message}");
        // Causes that have nothing in common are counted.
        let various: Vec<String> = (0..50).map(|number| format!("cause {number}")).collect();
        let various = various.iter().enumerate();
        let message = retry_message(
            "object",
            various.map(|(number, error)| (number.to_string(), error.as_str())),
        );
        assert!(message.chars().count() <= LIMIT, "{message}");
        assert!(message.ends_with(" more"), "{message}");
    }

    fn unit(worker: &str, attempt: i32, stage: Stage) -> Unit<'_> {
        Unit {
            index: 7,
            worker,
            attempt,
            stage,
            error: None,
        }
    }

    fn facts(members: &[&str], failed_for: u64) -> AttemptFacts {
        AttemptFacts {
            members: Some(members.iter().map(|name| (*name).to_owned()).collect()),
            failed_for: BTreeMap::from([(7, Duration::from_secs(failed_for))]),
        }
    }

    #[test]
    fn units_of_dead_replicas_are_freed_immediately() {
        let units = [unit("a", 1, Stage::Started), unit("b", 1, Stage::Open)];
        let freed = facts(&["b"], 0).to_free(&units);
        assert_eq!(freed.len(), 1);
        assert_eq!(freed[0].position, 0);
        assert!(freed[0].error.contains("replica a"), "{}", freed[0].error);
    }

    #[test]
    fn failed_attempts_wait_longer_each_time() {
        for (attempt, seconds) in [(1, 2), (2, 4), (3, 8), (40, 64)] {
            let units = [unit("a", attempt, Stage::Failed)];
            assert!(facts(&["a"], seconds - 1).to_free(&units).is_empty());
            assert_eq!(facts(&["a"], seconds).to_free(&units).len(), 1);
        }
    }

    #[test]
    fn the_last_attempt_exhausts_a_unit() {
        let units = [unit("a", 1, Stage::Ended), unit("a", 2, Stage::Failed)];
        let facts = facts(&["a"], 0);
        assert!(facts.exhausted(&units, 3).is_none());
        assert_eq!(facts.exhausted(&units, 2).map(|(at, _)| at), Some(1));
    }

    #[test]
    fn members_are_asked_for_only_while_units_are_claimed() {
        let unknown = AttemptFacts::default();
        assert!(unknown.lacks_members(&[unit("a", 1, Stage::Open)]));
        assert!(!unknown.lacks_members(&[unit("", 1, Stage::Open), unit("a", 1, Stage::Ended)]));
    }
}

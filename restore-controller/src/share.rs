//! Which units of a restore this replica takes, goes on with or stops. Pure.

use crate::plan::is_finished;
use crds::{RedisRestore, RestoreUnit, RestoreUnitState};
use std::{
    collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

/// What this replica knows of its own work on one restore.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// Units at work: position in the status and attempt.
    pub running: BTreeMap<usize, i32>,
    /// Units this replica has brought to an end: an old view of the object must not start them again.
    pub ended: BTreeSet<(usize, i32)>,
}

/// What to do about one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Try to take it.
    Take(usize, i32),
    /// It is ours already, though nobody here works on it: a process of the same name has begun it. Go on at its block.
    GoOn(usize, i32),
    /// It is no longer ours.
    Stop(usize),
}

/// The moves of the replica `me` that can take `free` more units.
pub fn moves(restore: &RedisRestore, me: &str, own: &Own, free: usize) -> Vec<Move> {
    let none = Vec::new();
    let status = restore.status.as_ref();
    if restore.metadata.deletion_timestamp.is_some() || status.is_some_and(is_finished) {
        return own.running.keys().copied().map(Move::Stop).collect();
    }
    let units = status.map_or(&none, |status| &status.units);
    let lost = |(position, attempt): &(&usize, &i32)| is_lost(units.get(**position), me, **attempt);
    let stop = own.running.iter().filter(lost);
    let mut moves: Vec<Move> = stop.map(|(position, _)| Move::Stop(*position)).collect();
    let idle = |position: usize, unit: &RestoreUnit| {
        !own.running.contains_key(&position) && !own.ended.contains(&(position, unit.attempt))
    };
    let mut open = Vec::new();
    for (position, unit) in units.iter().enumerate() {
        if !is_open(unit) || !idle(position, unit) {
            continue;
        }
        if unit.worker == me {
            moves.push(Move::GoOn(position, unit.attempt));
        } else if unit.worker.is_empty() {
            open.push(Move::Take(position, unit.attempt));
        }
    }
    if !open.is_empty() {
        let first = starting_point(restore, me) % open.len();
        open.rotate_left(first);
    }
    moves.extend(open.into_iter().take(free));
    moves
}

/// Whether keys of it are still to be written in this attempt.
pub fn is_open(unit: &RestoreUnit) -> bool {
    matches!(
        unit.state,
        RestoreUnitState::Pending | RestoreUnitState::Replaying
    )
}

/// Whether somebody else has the unit by now, or it is another attempt. A view from before our own claim shows it free.
fn is_lost(unit: Option<&RestoreUnit>, me: &str, attempt: i32) -> bool {
    unit.is_none_or(|unit| {
        unit.attempt > attempt
            || (unit.attempt == attempt && !unit.worker.is_empty() && unit.worker != me)
    })
}

/// Replicas begin at different units, so that they rarely want the same one.
fn starting_point(restore: &RedisRestore, me: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    (me, &restore.metadata.uid).hash(&mut hasher);
    usize::try_from(hasher.finish() >> 33).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use RestoreUnitState::{Failed, Loaded, Pending, Replaying};
    use crds::{RedisRestoreSpec, RedisRestoreStatus};
    use proptest::prelude::*;

    fn restore(units: &[(&str, i32, RestoreUnitState)]) -> RedisRestore {
        let mut restore = RedisRestore::new("r", RedisRestoreSpec::default());
        let unit = |(worker, attempt, state): &(&str, i32, RestoreUnitState)| RestoreUnit {
            worker: (*worker).to_owned(),
            attempt: *attempt,
            state: *state,
            ..RestoreUnit::default()
        };
        restore.status = Some(RedisRestoreStatus {
            units: units.iter().map(unit).collect(),
            ..RedisRestoreStatus::default()
        });
        restore
    }

    #[test]
    fn free_units_are_taken_up_to_the_free_slots() {
        let restore = restore(&[("", 1, Pending), ("b", 1, Replaying), ("", 2, Pending)]);
        assert_eq!(moves(&restore, "a", &Own::default(), 1).len(), 1);
        assert_eq!(moves(&restore, "a", &Own::default(), 9).len(), 2);
    }

    #[test]
    fn a_restarted_replica_goes_on_with_what_bears_its_name() {
        let restore = restore(&[("a", 1, Replaying), ("a", 1, Loaded), ("a", 1, Failed)]);
        assert_eq!(moves(&restore, "a", &Own::default(), 0), [Move::GoOn(0, 1)]);
    }

    #[test]
    fn an_old_view_starts_nothing_again_and_stops_nothing() {
        let own = Own {
            running: BTreeMap::from([(0, 1)]),
            ended: BTreeSet::from([(1, 1)]),
        };
        let view = restore(&[("", 1, Pending), ("a", 1, Replaying)]);
        assert_eq!(moves(&view, "a", &own, 4), []);
    }

    #[test]
    fn what_was_lost_is_stopped() {
        let own = Own {
            running: BTreeMap::from([(0, 1), (1, 1)]),
            ended: BTreeSet::new(),
        };
        let view = restore(&[("", 2, Failed), ("b", 1, Replaying)]);
        assert_eq!(moves(&view, "a", &own, 0), [Move::Stop(0), Move::Stop(1)]);
    }

    proptest! {
        /// Many replicas move at the same time on views of different age; a claim counts only if its test holds.
        #[test]
        fn no_unit_has_two_holders(turns in prop::collection::vec((0..6_usize, 0..4_usize, 0..3_usize), 1..120)) {
            let mut current = restore(&[("", 1, Pending); 8]);
            let mut views = vec![current.clone()];
            let mut own: Vec<Own> = vec![Own::default(); 6];
            for (replica, age, free) in turns {
                let me = format!("w{replica}");
                let view = views[views.len().saturating_sub(1 + age)].clone();
                for step in moves(&view, &me, &own[replica], free) {
                    if let Move::Take(position, attempt) = step {
                        let unit = &mut current.status.as_mut().unwrap().units[position];
                        if unit.worker.is_empty() && unit.attempt == attempt {
                            unit.worker.clone_from(&me);
                            own[replica].running.insert(position, attempt);
                        }
                    }
                }
                views.push(current.clone());
                for position in 0..8 {
                    let holders = own.iter().filter(|own| own.running.contains_key(&position));
                    prop_assert!(holders.count() <= 1);
                }
            }
        }
    }
}

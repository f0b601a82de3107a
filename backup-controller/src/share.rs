//! Which units of a backup this replica takes, goes on with, gives up or stops. Pure.

use crate::plan::is_finished;
use crds::{BackupShard, BackupShardState, RedisBackup};
use std::collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher};
use std::hash::{Hash, Hasher};

/// What this replica knows of its own work on one backup.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// Units at work: position in the status and attempt.
    pub running: BTreeMap<usize, i32>,
    /// Units this replica has already brought to an end: an old view of the object must not start them again.
    pub ended: BTreeSet<(usize, i32)>,
}

/// What to do about one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Try to take it.
    Take(usize, i32),
    /// It is ours already, though nobody here works on it, and nothing was begun: go on.
    GoOn(usize, i32),
    /// It is ours, but was begun by a process of the same name that is gone.
    GiveUp(usize, i32),
    /// It is no longer ours.
    Stop(usize),
}

/// The moves of the replica `me` that can take `free` more units.
pub fn moves(backup: &RedisBackup, me: &str, own: &Own, free: usize) -> Vec<Move> {
    let status = backup.status.clone().unwrap_or_default();
    if backup.metadata.deletion_timestamp.is_some() || is_finished(&status) {
        return own
            .running
            .keys()
            .map(|position| Move::Stop(*position))
            .collect();
    }
    let units = &status.shards;
    let mut moves: Vec<Move> = own
        .running
        .iter()
        .filter(|(position, attempt)| is_lost(units.get(**position), me, **attempt))
        .map(|(position, _)| Move::Stop(*position))
        .collect();
    let idle = |position: &usize, unit: &BackupShard| {
        !own.running.contains_key(position) && !own.ended.contains(&(*position, unit.attempt))
    };
    for (position, unit) in units
        .iter()
        .enumerate()
        .filter(|(p, u)| u.worker == me && idle(p, u))
    {
        match unit.state {
            BackupShardState::Pending => moves.push(Move::GoOn(position, unit.attempt)),
            BackupShardState::Streaming => moves.push(Move::GiveUp(position, unit.attempt)),
            BackupShardState::Stored | BackupShardState::Failed => {}
        }
    }
    let open: Vec<_> = units
        .iter()
        .enumerate()
        .filter(|(position, unit)| {
            unit.worker.is_empty()
                && unit.state == BackupShardState::Pending
                && idle(position, unit)
        })
        .map(|(position, unit)| Move::Take(position, unit.attempt))
        .collect();
    let first = starting_point(backup, me, open.len());
    let rotated = open.iter().cycle().skip(first).take(open.len());
    moves.extend(rotated.take(free).copied());
    moves
}

/// Whether somebody else has the unit by now, or it is another attempt. A view from before our own claim shows it free.
fn is_lost(unit: Option<&BackupShard>, me: &str, attempt: i32) -> bool {
    unit.is_none_or(|unit| {
        unit.attempt > attempt
            || (unit.attempt == attempt && !unit.worker.is_empty() && unit.worker != me)
    })
}

/// Replicas begin at different units, so that they rarely want the same one.
fn starting_point(backup: &RedisBackup, me: &str, open: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    (me, &backup.metadata.uid).hash(&mut hasher);
    usize::try_from(hasher.finish() >> 33)
        .unwrap_or(0)
        .checked_rem(open)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::{RedisBackupSpec, RedisBackupStatus};
    use proptest::prelude::*;

    fn backup(units: &[(&str, i32, BackupShardState)]) -> RedisBackup {
        let mut backup = RedisBackup::new("b", RedisBackupSpec::default());
        backup.status = Some(RedisBackupStatus {
            shards: units
                .iter()
                .map(|(worker, attempt, state)| BackupShard {
                    worker: (*worker).to_owned(),
                    attempt: *attempt,
                    state: *state,
                    ..BackupShard::default()
                })
                .collect(),
            ..RedisBackupStatus::default()
        });
        backup
    }

    use BackupShardState::{Failed, Pending, Stored, Streaming};

    #[test]
    fn takes_free_units_up_to_its_slots() {
        let backup = backup(&[
            ("", 1, Pending),
            ("b", 1, Streaming),
            ("", 2, Pending),
            ("", 1, Pending),
        ]);
        assert_eq!(moves(&backup, "a", &Own::default(), 2).len(), 2);
        assert_eq!(moves(&backup, "a", &Own::default(), 9).len(), 3);
        assert_eq!(moves(&backup, "a", &Own::default(), 0), []);
    }

    #[test]
    fn a_restarted_replica_goes_on_or_gives_up_what_bears_its_name() {
        let backup = backup(&[
            ("a", 1, Pending),
            ("a", 1, Streaming),
            ("a", 1, Stored),
            ("a", 1, Failed),
        ]);
        assert_eq!(
            moves(&backup, "a", &Own::default(), 0),
            [Move::GoOn(0, 1), Move::GiveUp(1, 1)]
        );
    }

    #[test]
    fn an_old_view_starts_nothing_again() {
        let backup = backup(&[("a", 1, Streaming), ("", 1, Pending)]);
        let own = Own {
            ended: BTreeSet::from([(0, 1), (1, 1)]),
            ..Own::default()
        };
        assert_eq!(moves(&backup, "a", &own, 4), []);
    }

    #[test]
    fn what_was_lost_is_stopped_and_a_view_from_before_the_claim_stops_nothing() {
        let own = Own {
            running: BTreeMap::from([(0, 1), (1, 1), (2, 1)]),
            ..Own::default()
        };
        let backup = backup(&[("", 1, Pending), ("", 2, Pending), ("b", 1, Streaming)]);
        assert_eq!(moves(&backup, "a", &own, 0), [Move::Stop(1), Move::Stop(2)]);
    }

    #[test]
    fn everything_stops_when_the_backup_ends() {
        let own = Own {
            running: BTreeMap::from([(0, 1)]),
            ..Own::default()
        };
        let mut backup = backup(&[("a", 1, Streaming)]);
        backup.metadata.deletion_timestamp = Some(
            k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH),
        );
        assert_eq!(moves(&backup, "a", &own, 5), [Move::Stop(0)]);
    }

    proptest! {
        /// Ten replicas move at the same time on views of different age; a claim counts only if its test holds.
        #[test]
        fn no_unit_has_two_holders(turns in prop::collection::vec((0..10usize, 0..4usize, 0..3usize), 1..120)) {
            let mut current = backup(&[("", 1, Pending); 8]);
            let mut views = vec![current.clone()];
            let mut own: Vec<Own> = vec![Own::default(); 10];
            for (replica, age, free) in turns {
                let me = format!("w{replica}");
                let view = views[views.len().saturating_sub(1 + age)].clone();
                for step in moves(&view, &me, &own[replica], free) {
                    if let Move::Take(position, attempt) = step {
                        let unit = &mut current.status.as_mut().unwrap().shards[position];
                        if unit.worker.is_empty() && unit.attempt == attempt {
                            unit.worker.clone_from(&me);
                            own[replica].running.insert(position, attempt);
                        }
                    }
                }
                views.push(current.clone());
                for position in 0..8 {
                    let holders = own.iter().filter(|own| own.running.contains_key(&position)).count();
                    prop_assert!(holders <= 1);
                }
            }
        }
    }
}

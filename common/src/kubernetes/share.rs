//! Which units of one object a replica takes, goes on with, gives up or stops. Pure; [`super::claims`] carries it out.

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

/// Units tried for each that can be taken.
const TRIES: usize = 2;

/// A unit as the object's status shows it.
#[derive(Clone, Copy, Debug)]
pub struct Unit<'a> {
    /// Who holds it; empty: nobody.
    pub worker: &'a str,
    /// Which attempt it is.
    pub attempt: i32,
    /// What can be done with it.
    pub stage: Stage,
}

/// What can be done with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It can be taken, or gone on with by another process.
    Open,
    /// It was begun by a process that alone could go on with it.
    Midway,
    /// This attempt is over.
    Over,
}

/// What a replica knows of its own work on one object.
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
    /// It is ours already, though nobody here works on it: a process of the same name took it. Go on.
    GoOn(usize, i32),
    /// It is ours, but was begun by a process of the same name, and what was begun is gone with it.
    GiveUp(usize, i32),
    /// It is no longer ours.
    Stop(usize),
}

/// The moves of the replica `me` that can take `free` more units of the object `uid`: it tries some more than that, one after
/// another until it has them, because others may be faster with the first ones.
pub fn moves(uid: &str, units: &[Unit<'_>], me: &str, own: &Own, free: usize) -> Vec<Move> {
    let lost = |(position, attempt): &(&usize, &i32)| is_lost(units.get(**position), me, **attempt);
    let stop = own.running.iter().filter(lost);
    let mut moves: Vec<Move> = stop.map(|(position, _)| Move::Stop(*position)).collect();
    let mut open = Vec::new();
    for (position, unit) in units.iter().enumerate() {
        let ended = own.ended.contains(&(position, unit.attempt));
        if ended || own.running.contains_key(&position) {
            continue;
        }
        match unit.stage {
            Stage::Open if unit.worker == me => moves.push(Move::GoOn(position, unit.attempt)),
            Stage::Open if unit.worker.is_empty() => open.push(Move::Take(position, unit.attempt)),
            Stage::Midway if unit.worker == me => moves.push(Move::GiveUp(position, unit.attempt)),
            Stage::Open | Stage::Midway | Stage::Over => {}
        }
    }
    let first = starting_point(uid, me)
        .checked_rem(open.len())
        .unwrap_or_default();
    open.rotate_left(first);
    moves.extend(open.into_iter().take(free.saturating_mul(TRIES)));
    moves
}

/// Whether a free slot of the replica `me` is of use: for a unit that nobody has taken, or for one that bears the replica's name
/// and was not begun for want of a slot.
pub fn wants_a_slot(units: &[Unit<'_>], me: &str) -> bool {
    let ours = |unit: &Unit<'_>| unit.worker.is_empty() || unit.worker == me;
    units
        .iter()
        .any(|unit| unit.stage == Stage::Open && ours(unit))
}

/// Everything at work stops: the object has ended or is on its way out.
pub fn stop_all(own: &Own) -> Vec<Move> {
    own.running.keys().copied().map(Move::Stop).collect()
}

/// Whether somebody else has the unit by now, or it is another attempt. A view from before our own claim shows it free.
fn is_lost(unit: Option<&Unit<'_>>, me: &str, attempt: i32) -> bool {
    unit.is_none_or(|unit| {
        unit.attempt > attempt
            || (unit.attempt == attempt && !unit.worker.is_empty() && unit.worker != me)
    })
}

/// Replicas begin at different units, so that they rarely want the same one.
fn starting_point(uid: &str, me: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    (me, uid).hash(&mut hasher);
    usize::try_from(hasher.finish() >> 33).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Stage::{Midway, Open, Over};
    use proptest::prelude::*;

    fn unit(worker: &str, attempt: i32, stage: Stage) -> Unit<'_> {
        Unit {
            worker,
            attempt,
            stage,
        }
    }

    #[test]
    fn free_units_are_tried_as_long_as_there_are_free_slots() {
        let units = [
            unit("", 1, Open),
            unit("b", 1, Midway),
            unit("", 2, Open),
            unit("", 1, Over),
        ];
        assert_eq!(moves("u", &units, "a", &Own::default(), 9).len(), 2);
        let many = [unit("", 1, Open); 9];
        assert_eq!(moves("u", &many, "a", &Own::default(), 2).len(), 4);
        assert_eq!(moves("u", &units, "a", &Own::default(), 0), []);
    }

    #[test]
    fn a_restarted_replica_goes_on_or_gives_up_what_bears_its_name() {
        let units = [unit("a", 1, Open), unit("a", 1, Midway), unit("a", 1, Over)];
        assert_eq!(
            moves("u", &units, "a", &Own::default(), 0),
            [Move::GoOn(0, 1), Move::GiveUp(1, 1)]
        );
    }

    #[test]
    fn an_old_view_starts_nothing_again_and_stops_nothing() {
        let own = Own {
            running: BTreeMap::from([(0, 1)]),
            ended: BTreeSet::from([(1, 1), (2, 1)]),
        };
        let units = [unit("", 1, Open), unit("a", 1, Midway), unit("", 1, Open)];
        assert_eq!(moves("u", &units, "a", &own, 4), []);
    }

    #[test]
    fn what_was_lost_is_stopped() {
        let own = Own {
            running: BTreeMap::from([(0, 1), (1, 1), (2, 1)]),
            ended: BTreeSet::new(),
        };
        let units = [unit("", 1, Open), unit("", 2, Open), unit("b", 1, Midway)];
        assert_eq!(
            moves("u", &units, "a", &own, 0),
            [Move::Stop(1), Move::Stop(2)]
        );
        assert_eq!(moves("u", &[], "a", &own, 0), stop_all(&own));
    }

    proptest! {
        /// Many replicas move at the same time on views of different age; a claim counts only if its test holds.
        #[test]
        fn no_unit_has_two_holders(turns in prop::collection::vec((0..10_usize, 0..4_usize, 0..3_usize), 1..120)) {
            let names: Vec<String> = (0..10).map(|number| format!("w{number}")).collect();
            let mut current: Vec<(String, i32)> = vec![(String::new(), 1); 8];
            let mut views = vec![current.clone()];
            let mut own: Vec<Own> = vec![Own::default(); names.len()];
            for (who, age, free) in turns {
                let view = &views[views.len().saturating_sub(1 + age)];
                let units: Vec<Unit<'_>> = view.iter().map(|(worker, attempt)| unit(worker, *attempt, Open)).collect();
                for one in moves("u", &units, &names[who], &own[who], free) {
                    match one {
                        Move::Take(position, attempt) => {
                            if current[position] == (String::new(), attempt) {
                                current[position].0.clone_from(&names[who]);
                                own[who].running.insert(position, attempt);
                            }
                        }
                        Move::GoOn(position, _) | Move::GiveUp(position, _) => {
                            prop_assert!(false, "nobody was restarted, and {position} bears {}", names[who]);
                        }
                        Move::Stop(position) => {
                            own[who].running.remove(&position);
                        }
                    }
                }
                for position in 0..current.len() {
                    let holders = own.iter().filter(|own| own.running.contains_key(&position));
                    prop_assert!(holders.count() <= 1);
                }
                views.push(current.clone());
            }
        }
    }
}

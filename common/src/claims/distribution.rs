//! Which units of one object a replica takes, continues, abandons or stops. Pure; [`super::worker`] does it.

use super::unit::{Stage, Unit, UnitKind};
use kube::ResourceExt;
use std::{
    collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

/// Units tried for each permit: other replicas may take the first ones.
const TRIES: usize = 2;

/// What a replica knows of its own work on one object.
#[derive(Clone, Debug, Default)]
pub struct OwnUnits {
    /// Units at work: position in the status and attempt.
    pub running: BTreeMap<usize, i32>,
    /// Positions and attempts that this replica has ended: an old view of the object must not start them again.
    pub ended: BTreeSet<(usize, i32)>,
}

/// What to do about one unit: its position and attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitAction {
    /// Try to take it.
    Take(usize, i32),
    /// An earlier process of the same name took it, and this one can continue it.
    Continue(usize, i32),
    /// An earlier process of the same name started it, and only that one could continue it.
    Abandon(usize, i32),
    /// It is held by another replica, or is another attempt by now.
    Stop(usize),
}

/// What the replica `me` does about an object when it has `permits` left.
pub fn actions<U: UnitKind>(
    object: &U::Object,
    me: &str,
    own: &OwnUnits,
    permits: usize,
) -> Vec<UnitAction> {
    if U::is_over(object) {
        return own.running.keys().copied().map(UnitAction::Stop).collect();
    }
    let uid = object.uid().unwrap_or_default();
    actions_on(&uid, &U::units(object), me, own, permits)
}

/// Whether a permit of the replica `me` is of use to an object: for a unit that is free, or for one that bears the replica's
/// name and was not started for lack of a permit.
pub fn wants_permit<U: UnitKind>(object: &U::Object, me: &str) -> bool {
    let ours = |unit: &Unit<'_>| unit.worker.is_empty() || unit.worker == me;
    let wants = |unit: &Unit<'_>| unit.stage == Stage::Open && ours(unit);
    !U::is_over(object) && U::units(object).iter().any(wants)
}

fn actions_on(
    uid: &str,
    units: &[Unit<'_>],
    me: &str,
    own: &OwnUnits,
    permits: usize,
) -> Vec<UnitAction> {
    let lost = |(position, attempt): &(&usize, &i32)| is_lost(units.get(**position), me, **attempt);
    let lost = own.running.iter().filter(lost);
    let mut actions: Vec<_> = lost
        .map(|(position, _)| UnitAction::Stop(*position))
        .collect();
    let mut free = Vec::new();
    for (position, unit) in units.iter().enumerate() {
        let ended = own.ended.contains(&(position, unit.attempt));
        if ended || own.running.contains_key(&position) {
            continue;
        }
        let (ours, attempt) = (unit.worker == me, unit.attempt);
        match unit.stage {
            Stage::Open if ours => actions.push(UnitAction::Continue(position, attempt)),
            Stage::Open if unit.worker.is_empty() => free.push(UnitAction::Take(position, attempt)),
            Stage::Started if ours => actions.push(UnitAction::Abandon(position, attempt)),
            Stage::Open | Stage::Started | Stage::Failed | Stage::Ended => {}
        }
    }
    let first = starting_point(uid, me)
        .checked_rem(free.len())
        .unwrap_or_default();
    free.rotate_left(first);
    actions.extend(free.into_iter().take(permits.saturating_mul(TRIES)));
    actions
}

/// Whether another replica holds the unit by now, or it is another attempt. A view from before our own claim shows it free.
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
    use crate::claims::tests::{Units, object};
    use Stage::{Ended, Open, Started};
    use UnitAction::{Abandon, Continue, Stop, Take};
    use proptest::prelude::*;

    fn unit(worker: &str, attempt: i32, stage: Stage) -> Unit<'_> {
        Unit {
            index: 0,
            worker,
            attempt,
            stage,
            error: None,
        }
    }

    #[test]
    fn free_units_are_tried_while_permits_are_left() {
        let units = [
            unit("", 1, Open),
            unit("b", 1, Started),
            unit("", 2, Open),
            unit("", 1, Ended),
        ];
        assert_eq!(
            actions_on("u", &units, "a", &OwnUnits::default(), 9).len(),
            2
        );
        let many = [unit("", 1, Open); 9];
        assert_eq!(
            actions_on("u", &many, "a", &OwnUnits::default(), 2).len(),
            4
        );
        assert_eq!(actions_on("u", &units, "a", &OwnUnits::default(), 0), []);
    }

    #[test]
    fn a_restarted_replica_continues_or_abandons_its_units() {
        let units = [
            unit("a", 1, Open),
            unit("a", 1, Started),
            unit("a", 1, Ended),
        ];
        assert_eq!(
            actions_on("u", &units, "a", &OwnUnits::default(), 0),
            [Continue(0, 1), Abandon(1, 1)]
        );
    }

    #[test]
    fn an_old_view_starts_and_stops_nothing() {
        let own = OwnUnits {
            running: BTreeMap::from([(0, 1)]),
            ended: BTreeSet::from([(1, 1), (2, 1)]),
        };
        let units = [unit("", 1, Open), unit("a", 1, Started), unit("", 1, Open)];
        assert_eq!(actions_on("u", &units, "a", &own, 4), []);
    }

    #[test]
    fn lost_units_are_stopped() {
        let own = OwnUnits {
            running: BTreeMap::from([(0, 1), (1, 1), (2, 1)]),
            ended: BTreeSet::new(),
        };
        let units = [unit("", 1, Open), unit("", 2, Open), unit("b", 1, Started)];
        assert_eq!(actions_on("u", &units, "a", &own, 0), [Stop(1), Stop(2)]);
    }

    #[test]
    fn everything_stops_when_the_object_is_deleted() {
        let mut object = object(&[("a", 1, "Replaying"), ("", 1, "Pending")]);
        let own = OwnUnits {
            running: BTreeMap::from([(0, 1)]),
            ended: BTreeSet::new(),
        };
        assert_eq!(actions::<Units>(&object, "a", &own, 1), [Take(1, 1)]);
        assert!(wants_permit::<Units>(&object, "a"));
        object.metadata.deletion_timestamp = Some(
            k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH),
        );
        assert_eq!(actions::<Units>(&object, "a", &own, 1), [Stop(0)]);
        assert!(!wants_permit::<Units>(&object, "a"));
    }

    #[test]
    fn free_units_and_own_open_ones_want_a_permit() {
        let wants = |worker, state| wants_permit::<Units>(&object(&[(worker, 1, state)]), "a");
        assert!(wants("", "Pending") && wants("a", "Pending"));
        assert!(!wants("b", "Pending") && !wants("", "Loaded") && !wants("a", "Failed"));
    }

    proptest! {
        /// Many replicas move at the same time on views of different age; a claim counts only if its test holds.
        #[test]
        fn no_unit_has_two_holders(turns in prop::collection::vec((0..10_usize, 0..4_usize, 0..3_usize), 1..120)) {
            let names: Vec<String> = (0..10).map(|number| format!("w{number}")).collect();
            let mut current: Vec<(String, i32)> = vec![(String::new(), 1); 8];
            let mut views = vec![current.clone()];
            let mut own: Vec<OwnUnits> = vec![OwnUnits::default(); names.len()];
            for (who, age, free) in turns {
                let view = &views[views.len().saturating_sub(1 + age)];
                let units: Vec<Unit<'_>> = view.iter().map(|(worker, attempt)| unit(worker, *attempt, Open)).collect();
                for one in actions_on("u", &units, &names[who], &own[who], free) {
                    match one {
                        Take(position, attempt) => {
                            if current[position] == (String::new(), attempt) {
                                current[position].0.clone_from(&names[who]);
                                own[who].running.insert(position, attempt);
                            }
                        }
                        Continue(position, _) | Abandon(position, _) => {
                            prop_assert!(false, "no replica was restarted, and unit {position} bears {}", names[who]);
                        }
                        Stop(position) => {
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

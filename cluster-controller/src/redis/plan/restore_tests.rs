//! Slots that were taken from their primary by hand: the node that has their keys serves them again.

use super::{
    Action, Assignment, Blocker, Plan,
    simulation::{Fault, World},
    tests::{dice, formed, is_healthy, plan, relist, repair, report},
};
use crate::redis::member::Answer;
use common::cluster::slots::SlotSet;
use crds::LostSlots;
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn primaries(world: &World) -> Vec<usize> {
    let all = 0..world.wanted.nodes();
    all.filter(|index| world.owns(*index)).collect()
}

/// Who is given slots, how many, and whether it strikes them out of its own table first.
fn assigned(plan: &Plan) -> Vec<(usize, usize, bool)> {
    let steps = plan.steps.iter();
    steps
        .filter_map(|step| {
            let Action::AssignSlots {
                member,
                ranges,
                how: Assignment::Restored { listed },
            } = &step.action
            else {
                return None;
            };
            let slots: SlotSet = ranges.iter().copied().collect();
            Some((*member, slots.len(), !listed.is_empty()))
        })
        .collect()
}

#[test]
fn the_node_that_has_the_keys_serves_their_slots_again() {
    for persistent in [true, false] {
        let mut world = formed(3, 1, persistent);
        let from = primaries(&world)[1];
        let before = world.slots_of(from).0;
        world.take_slots_by_hand(from, 100);
        world.tick();
        let seen = plan(&world.wanted, &world.members(NOW), NOW);
        assert_eq!(assigned(&seen), [(from, 100, false)], "{seen:?}");
        assert!(seen.is_risky(), "it is looked at again, live");
        repair(&mut world, &mut || true);
        assert!(is_healthy(&world), "{}", world.tables());
        assert_eq!(world.slots_of(from).0, before);
        assert_eq!(world.shards_with_data().len(), 3);
    }
}

/// The keys decide, not the tables of the others nor the shard that the slots had at first.
#[test]
fn keys_go_before_what_others_list() {
    let mut world = formed(3, 1, true);
    let (from, holder) = (primaries(&world)[0], primaries(&world)[2]);
    let taken: SlotSet = world.slots_of(from).0.iter().take(100).collect();
    world.strike_out(from, 100);
    let mut members = world.members(NOW);
    // The others list them on, and none has a key.
    let seen = plan(&world.wanted, &members, NOW);
    assert_eq!(assigned(&seen), [(from, 100, false)], "{seen:?}");
    let some: SlotSet = taken.iter().take(60).collect();
    report(&mut members[holder]).unserved = Some(some);
    let seen = plan(&world.wanted, &members, NOW);
    let mut all = assigned(&seen);
    all.sort_unstable();
    assert_eq!(all, [(from, 40, false), (holder, 60, true)], "{seen:?}");
}

/// A node that has yet to learn the newest epoch cannot claim them yet: they are not lost, and given to no other node.
#[test]
fn keys_are_waited_for_until_their_node_can_claim_them() {
    for persistent in [true, false] {
        let mut world = formed(3, 1, persistent);
        let (from, holder) = (primaries(&world)[0], primaries(&world)[2]);
        let taken: SlotSet = world.slots_of(from).0.iter().take(100).collect();
        world.strike_out(from, 100);
        let mut members = world.members(NOW);
        for index in [from, holder] {
            report(&mut members[index]).cluster.current_epoch = 0;
        }
        report(&mut members[holder]).unserved = Some(taken);
        let seen = plan(&world.wanted, &members, NOW);
        let gives = |step: &super::Step| matches!(step.action, Action::AssignSlots { .. });
        assert!(!seen.steps.iter().any(gives), "{seen:?}");
        assert_eq!(seen.blockers, [], "{seen:?}");
    }
}

/// No node claims them, none has a key of them, and each of two lists them with the other one. On volumes there may be more: a person decides.
#[test]
fn slots_listed_crosswise_are_served_or_named() {
    for persistent in [true, false] {
        let mut world = formed(3, 1, persistent);
        world.wanted.recovery.lost_slots = LostSlots::RecreateEmpty;
        let primaries = primaries(&world);
        world.point_at_each_other(primaries[0], primaries[1], 400);
        let seen = plan(&world.wanted, &world.members(NOW), NOW);
        if persistent {
            let is_named =
                |one: &Blocker| matches!(one, Blocker::SlotsUnassigned { count: 400, .. });
            assert!(seen.blockers.iter().any(is_named), "{seen:?}");
            continue;
        }
        repair(&mut world, &mut || true);
        assert!(is_healthy(&world), "{}", world.tables());
    }
}

#[test]
fn slots_with_keys_on_several_nodes_are_left_alone() {
    let mut world = formed(3, 1, true);
    let primaries = primaries(&world);
    let taken: SlotSet = world.slots_of(primaries[0]).0.iter().take(3).collect();
    world.take_slots_by_hand(primaries[0], 3);
    world.leave_keys(primaries[2], &taken);
    let seen = plan(&world.wanted, &world.members(NOW), NOW);
    assert_eq!(assigned(&seen), [], "{seen:?}");
    let blocker = seen.blockers.first().unwrap();
    assert!(
        matches!(blocker, Blocker::SlotsContested { count: 3, pods, .. } if pods.len() == 2),
        "{seen:?}"
    );
    let words = blocker.to_string();
    assert!(
        words.contains("--cluster fix") && words.len() < 256,
        "{words}"
    );
    assert!(seen.is_stuck());
}

/// A primary is lost with its volume right after it got slots: its replica was elected without them, and the others list them with the dead.
#[test]
fn who_took_over_serves_what_its_primary_got_last() {
    let mut world = formed(3, 1, true);
    let (victim, other) = (primaries(&world)[0], primaries(&world)[1]);
    let (heir, old) = (
        victim ^ 1,
        world.members(NOW)[victim].report().unwrap().id(),
    );
    let fault = Fault {
        wiped: true,
        ..Fault::DOWN
    };
    world.break_node(victim, fault);
    for _ in 0..20 {
        world.tick();
    }
    world.restart(victim);
    assert!(world.owns(heir), "{}", world.tables());
    let heir_id = world.members(NOW)[heir].report().unwrap().id();
    let last: SlotSet = world.slots_of(heir).0.iter().take(10).collect();
    let seen = |of_heir: &SlotSet, of_other: &SlotSet| {
        let mut members = world.members(NOW);
        for member in members.iter_mut().filter(|one| one.report().is_some()) {
            relist(member, heir_id, |node| {
                node.slots = node.slots.difference(&last);
            });
            relist(member, old, |node| node.slots = last.clone());
            report(member).unserved = Some(SlotSet::new());
        }
        report(&mut members[heir]).unserved = Some(of_heir.clone());
        report(&mut members[other]).unserved = Some(of_other.clone());
        plan(&world.wanted, &members, NOW)
    };
    let (none, some) = (SlotSet::new(), last.iter().take(3).collect());
    let inherits = seen(&some, &none);
    assert_eq!(assigned(&inherits), [(heir, 10, true)], "{inherits:?}");
    assert!(inherits.is_risky(), "it is looked at again, live");
    for (of_heir, of_other) in [(&none, &none), (&none, &some), (&some, &some)] {
        let waits = seen(of_heir, of_other);
        assert_eq!(assigned(&waits), [], "{waits:?}");
        let is_lost = |one: &Blocker| matches!(one, Blocker::SlotsLost { count: 10, .. });
        assert!(waits.blockers.iter().any(is_lost), "{waits:?}");
    }
}

/// One node has not counted, or is away: it may have the keys.
#[test]
fn nothing_is_assigned_before_every_primary_has_counted() {
    for persistent in [true, false] {
        let mut world = formed(3, 1, persistent);
        let primaries = primaries(&world);
        world.take_slots_by_hand(primaries[0], 100);
        let mut members = world.members(NOW);
        report(&mut members[primaries[1]]).unserved = None;
        let assigns = |plan: &Plan| {
            let mut steps = plan.steps.iter();
            steps.any(|step| matches!(step.action, Action::AssignSlots { .. }))
        };
        assert!(!assigns(&plan(&world.wanted, &members, NOW)));
        let mut members = world.members(NOW);
        members[primaries[1]].answer = Answer::Loading;
        assert!(!assigns(&plan(&world.wanted, &members, NOW)));
        assert!(assigns(&plan(&world.wanted, &world.members(NOW), NOW)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Whatever was taken from whom: every slot is back where its keys are, and no key is lost.
    #[test]
    fn what_was_taken_is_served_again(
        replicas in 0..3_usize,
        persistent: bool,
        taken in prop::collection::vec((0..3_usize, 1..7000_usize, any::<bool>()), 1..5),
        seed: u64,
    ) {
        let mut world = formed(3, replicas, persistent);
        let primaries = primaries(&world);
        let before: Vec<SlotSet> = primaries.iter().map(|index| world.slots_of(*index).0).collect();
        for (shard, count, everywhere) in taken {
            if everywhere {
                world.take_slots_by_hand(primaries[shard], count);
            } else {
                let slots: SlotSet = world.slots_of(primaries[shard]).0.iter().take(count).collect();
                world.strike_out(primaries[shard], count);
                world.leave_keys(primaries[shard], &slots);
            }
        }
        let rest = repair(&mut world, &mut dice(seed));
        prop_assert!(is_healthy(&world), "{:?}\n{}", rest, world.tables());
        let after: Vec<SlotSet> = primaries.iter().map(|index| world.slots_of(*index).0).collect();
        prop_assert_eq!(after, before);
        prop_assert_eq!(world.shards_with_data().len(), 3);
    }
}

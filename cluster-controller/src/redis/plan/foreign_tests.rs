//! Whatever happens: no command reaches a node of another cluster, and a living node without a pod keeps its slots.

use super::{
    Blocker, Plan,
    simulation::{World, wanted},
    tests::{dice, fault, formed, is_healthy, plan, repair, strike},
};
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;

fn plan_of(world: &World) -> Plan {
    let now = Timestamp::UNIX_EPOCH;
    plan(&world.wanted, &world.members(now), now)
}

fn names_foreign_node(plan: &Plan) -> bool {
    let mut blockers = plan.blockers.iter();
    blockers.any(|one| matches!(one, Blocker::ForeignNode { .. }))
}

#[test]
fn a_foreign_node_is_named_and_nothing_else_is_done() {
    for count in [1, 3] {
        let mut world = formed(3, 1, true);
        let foreign = world.add_foreign(count);
        world.give_address_to(2, foreign[0]);
        for _ in 0..8 {
            world.tick();
        }
        let plan = plan_of(&world);
        assert!(names_foreign_node(&plan), "{count}: {plan:?}");
        assert_eq!(plan.steps, [], "something else is done");
        let words: Vec<String> = plan.blockers.iter().map(ToString::to_string).collect();
        let named = words.iter().any(|one| one.starts_with("pod sim-1-0:"));
        assert!(named, "{words:?}");
    }
}

/// A cluster that is just being formed has nothing to compare an address with.
#[test]
fn a_new_cluster_is_not_formed_around_a_foreign_node() {
    for count in [1, 3] {
        let mut world = World::new(wanted(3, 1, true));
        let foreign = world.add_foreign(count);
        world.give_address_to(0, foreign[0]);
        let last = repair(&mut world, &mut || true);
        world.check_foreign();
        assert!(names_foreign_node(&last), "{last:?}");
    }
}

/// What tells a foreign server at the address of a pod: what it says of its own pod, or, where the start script is older, only what
/// Kubernetes says of the address. Beside the victims, addresses that are not sure to be current, which then are no reason to wait.
fn known_by(world: &mut World, proving: bool, victims: &[usize], unsure: &[bool]) {
    world.proving = proving;
    let unsure = unsure.iter().take(world.wanted.nodes()).enumerate();
    let unsure = unsure.filter(|(_, unsure)| proving && **unsure);
    world.not_current = unsure.map(|(index, _)| index).collect();
    if !proving {
        world.not_current.extend(victims);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn no_command_reaches_a_foreign_node(
        replicas in 0..3_usize,
        persistent: bool,
        company in prop_oneof![Just(0_u32), Just(1), Just(3)],
        victim in 0..9_usize,
        proving: bool,
        unsure in prop::collection::vec(any::<bool>(), 9),
        faults in prop::collection::vec(fault(), 9),
        seed: u64,
    ) {
        let mut world = formed(3, replicas, persistent);
        let victim = victim % world.wanted.nodes();
        // Blank: a node of a cluster that is only being formed.
        let foreign = match company {
            0 => world.add_blank_foreign(),
            count => world.add_foreign(count)[0],
        };
        world.give_address_to(victim, foreign);
        known_by(&mut world, proving, &[victim], &unsure);
        let mut faults: Vec<_> = faults.into_iter().take(world.wanted.nodes()).collect();
        faults[victim] = None;
        let mut dice = dice(seed);
        strike(&mut world, &faults, &mut dice);
        let last = repair(&mut world, &mut dice);
        world.check_foreign();
        prop_assert_eq!(names_foreign_node(&last), company > 0, "{:?}", last);
        // Its volume is still there.
        world.reconnect(victim);
        let last = repair(&mut world, &mut dice);
        world.check_foreign();
        if faults.iter().flatten().all(|fault| !fault.wiped) && persistent {
            prop_assert!(is_healthy(&world), "{:?}\n{}", last, world.tables());
            prop_assert_eq!(world.shards_with_data().len(), 3);
        }
    }

    /// Its volumes were kept and nothing is recorded, while addresses of its pods are answered by another cluster.
    #[test]
    fn a_cluster_created_again_adopts_none_but_its_own_nodes(
        replicas in 0..3_usize,
        company in prop_oneof![Just(0_u32), Just(1), Just(3)],
        first in 0..9_usize,
        proving: bool,
        unsure in prop::collection::vec(any::<bool>(), 9),
        seed: u64,
    ) {
        let mut world = formed(3, replicas, true);
        world.wanted.known.clear();
        world.wanted.formed_before = false;
        let foreign = match company {
            0 => vec![world.add_blank_foreign()],
            count => world.add_foreign(count),
        };
        let nodes = world.wanted.nodes();
        let victims: Vec<usize> = (0..foreign.len()).map(|number| (first + number) % nodes).collect();
        for (victim, foreign) in victims.iter().zip(&foreign) {
            world.give_address_to(*victim, *foreign);
        }
        known_by(&mut world, proving, &victims, &unsure);
        let mut dice = dice(seed);
        repair(&mut world, &mut dice);
        world.check_foreign();
        for victim in victims {
            world.reconnect(victim);
        }
        let last = repair(&mut world, &mut dice);
        world.check_foreign();
        prop_assert!(is_healthy(&world), "{:?}\n{}", last, world.tables());
        prop_assert_eq!(world.shards_with_data().len(), 3, "{}", world.tables());
    }

    #[test]
    fn a_living_node_without_a_pod_keeps_its_slots(
        replicas in 0..3_usize,
        persistent: bool,
        count in 1..2000_usize,
        faults in prop::collection::vec(fault(), 9),
        seed: u64,
    ) {
        let mut world = formed(3, replicas, persistent);
        let from = (0..world.wanted.nodes()).find(|index| world.owns(*index)).unwrap();
        let added = world.add_without_pod(from, count);
        world.tick();
        let (slots, _) = world.slots_of(added);
        let faults: Vec<_> = faults.into_iter().take(world.wanted.nodes()).collect();
        let mut dice = dice(seed);
        strike(&mut world, &faults, &mut dice);
        let last = repair(&mut world, &mut dice);
        let (kept, known) = world.slots_of(added);
        prop_assert_eq!(kept, slots, "{:?}\n{}", last, world.tables());
        // After a loss of all the others nothing leads back to it.
        if faults.iter().any(Option::is_none) {
            prop_assert!(known, "{:?}\n{}", last, world.tables());
            let named = last.blockers.iter()
                .any(|one| matches!(one, Blocker::NodeWithoutPod { slots, .. } if *slots == count));
            prop_assert!(named, "{:?}\n{}", last, world.tables());
        }
    }
}

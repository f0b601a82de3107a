//! From every state that faults can lead to, the planner reaches its goal, and on no way there is a key lost.

use super::{
    Hold, Plan, plan,
    simulation::{Fault, World, wanted},
};
use crate::redis::assess::assess;
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;

const TURNS: usize = 60;

/// Turns until nothing is left to do. `dice` says which steps a controller gets to do before it is interrupted.
fn mend(world: &mut World, dice: &mut impl FnMut() -> bool) -> Plan {
    let mut last = Plan::default();
    for turn in 0..TURNS {
        let now = Timestamp::from_second(i64::try_from(turn).unwrap()).unwrap();
        let members = world.members(now);
        last = plan(&world.wanted, &members, now);
        let whole = assess(&world.wanted, &members).is_whole();
        if whole && last.steps.is_empty() {
            return last;
        }
        // Towards the end nothing interrupts any more.
        world.execute(&last, || turn > TURNS / 2 || dice());
        world.tick();
    }
    last
}

fn is_whole(world: &World) -> bool {
    assess(&world.wanted, &world.members(Timestamp::UNIX_EPOCH)).is_whole()
}

fn formed(shards: usize, replicas: usize, persistent: bool) -> World {
    let mut world = World::new(wanted(shards, replicas, persistent));
    mend(&mut world, &mut || true);
    assert!(is_whole(&world), "{}", world.tables());
    world.wanted.formed_before = true;
    world.fill();
    world.tick();
    world
}

fn fault() -> impl Strategy<Value = Option<Fault>> {
    let fault = (prop::bool::weighted(0.3), any::<bool>(), 0..12_u32)
        .prop_map(|(wiped, moved, down)| Fault { wiped, moved, down });
    prop::option::weighted(0.5, fault)
}

/// Faults strike at once, the nodes come back at different times, and the controller works all the while.
fn strike(world: &mut World, faults: &[Option<Fault>], dice: &mut impl FnMut() -> bool) {
    let struck = faults.iter().enumerate();
    let struck = struck.filter_map(|(index, fault)| Some((index, (*fault)?)));
    let struck: Vec<(usize, Fault)> = struck.collect();
    for (index, fault) in &struck {
        world.break_node(*index, *fault);
    }
    for tick in 0..=12 {
        for (index, fault) in &struck {
            if fault.down == tick {
                world.restart(*index);
            }
        }
        let now = Timestamp::from_second(i64::from(tick)).unwrap();
        let steps = plan(&world.wanted, &world.members(now), now);
        world.execute(&steps, &mut *dice);
        world.tick();
    }
}

fn dice(seed: u64) -> impl FnMut() -> bool {
    let mut state = seed | 1;
    move || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        !state.is_multiple_of(4)
    }
}

#[test]
fn a_new_cluster_is_formed_in_few_turns() {
    let world = formed(3, 1, true);
    assert!(world.refused.is_empty(), "{:?}", world.refused);
}

#[test]
fn nothing_is_done_before_everybody_is_there() {
    let mut world = World::new(wanted(3, 1, true));
    world.break_node(
        4,
        Fault {
            wiped: false,
            moved: true,
            down: 0,
        },
    );
    let now = Timestamp::UNIX_EPOCH;
    let plan = plan(&world.wanted, &world.members(now), now);
    assert!(plan.steps.is_empty());
    assert!(
        matches!(plan.holds.as_slice(), [Hold::WaitingForNodes { pods }] if pods == &["sim-2-0"])
    );
}

#[test]
fn a_node_that_never_comes_is_done_without() {
    let mut world = World::new(wanted(3, 1, true));
    world.break_node(
        5,
        Fault {
            wiped: false,
            moved: true,
            down: 0,
        },
    );
    let members = world.members(Timestamp::UNIX_EPOCH);
    let later = Timestamp::from_second(31).unwrap();
    let steps = plan(&world.wanted, &members, later);
    assert!(!steps.steps.is_empty());
}

#[test]
fn a_cluster_at_its_goal_is_left_alone() {
    let world = formed(4, 2, true);
    let now = Timestamp::UNIX_EPOCH;
    let steps = plan(&world.wanted, &world.members(now), now);
    assert_eq!(steps, Plan::default());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn forming_survives_interruptions(replicas in 0..3_usize, persistent: bool, seed: u64) {
        let mut world = World::new(wanted(3, replicas, persistent));
        mend(&mut world, &mut dice(seed));
        prop_assert!(is_whole(&world), "{}", world.tables());
    }

    #[test]
    fn volumes_that_are_kept_lose_nothing(
        replicas in 0..3_usize,
        faults in prop::collection::vec(fault(), 9),
        seed: u64,
    ) {
        let mut world = formed(3, replicas, true);
        let count = world.wanted.nodes();
        let kept: Vec<_> = faults.into_iter().take(count)
            .map(|fault| fault.map(|fault| Fault { wiped: false, ..fault })).collect();
        let mut dice = dice(seed);
        strike(&mut world, &kept, &mut dice);
        let rest = mend(&mut world, &mut dice);
        prop_assert!(is_whole(&world), "{:?}\n{}", rest, world.tables());
        prop_assert_eq!(world.shards_with_data().len(), 3);
    }

    #[test]
    fn what_one_node_of_a_shard_has_kept_is_kept(
        replicas in 0..3_usize,
        persistent: bool,
        faults in prop::collection::vec(fault(), 9),
        seed: u64,
    ) {
        let mut world = formed(3, replicas, persistent);
        let count = world.wanted.nodes();
        let mut dice = dice(seed);
        let faults: Vec<_> = faults.into_iter().take(count).collect();
        // What survives the blow itself.
        let mut after = world.clone();
        for (index, fault) in faults.iter().enumerate() {
            if let Some(fault) = fault {
                after.break_node(index, *fault);
            }
        }
        let saved = after.shards_that_can_be_saved();
        strike(&mut world, &faults, &mut dice);
        let rest = mend(&mut world, &mut dice);
        prop_assert_eq!(&world.shards_with_data(), &saved, "{:?}\n{}", rest, world.tables());
        if saved.len() == 3 || !persistent {
            prop_assert!(is_whole(&world), "{:?}\n{}", rest, world.tables());
        } else {
            let lost = rest.holds.iter().any(|hold| matches!(hold, Hold::SlotsLost { .. }));
            prop_assert!(lost, "{:?}\n{}", rest, world.tables());
        }
    }
}

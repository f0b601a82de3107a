//! From every state that faults can lead to, the planner reaches its goal, and on no way there is a key lost.

use super::{
    Action, Blocker, Plan, Step,
    simulation::{Fault, World, wanted},
};
use crate::redis::{
    assess::Assessment,
    member::{Answer, Member, Report, Wanted},
    survey::Survey,
};
use common::cluster::{
    slots::Slot,
    topology::{ClusterNode, NodeId, NodesView, OpenSlot, OpenSlotKind},
};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use std::collections::BTreeSet;

const RECONCILES: usize = 60;

pub(super) fn plan(wanted: &Wanted, members: &[Member], now: Timestamp) -> Plan {
    super::plan(&Survey::of(wanted, members), now)
}

pub(super) fn assess(wanted: &Wanted, members: &[Member]) -> Assessment {
    crate::redis::assess::assess(&Survey::of(wanted, members))
}

/// Reconciles until nothing is left to do. `dice` says which steps a controller gets to do before it is interrupted.
pub(crate) fn repair(world: &mut World, dice: &mut impl FnMut() -> bool) -> Plan {
    let mut last = Plan::default();
    for number in 0..RECONCILES {
        let now = Timestamp::from_second(i64::try_from(number).unwrap()).unwrap();
        let members = world.members(now);
        last = plan(&world.wanted, &members, now);
        let whole = assess(&world.wanted, &members).is_healthy();
        if whole && last.steps.is_empty() {
            return last;
        }
        // Towards the end nothing interrupts any more.
        world.execute(&last, || number > RECONCILES / 2 || dice());
        world.tick();
    }
    last
}

pub(super) fn is_healthy(world: &World) -> bool {
    assess(&world.wanted, &world.members(Timestamp::UNIX_EPOCH)).is_healthy()
}

pub(crate) fn formed(shards: usize, replicas: usize, persistent: bool) -> World {
    let mut world = World::new(wanted(shards, replicas, persistent));
    repair(&mut world, &mut || true);
    assert!(is_healthy(&world), "{}", world.tables());
    world.wanted.formed_before = true;
    world.fill();
    world.tick();
    world.age(3600);
    world
}

/// What a node that answers says.
pub(crate) fn report(member: &mut Member) -> &mut Report {
    let Answer::Report(report) = &mut member.answer else {
        panic!("no report")
    };
    report
}

/// Lets a node report that it gives the first slot to another one, or gets it from there.
pub(crate) fn open_slot(member: &mut Member, kind: OpenSlotKind, peer: NodeId) {
    let id = report(member).id();
    relist(member, id, |own| {
        own.open_slots = vec![OpenSlot {
            slot: Slot::MIN,
            kind,
            peer,
        }];
    });
}

/// Lets a member that answers list a node in another way.
pub(crate) fn relist(member: &mut Member, id: NodeId, change: impl Fn(&mut ClusterNode)) {
    let report = report(member);
    let nodes = report.view.nodes().iter().map(|listed| {
        let mut listed = ClusterNode::clone(listed);
        if listed.id == id {
            change(&mut listed);
        }
        listed
    });
    report.view = NodesView::of(nodes.collect()).unwrap();
}

/// Lets a node report that it is a primary, with this epoch and these slots, and that it knows no other node.
pub(crate) fn becomes_primary(report: &mut Report, epoch: u64, slots: &str) {
    let id = report.id();
    let line = format!("{id} 10.0.9.9:6379@16379 myself,master - 0 0 {epoch} connected {slots}\n");
    report.view = NodesView::parse(&line).unwrap();
}

const HOURS: SignedDuration = SignedDuration::from_hours(3);

/// Down for good, with its data.
const DOWN: Fault = Fault {
    wiped: false,
    moved: true,
    down: 0,
    loading: 0,
};

pub(super) fn fault() -> impl Strategy<Value = Option<Fault>> {
    let fault = (
        prop::bool::weighted(0.3),
        any::<bool>(),
        0..12_u32,
        0..40_u32,
    );
    let fault = fault.prop_map(|(wiped, moved, down, loading)| Fault {
        wiped,
        moved,
        down,
        loading,
    });
    prop::option::weighted(0.5, fault)
}

/// According to Kubernetes a node that does not answer has been down for a moment, or for hours.
fn down_for() -> impl Strategy<Value = SignedDuration> {
    prop::bool::ANY.prop_map(|long| if long { HOURS } else { SignedDuration::ZERO })
}

/// Faults strike at once, the nodes come back at different times, and the controller works all the while.
pub(super) fn strike(world: &mut World, faults: &[Option<Fault>], dice: &mut impl FnMut() -> bool) {
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

pub(super) fn dice(seed: u64) -> impl FnMut() -> bool {
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
fn a_new_cluster_is_formed_in_few_reconciles() {
    let world = formed(3, 1, true);
    assert!(world.refused.is_empty(), "{:?}", world.refused);
}

#[test]
fn nothing_is_done_before_every_node_is_there() {
    let mut world = World::new(wanted(3, 1, true));
    world.break_node(4, DOWN);
    let now = Timestamp::UNIX_EPOCH;
    let plan = plan(&world.wanted, &world.members(now), now);
    assert!(plan.steps.is_empty());
    assert!(
        matches!(plan.blockers.as_slice(), [Blocker::WaitingForNodes { pods, absent: 0 }]
            if pods == &[("sim-2-0".to_owned(), "down".to_owned())]),
        "{plan:?}"
    );
}

#[test]
fn a_node_that_never_comes_is_done_without() {
    let mut world = World::new(wanted(3, 1, true));
    world.break_node(5, DOWN);
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

/// The primary of the first shard and its replica.
fn first_shard(world: &World) -> (usize, usize) {
    if world.owns(0) { (0, 1) } else { (1, 0) }
}

fn promotions(plan: &Plan) -> usize {
    let steps = plan.steps.iter();
    steps
        .filter(|step| matches!(step.action, Action::Promote { .. }))
        .count()
}

/// The whole Kubernetes node was away for hours, and the replica is the first to answer.
#[test]
fn the_first_to_answer_is_not_served_first() {
    let mut world = formed(3, 1, true);
    world.down_for = HOURS;
    let (primary, replica) = first_shard(&world);
    for index in 0..6 {
        world.break_node(index, DOWN);
    }
    for index in (0..6).filter(|index| *index != primary) {
        world.restart(index);
    }
    let mut promoted_after = None;
    for second in 0..60 {
        let now = Timestamp::from_second(second).unwrap();
        let plan = plan(&world.wanted, &world.members(now), now);
        if promotions(&plan) > 0 && promoted_after.is_none() {
            promoted_after = Some(second);
        }
        world.execute(&plan, || true);
        world.tick();
    }
    assert_eq!(promoted_after, Some(30), "patience");
    assert!(world.owns(replica));
}

/// However long it takes: what is read is what was acknowledged.
#[test]
fn a_primary_that_loads_is_waited_for() {
    let mut world = formed(3, 1, true);
    world.down_for = HOURS;
    let (primary, _) = first_shard(&world);
    let loading = 4000;
    world.break_node(primary, Fault { loading, ..DOWN });
    world.restart(primary);
    let now = Timestamp::UNIX_EPOCH;
    let members = world.members(now);
    assert_eq!(members[primary].answer, Answer::Loading);
    let plan = plan(&world.wanted, &members, now);
    assert_eq!(promotions(&plan), 0);
    let words: Vec<String> = plan.blockers.iter().map(ToString::to_string).collect();
    let pod = &members[primary].expected.pod;
    let said = words
        .iter()
        .any(|word| word.contains(&format!("{pod}, which is loading")));
    assert!(said, "{words:?}");
}

/// The copy of an empty shard looks like no copy at all.
#[test]
fn a_replica_without_anything_is_left_to_a_person() {
    let mut world = World::new(wanted(3, 1, true));
    repair(&mut world, &mut || true);
    world.wanted.formed_before = true;
    world.down_for = HOURS;
    let (primary, replica) = first_shard(&world);
    world.break_node(primary, DOWN);
    world.break_node(
        replica,
        Fault {
            moved: false,
            ..DOWN
        },
    );
    world.restart(replica);
    world.age(3600);
    world.tick();
    let now = Timestamp::UNIX_EPOCH;
    let plan = plan(&world.wanted, &world.members(now), now);
    assert_eq!(promotions(&plan), 0);
    assert!(
        plan.blockers
            .iter()
            .any(|blocker| matches!(blocker, Blocker::EmptyCopy { shard: 0, .. })),
        "{plan:?}"
    );
    let words = plan.blockers.first().map(ToString::to_string).unwrap();
    assert!(words.contains("cluster failover takeover"), "{words}");
}

/// A Kubernetes node that goes must not take the majority with it.
#[test]
fn primaries_are_spread_over_machines() {
    let mut world = World::new(wanted(3, 1, true));
    // Every first pod is on one Kubernetes node.
    world.kubernetes_nodes = vec!["one", "two", "one", "two", "one", "three"];
    repair(&mut world, &mut || true);
    assert!(is_healthy(&world), "{}", world.tables());
    let primaries = (0..6).filter(|index| world.owns(*index));
    let kubernetes_nodes: BTreeSet<&str> = primaries
        .map(|index| world.kubernetes_nodes[index])
        .collect();
    assert_eq!(kubernetes_nodes.len(), 3, "{kubernetes_nodes:?}");
}

/// The address of a pod on its way out is soon another's; and what is new to a cluster that has served is looked at twice.
#[test]
fn a_first_contact_is_confirmed_live() {
    let mut world = formed(3, 1, true);
    world.break_node(
        5,
        Fault {
            wiped: true,
            ..DOWN
        },
    );
    world.restart(5);
    let now = Timestamp::UNIX_EPOCH;
    let mut members = world.members(now);
    let met = plan(&world.wanted, &members, now);
    assert!(met.is_risky(), "{met:?}");
    members[5].expected.terminating = true;
    let left = plan(&world.wanted, &members, now);
    let meets = |step: &Step| matches!(step.action, Action::Meet { .. });
    assert!(!left.steps.iter().any(meets), "{left:?}");
    // A known node at another address is no first contact, terminating or not.
    let mut world = formed(3, 1, true);
    world.break_node(5, DOWN);
    world.restart(5);
    let mut members = world.members(now);
    members[5].expected.terminating = true;
    let met = plan(&world.wanted, &members, now);
    assert!(!met.steps.is_empty() && !met.is_risky(), "{met:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn forming_survives_interruptions(replicas in 0..3_usize, persistent: bool, seed: u64) {
        let mut world = World::new(wanted(3, replicas, persistent));
        repair(&mut world, &mut dice(seed));
        prop_assert!(is_healthy(&world), "{}", world.tables());
    }

    #[test]
    fn volumes_that_are_kept_lose_nothing(
        replicas in 0..3_usize,
        faults in prop::collection::vec(fault(), 9),
        down_for in down_for(),
        seed: u64,
    ) {
        let mut world = formed(3, replicas, true);
        world.down_for = down_for;
        let count = world.wanted.nodes();
        let kept: Vec<_> = faults.into_iter().take(count)
            .map(|fault| fault.map(|fault| Fault { wiped: false, ..fault })).collect();
        let mut dice = dice(seed);
        strike(&mut world, &kept, &mut dice);
        let rest = repair(&mut world, &mut dice);
        prop_assert!(is_healthy(&world), "{:?}\n{}", rest, world.tables());
        prop_assert_eq!(world.shards_with_data().len(), 3);
    }

    /// Some replicas have missed the last writes when everything goes down, and come back first.
    #[test]
    fn what_was_written_last_is_served_again(
        replicas in 1..3_usize,
        stale in prop::collection::vec(any::<bool>(), 9),
        faults in prop::collection::vec(fault(), 9),
        seed: u64,
    ) {
        let mut world = formed(3, replicas, true);
        world.down_for = HOURS;
        let stale: Vec<bool> = stale.into_iter().take(world.wanted.nodes()).enumerate()
            .map(|(index, stale)| stale && !world.owns(index)).collect();
        for index in (0..stale.len()).filter(|index| stale[*index]) {
            world.break_node(index, DOWN);
        }
        world.fill();
        world.tick();
        let faults: Vec<_> = faults.into_iter().zip(&stale)
            .map(|(fault, stale)| match fault {
                Some(fault) => Some(Fault { wiped: false, ..fault }),
                None => stale.then_some(DOWN),
            }).collect();
        let mut dice = dice(seed);
        strike(&mut world, &faults, &mut dice);
        let rest = repair(&mut world, &mut dice);
        prop_assert!(is_healthy(&world), "{:?}\n{}", rest, world.tables());
        let served: Vec<u64> = world.served().into_values().collect();
        prop_assert_eq!(served, vec![2, 2, 2], "{}", world.tables());
    }

    #[test]
    fn what_one_node_of_a_shard_has_kept_is_kept(
        replicas in 0..3_usize,
        persistent: bool,
        faults in prop::collection::vec(fault(), 9),
        down_for in down_for(),
        seed: u64,
    ) {
        let mut world = formed(3, replicas, persistent);
        world.down_for = down_for;
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
        let rest = repair(&mut world, &mut dice);
        prop_assert_eq!(&world.shards_with_data(), &saved, "{:?}\n{}", rest, world.tables());
        if saved.len() == 3 || !persistent {
            prop_assert!(is_healthy(&world), "{:?}\n{}", rest, world.tables());
        } else {
            let lost = rest.blockers.iter().any(|blocker| matches!(blocker, Blocker::SlotsLost { .. }));
            prop_assert!(lost, "{:?}\n{}", rest, world.tables());
        }
    }
}

//! Hand-overs lead to the best placement by the shortest way, with and without zones.

use super::{
    Action, Plan,
    placement::{NodeZones, Placement, Relocation, next, tolerable_loss},
    simulation::World,
    tests::{formed, is_healthy, plan},
};
use crate::redis::member::{Member, ZoneLabel};
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const NODES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const ZONES: [&str; 3] = ["a", "south", "east"];

fn relocate<'a>(placements: &mut [Placement<'a>], relocation: Relocation<'a>) {
    let one = &mut placements[relocation.shard];
    assert!(one.replicas.remove(relocation.to), "no replica is there");
    one.replicas.insert(one.at);
    one.at = relocation.to;
}

/// The hand-overs until there is none left.
fn run<'a>(placements: &mut [Placement<'a>], zones: &NodeZones<'a>) -> Vec<Relocation<'a>> {
    let mut done = Vec::new();
    while let Some(relocation) = next(placements, zones) {
        relocate(placements, relocation);
        done.push(relocation);
        assert!(done.len() < 100, "no end: {done:?}");
    }
    done
}

fn counts<'a>(places: &[&'a str], of: impl Fn(&'a str) -> (bool, &'a str)) -> Vec<usize> {
    let mut counts: BTreeMap<(bool, &str), usize> = BTreeMap::new();
    for place in places {
        *counts.entry(of(place)).or_default() += 1;
    }
    counts.into_values().collect()
}

/// Primaries that zones have beyond what the others can do without, those of a majority once more; and squares of the nodes' loads.
fn measure<'a>(places: &[&'a str], zones: &NodeZones<'a>) -> (usize, usize) {
    let all = places.len();
    let zone = |node: &'a str| zones.get(node).map_or((false, node), |zone| (true, *zone));
    let is_stuck_without = |lost: usize| 2 * (all - lost) <= all;
    let overload = |load: usize| {
        let stuck = (1..=load).filter(|lost| is_stuck_without(*lost)).count();
        stuck + (1..=load).filter(|part| 2 * part > all).count()
    };
    let loads = counts(places, |node| (false, node));
    (
        counts(places, zone).into_iter().map(overload).sum(),
        loads.into_iter().map(|load| load * load).sum(),
    )
}

/// The measure of the best placements, and how many hand-overs the nearest of them needs.
fn best<'a>(placements: &[Placement<'a>], zones: &NodeZones<'a>) -> ((usize, usize), usize) {
    let mut all: Vec<(Vec<&str>, usize)> = vec![(Vec::new(), 0)];
    for one in placements {
        let choices: Vec<(&str, usize)> = std::iter::once((one.at, 0))
            .chain(one.replicas.iter().map(|node| (*node, 1)))
            .collect();
        all = all
            .iter()
            .flat_map(|(chosen, moved)| {
                choices.iter().map(move |(node, more)| {
                    let mut chosen = chosen.clone();
                    chosen.push(*node);
                    (chosen, moved + more)
                })
            })
            .collect();
    }
    let measured = all
        .into_iter()
        .map(|(chosen, moved)| (measure(&chosen, zones), moved));
    measured.min().unwrap()
}

fn places<'a>(placements: &[Placement<'a>]) -> Vec<&'a str> {
    placements.iter().map(|one| one.at).collect()
}

fn one<'a>(at: &'a str, replicas: &[&'a str]) -> Placement<'a> {
    Placement {
        at,
        replicas: replicas.iter().copied().collect(),
    }
}

fn placement() -> impl Strategy<Value = Placement<'static>> {
    prop::sample::subsequence(NODES.to_vec(), 1..4)
        .prop_shuffle()
        .prop_map(|nodes| {
            let (at, replicas) = nodes.split_first().unwrap();
            one(at, replicas)
        })
}

/// A zone for some of the nodes; one has the name of a node.
fn zones() -> impl Strategy<Value = NodeZones<'static>> {
    prop::collection::vec(0..ZONES.len() + 1, NODES.len()).prop_map(|chosen| {
        let named = NODES.into_iter().zip(chosen);
        named
            .filter_map(|(node, zone)| Some((node, *ZONES.get(zone)?)))
            .collect()
    })
}

#[test]
fn two_of_three_on_one_node_become_one_each() {
    let mut placements = [
        one("a", &["b", "c"]),
        one("a", &["b", "c"]),
        one("b", &["a", "c"]),
    ];
    let done = run(&mut placements, &NodeZones::new());
    assert_eq!(done.len(), 1, "{done:?}");
    assert_eq!(done[0].to, "c");
}

/// The primaries on the full node have replicas on a node that is no better, whose primary can go on.
#[test]
fn a_chain_is_done_from_its_end() {
    let mut placements = [one("a", &["b"]), one("a", &["b"]), one("b", &["c"])];
    let done = run(&mut placements, &NodeZones::new());
    let shards: Vec<usize> = done.iter().map(|one| one.shard).collect();
    assert_eq!(shards, [2, 0]);
}

/// Each Kubernetes node has one primary, and one zone has two nodes.
#[test]
fn a_zone_hands_its_majority_over() {
    let zones = NodeZones::from([("a", "x"), ("b", "x"), ("c", "y"), ("d", "z")]);
    let mut placements = [one("a", &["c"]), one("b", &["d"]), one("c", &["a"])];
    let done = run(&mut placements, &zones);
    assert_eq!(done, [Relocation { shard: 1, to: "d" }]);
    assert_eq!(run(&mut placements, &NodeZones::new()), []);
}

/// In two zones one has the majority of three primaries, wherever they are.
#[test]
fn a_majority_that_cannot_be_avoided_stays() {
    let zones = NodeZones::from([("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")]);
    let mut placements = [one("a", &["c"]), one("b", &["d"]), one("c", &["a"])];
    assert_eq!(run(&mut placements, &zones), []);
    let mut placements = [one("a", &["c"]), one("b", &["d"]), one("a", &["d"])];
    assert_eq!(run(&mut placements, &zones).len(), 1);
}

/// No zone has the majority of four primaries, although the loss of either leaves none.
#[test]
fn four_primaries_are_halved_between_two_zones() {
    let zones = NodeZones::from([("a", "x"), ("b", "x"), ("c", "x"), ("d", "y")]);
    let mut placements = [
        one("a", &["d"]),
        one("b", &["d"]),
        one("c", &["d"]),
        one("d", &["a"]),
    ];
    assert_eq!(run(&mut placements, &zones).len(), 1);
    assert_eq!(measure(&places(&placements), &zones).1, 6);
}

#[test]
fn the_rest_elects_after_a_tolerable_loss() {
    for (primaries, tolerable) in [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (500, 249)] {
        assert_eq!(tolerable_loss(primaries), tolerable, "{primaries}");
    }
}

/// As large as a cluster gets, with all primaries on one of a hundred Kubernetes nodes: one look, and one at the goal.
#[test]
fn five_hundred_shards_are_planned_at_once() {
    let names: Vec<String> = (0..100).map(|node| format!("node-{node}")).collect();
    let zones: NodeZones<'_> = names
        .iter()
        .zip(0..)
        .map(|(name, number): (_, usize)| (name.as_str(), ZONES[number % 3]))
        .collect();
    let name = |node: usize| names[node % 100].as_str();
    let crowded: Vec<Placement<'_>> = (0..500)
        .map(|shard| one(name(0), &[name(1 + shard % 99), name(1 + shard * 7 % 99)]))
        .collect();
    assert!(next(&crowded, &zones).is_some());
    let even: Vec<Placement<'_>> = (0..500)
        .map(|shard| one(name(shard), &[name(shard + 1), name(shard * 7 + 3)]))
        .collect();
    assert_eq!(next(&even, &zones), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Each hand-over is one less to the nearest of the best placements: none is taken back, and the way ends there.
    #[test]
    fn the_best_placement_is_reached_by_the_shortest_way(
        mut placements in prop::collection::vec(placement(), 1..6),
        zones in zones(),
    ) {
        let (goal, hand_overs) = best(&placements, &zones);
        let done = run(&mut placements, &zones);
        prop_assert_eq!(measure(&places(&placements), &zones), goal);
        prop_assert_eq!(done.len(), hand_overs);
    }

    /// Where no zone is known, the Kubernetes nodes decide alone.
    #[test]
    fn without_zones_no_node_has_more_than_it_must(
        mut placements in prop::collection::vec(placement(), 1..6),
    ) {
        let none = NodeZones::new();
        let ((_, squares), _) = best(&placements, &none);
        run(&mut placements, &none);
        prop_assert_eq!(measure(&places(&placements), &none).1, squares);
        let zones: NodeZones<'_> = NODES.into_iter().map(|node| (node, "only")).collect();
        prop_assert_eq!(run(&mut placements, &zones), []);
    }
}

/// Three shards on four Kubernetes nodes, of which the first two share a zone.
fn zoned() -> World {
    let mut world = formed(3, 1, true);
    let primaries: Vec<usize> = (0..6).filter(|index| world.owns(*index)).collect();
    let nodes = [("one", "three"), ("two", "four"), ("three", "one")];
    for (primary, (own, other)) in primaries.into_iter().zip(nodes) {
        world.kubernetes_nodes[primary] = own;
        world.kubernetes_nodes[primary ^ 1] = other;
    }
    world
}

fn label(members: &mut [Member]) {
    for member in members {
        member.expected.zone = match member.expected.kubernetes_node.as_deref() {
            Some("one" | "two") => ZoneLabel::Named("north".into()),
            Some("three") => ZoneLabel::Named("south".into()),
            _ => ZoneLabel::Absent,
        };
    }
}

#[test]
fn a_healthy_cluster_leaves_no_zone_the_majority() {
    let mut world = zoned();
    let mut reasons = Vec::new();
    for second in 0..20 {
        let now = Timestamp::from_second(second).unwrap();
        let mut members = world.members(now);
        label(&mut members);
        let seen = plan(&world.wanted, &members, now);
        reasons.extend(seen.steps.iter().map(|step| step.reason.clone()));
        world.execute(&seen, || true);
        world.tick();
        world.tick();
    }
    let [reason] = reasons.as_slice() else {
        panic!("{reasons:?}")
    };
    assert!(
        reason.starts_with("2 of 3 primaries are in zone north: "),
        "{reason}"
    );
    let zones: BTreeSet<&str> = (0..6)
        .filter(|index| world.owns(*index))
        .map(|index| match world.kubernetes_nodes[index] {
            "one" | "two" => "north",
            other => other,
        })
        .collect();
    assert_eq!(zones.len(), 3, "{zones:?}");
    assert!(is_healthy(&world), "{}", world.tables());
}

/// One zone that was not read yet could make another hand-over the right one.
#[test]
fn nothing_is_decided_before_every_zone_is_read() {
    let world = zoned();
    let now = Timestamp::UNIX_EPOCH;
    let mut members = world.members(now);
    label(&mut members);
    let seen = plan(&world.wanted, &members, now);
    let hands_over = |step: &super::Step| matches!(step.action, Action::HandOver { .. });
    assert!(seen.steps.iter().any(hands_over), "{seen:?}");
    members[5].expected.zone = ZoneLabel::Unread;
    assert_eq!(plan(&world.wanted, &members, now), Plan::default());
}

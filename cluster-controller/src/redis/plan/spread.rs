//! Primaries are spread over the Kubernetes nodes again after failovers, so that the loss of one node costs as few of them as
//! possible and never a majority that another placement would keep.
//!
//! The load of a Kubernetes node is the number of primaries on it. A hand-over moves one primary to the node of a linked replica. A chain
//! of hand-overs improves the placement if its first node has at least two primaries more than its last one; where no chain does, the
//! sum of the squares of the loads is the least possible, and so is the highest load (Harvey, Ladner, Lovász, Tamir: "Semi-matchings for
//! bipartite graphs and load balancing"). Of the shortest chain the last link is done first. With it either the sum of squares falls, or
//! the shortest chain becomes shorter: no hand-over is ever taken back, and at the goal there is none.

use super::{Action, HandOverReason, Plan};
use crate::redis::{
    assess::assess,
    member::Member,
    survey::{Live, Survey},
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, VecDeque},
};

/// A replica that is further behind is not handed over to: the clients would wait for it. Bytes of the stream of writes; the offsets
/// are not read at one moment.
const CAUGHT_UP: u64 = 1 << 20;

/// Where the primary of a shard is, and where else it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement<'a> {
    /// The Kubernetes node of the primary.
    pub at: &'a str,
    /// The Kubernetes nodes of replicas that are linked and caught up.
    pub replicas: BTreeSet<&'a str>,
}

/// A primary goes from one Kubernetes node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation<'a> {
    /// Index of its placement.
    pub shard: usize,
    /// The Kubernetes node that it goes to.
    pub to: &'a str,
}

/// Plans at most one hand-over, and only while the cluster is healthy.
pub fn spread(survey: &Survey<'_>, plan: &mut Plan) {
    let wanted = survey.wanted;
    if !wanted.may_spread || !wanted.formed_before || !plan.steps.is_empty() {
        return;
    }
    let shards: Option<Vec<Spreadable<'_>>> = (0..wanted.shards)
        .map(|shard| spreadable(survey, shard))
        .collect();
    let Some(shards) = shards else {
        return;
    };
    let placements: Vec<Placement<'_>> = shards.iter().map(Spreadable::placement).collect();
    let Some(relocation) = next(&placements) else {
        return;
    };
    let leaving = |one: &Member| one.expected.terminating || !one.expected.address_is_current;
    if survey.members.iter().any(leaving) || !assess(survey).is_healthy() {
        return;
    }
    let shard = shards.get(relocation.shard);
    let Some((shard, to)) = shard.and_then(|one| Some((one, one.replicas.get(relocation.to)?)))
    else {
        return;
    };
    let at = shard.at;
    let load = placements.iter().filter(|one| one.at == at).count();
    let reason = format!(
        "{load} primaries are on Kubernetes node {at}: {} hands its slots over to {} on {}",
        shard.primary.pod(),
        to.pod(),
        relocation.to
    );
    let action = Action::HandOver {
        to: to.index,
        from: shard.primary.index,
        reason: HandOverReason::Spread,
    };
    plan.step(action, reason);
}

/// The next hand-over; none: no placement that these replicas allow is better.
pub fn next<'a>(placements: &[Placement<'a>]) -> Option<Relocation<'a>> {
    let mut loads: BTreeMap<&str, usize> = BTreeMap::new();
    for placement in placements {
        *loads.entry(placement.at).or_default() += 1;
        for replica in &placement.replicas {
            loads.entry(replica).or_default();
        }
    }
    let mut from: Vec<(&str, usize)> = loads.iter().map(|(node, load)| (*node, *load)).collect();
    from.sort_by_key(|(node, load)| (Reverse(*load), *node));
    let chains = from
        .into_iter()
        .filter_map(|(node, load)| shortest_chain(placements, &loads, node, load));
    let (_, last) = chains.min_by_key(|(length, _)| *length)?;
    Some(last)
}

/// The shortest chain from a node to one with at least two primaries fewer: its length and its last link.
fn shortest_chain<'a>(
    placements: &[Placement<'a>],
    loads: &BTreeMap<&'a str, usize>,
    start: &'a str,
    load: usize,
) -> Option<(usize, Relocation<'a>)> {
    let mut seen = BTreeSet::from([start]);
    let mut queue = VecDeque::from([(start, 0)]);
    while let Some((node, length)) = queue.pop_front() {
        let here = placements.iter().enumerate();
        for (shard, placement) in here.filter(|(_, one)| one.at == node) {
            for to in &placement.replicas {
                if !seen.insert(to) {
                    continue;
                }
                if loads.get(to).copied().unwrap_or_default() + 2 <= load {
                    return Some((length + 1, Relocation { shard, to }));
                }
                queue.push_back((to, length + 1));
            }
        }
    }
    None
}

struct Spreadable<'a> {
    primary: Live<'a>,
    at: &'a str,
    replicas: BTreeMap<&'a str, Live<'a>>,
}

impl<'a> Spreadable<'a> {
    fn placement(&self) -> Placement<'a> {
        Placement {
            at: self.at,
            replicas: self.replicas.keys().copied().collect(),
        }
    }
}

/// None where it is not known where the primary is.
fn spreadable<'a>(survey: &Survey<'a>, shard: usize) -> Option<Spreadable<'a>> {
    let primary = survey.primary_of(shard)?;
    let at = primary.member.expected.kubernetes_node.as_deref()?;
    let mut replicas: BTreeMap<&str, Live<'a>> = BTreeMap::new();
    for one in survey.live_in(shard) {
        let node = one.member.expected.kubernetes_node.as_deref();
        let Some(node) = node.filter(|node| *node != at) else {
            continue;
        };
        if !can_take_over(one, primary) {
            continue;
        }
        let ordinal = |one: &Live<'_>| one.member.expected.ordinal;
        let best = replicas.entry(node).or_insert(one);
        if ordinal(&one) < ordinal(best) {
            *best = one;
        }
    }
    Some(Spreadable {
        primary,
        at,
        replicas,
    })
}

/// Whether a replica is linked to the primary and has nearly everything.
pub fn can_take_over(replica: Live<'_>, primary: Live<'_>) -> bool {
    let (copy, original) = (&replica.report.replication, &primary.report.replication);
    replica.report.own().primary == Some(primary.report.id())
        && copy
            .upstream
            .as_ref()
            .is_some_and(|link| link.up && !link.syncing)
        && copy.id == original.id
        && copy.offset.saturating_add(CAUGHT_UP) >= original.offset
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NODES: [&str; 5] = ["a", "b", "c", "d", "e"];

    fn squares(placements: &[Placement<'_>]) -> usize {
        let load = |node: &&str| placements.iter().filter(|one| one.at == *node).count();
        NODES.iter().map(|node| load(node).pow(2)).sum()
    }

    fn highest(placements: &[Placement<'_>]) -> usize {
        let load = |node: &&str| placements.iter().filter(|one| one.at == *node).count();
        NODES.iter().map(load).max().unwrap()
    }

    fn relocate<'a>(placements: &mut [Placement<'a>], relocation: Relocation<'a>) {
        let one = &mut placements[relocation.shard];
        assert!(one.replicas.remove(relocation.to), "no replica is there");
        one.replicas.insert(one.at);
        one.at = relocation.to;
    }

    /// The least sum of squares of all placements.
    fn best(placements: &[Placement<'_>]) -> (usize, usize) {
        let choices: Vec<Vec<&str>> = placements
            .iter()
            .map(|one| {
                std::iter::once(one.at)
                    .chain(one.replicas.iter().copied())
                    .collect()
            })
            .collect();
        let mut all = vec![Vec::new()];
        for nodes in &choices {
            all = all
                .iter()
                .flat_map(|chosen: &Vec<&str>| {
                    nodes.iter().map(move |node| {
                        let mut more = chosen.clone();
                        more.push(*node);
                        more
                    })
                })
                .collect();
        }
        let measured = all.into_iter().map(|chosen| {
            let placed: Vec<Placement<'_>> = chosen
                .into_iter()
                .map(|at| Placement {
                    at,
                    replicas: BTreeSet::new(),
                })
                .collect();
            (squares(&placed), highest(&placed))
        });
        measured.min().unwrap()
    }

    fn placement() -> impl Strategy<Value = Placement<'static>> {
        prop::sample::subsequence(NODES.to_vec(), 1..4)
            .prop_shuffle()
            .prop_map(|nodes| {
                let (at, replicas) = nodes.split_first().unwrap();
                Placement {
                    at,
                    replicas: replicas.iter().copied().collect(),
                }
            })
    }

    #[test]
    fn two_of_three_on_one_node_become_one_each() {
        let all = |at| Placement {
            at,
            replicas: ["a", "b", "c"]
                .into_iter()
                .filter(|node| *node != at)
                .collect(),
        };
        let mut placements = [all("a"), all("a"), all("b")];
        let relocation = next(&placements).unwrap();
        assert_eq!(relocation, Relocation { shard: 0, to: "c" });
        relocate(&mut placements, relocation);
        assert_eq!(next(&placements), None);
    }

    /// The primaries on the full node have replicas on a node that is no better, whose primary can go on.
    #[test]
    fn a_chain_is_done_from_its_end() {
        let mut placements = [("a", "b"), ("a", "b"), ("b", "c")].map(|(at, replica)| Placement {
            at,
            replicas: [replica].into(),
        });
        let mut shards = Vec::new();
        while let Some(relocation) = next(&placements) {
            shards.push(relocation.shard);
            relocate(&mut placements, relocation);
        }
        assert_eq!(shards, [2, 0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn hand_overs_only_improve_and_end_at_the_best(
            mut placements in prop::collection::vec(placement(), 1..7),
        ) {
            let goal = best(&placements);
            let mut seen: Vec<Vec<&str>> = Vec::new();
            let mut measure = squares(&placements);
            while let Some(relocation) = next(&placements) {
                let now: Vec<&str> = placements.iter().map(|one| one.at).collect();
                prop_assert!(!seen.contains(&now), "back at {now:?}");
                seen.push(now);
                relocate(&mut placements, relocation);
                prop_assert!(squares(&placements) <= measure);
                measure = squares(&placements);
            }
            prop_assert_eq!((squares(&placements), highest(&placements)), goal);
        }
    }
}

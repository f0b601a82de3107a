//! Which nodes become the primaries of shards that have none: spread over the Kubernetes nodes, so that no hand-over follows.

use super::placement::{NodeZones, Placement, Relocation, next};
use crate::redis::survey::{Live, Survey};
use std::collections::{BTreeMap, HashMap};

/// How many primaries each Kubernetes node has.
pub type Loads<'a> = HashMap<&'a str, usize>;

/// One node for each of these shards that has a node without keys.
pub fn choose<'a>(survey: &Survey<'a>, shards: &[usize]) -> BTreeMap<usize, Live<'a>> {
    let mut loads = loads(survey, &BTreeMap::new());
    let mut chosen = BTreeMap::new();
    for shard in shards {
        let Some(one) = least_loaded(survey, *shard, &loads) else {
            continue;
        };
        if let Some(name) = kubernetes_node(one) {
            *loads.entry(name).or_default() += 1;
        }
        chosen.insert(*shard, one);
    }
    rearrange(survey, &mut chosen);
    chosen
}

/// The primaries that each Kubernetes node has, those that are chosen included.
pub fn loads<'a>(survey: &Survey<'a>, chosen: &BTreeMap<usize, Live<'a>>) -> Loads<'a> {
    let mut loads = Loads::new();
    let there = (0..survey.wanted.shards).filter_map(|shard| survey.primary_of(shard));
    for name in there
        .chain(chosen.values().copied())
        .filter_map(kubernetes_node)
    {
        *loads.entry(name).or_default() += 1;
    }
    loads
}

/// What the choice for one shard after the other leaves uneven. Where not all Kubernetes nodes are known, that choice stays.
fn rearrange<'a>(survey: &Survey<'a>, chosen: &mut BTreeMap<usize, Live<'a>>) {
    let there = (0..survey.wanted.shards).filter_map(|shard| survey.primary_of(shard));
    let settled = there.map(|one| (one.shard(), one, false));
    let movable = chosen.iter().map(|(shard, one)| (*shard, *one, true));
    let placed: Vec<(usize, Live<'a>, bool)> = settled.chain(movable).collect();
    let placements = placed
        .iter()
        .map(|(shard, one, may_move)| placement(survey, *shard, *one, *may_move));
    let Some(mut placements) = placements.collect::<Option<Vec<_>>>() else {
        return;
    };
    // Zones are not read before the cluster is formed. Each primary moves once, so it ends before.
    let zones = NodeZones::new();
    for _ in 0..placements.len() * 2 {
        let Some(Relocation { shard: index, to }) = next(&placements, &zones) else {
            return;
        };
        let Some((shard, _, _)) = placed.get(index) else {
            return;
        };
        let mut candidates = candidates(survey, *shard);
        let Some(one) = candidates.find(|one| kubernetes_node(*one) == Some(to)) else {
            return;
        };
        if let Some((place, new)) = placements
            .get_mut(index)
            .zip(placement(survey, *shard, one, true))
        {
            *place = new;
        }
        chosen.insert(*shard, one);
    }
}

/// None where it is not known where the node is.
fn placement<'a>(
    survey: &Survey<'a>,
    shard: usize,
    primary: Live<'a>,
    may_move: bool,
) -> Option<Placement<'a>> {
    let at = kubernetes_node(primary)?;
    let others = candidates(survey, shard).filter(|_| may_move);
    let replicas = others.filter_map(kubernetes_node);
    Some(Placement {
        at,
        replicas: replicas.filter(|name| *name != at).collect(),
    })
}

/// Nodes without keys whose pods stay.
fn candidates<'a>(survey: &Survey<'a>, shard: usize) -> impl Iterator<Item = Live<'a>> {
    let live = survey.live_in(shard);
    live.filter(|one| one.report.is_blank() && !one.member.expected.terminating)
}

/// The node without keys whose Kubernetes node has the fewest primaries: the loss of one must not take the majority.
fn least_loaded<'a>(survey: &Survey<'a>, shard: usize, loads: &Loads<'a>) -> Option<Live<'a>> {
    let blank = survey.live_in(shard).filter(|one| one.report.is_blank());
    blank.min_by_key(|one| {
        let expected = &one.member.expected;
        let load = kubernetes_node(*one).and_then(|name| loads.get(name));
        (
            expected.terminating,
            load.copied().unwrap_or_default(),
            expected.ordinal,
        )
    })
}

fn kubernetes_node(one: Live<'_>) -> Option<&str> {
    one.member.expected.kubernetes_node.as_deref()
}

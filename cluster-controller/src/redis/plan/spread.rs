//! Primaries are spread over zones and Kubernetes nodes again after failovers: the hand-overs of a healthy cluster. `placement` says which.

use super::{
    Action, HandOverReason, Plan,
    placement::{NodeZones, Placement, Relocation, next, tolerable_loss},
};
use crate::redis::{
    assess::{CAUGHT_UP, assess, can_take_over},
    election::would_win,
    member::{Member, ZoneLabel},
    survey::{Live, Survey},
};
use std::collections::BTreeMap;

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
    let Some(zones) = zones(survey) else {
        return;
    };
    let Some(relocation) = next(&placements, &zones) else {
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
    if !would_win(survey, *to, shard.primary) {
        return;
    }
    let reason = format!(
        "{}: {} hands its slots over to {} on {}",
        why(&placements, &zones, (shard.at, relocation)),
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

/// What is wrong with the place of a primary.
fn why(
    placements: &[Placement<'_>],
    zones: &NodeZones<'_>,
    (at, relocation): (&str, Relocation<'_>),
) -> String {
    let zone = |node: &str| zones.get(node).copied();
    let all = placements.len();
    if let Some(crowded) = zone(at).filter(|old| zone(relocation.to) != Some(old)) {
        let there = placements
            .iter()
            .filter(|one| zone(one.at) == Some(crowded))
            .count();
        if there > tolerable_loss(all) {
            return format!("{there} of {all} primaries are in zone {crowded}");
        }
    }
    match placements.iter().filter(|one| one.at == at).count() {
        1 => format!("Kubernetes node {at} is to take the primary of another shard"),
        there => format!("{there} primaries are on Kubernetes node {at}"),
    }
}

/// The zones of the Kubernetes nodes that members run on. None: not all were read yet, and what is decided without one could be wrong.
fn zones<'a>(survey: &Survey<'a>) -> Option<NodeZones<'a>> {
    let mut zones = NodeZones::new();
    for member in survey.members {
        let Some(node) = &member.expected.kubernetes_node else {
            continue;
        };
        match &member.expected.zone {
            ZoneLabel::Unread => return None,
            ZoneLabel::Absent => {}
            ZoneLabel::Named(zone) => {
                zones.insert(node, zone);
            }
        }
    }
    Some(zones)
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
        // Who drains it would move the primary once more.
        if one.member.expected.cordoned || !can_take_over(one, primary, CAUGHT_UP) {
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

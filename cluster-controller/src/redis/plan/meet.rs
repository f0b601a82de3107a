//! Addresses: every node has to know every other by its live address.

use super::{Action, Hold, Plan};
use crate::redis::survey::{Live, Survey};
use common::cluster::topology::{Flag, NodeAddress};
use k8s_openapi::jiff::Timestamp;
use std::collections::HashSet;

/// Up to this many nodes each is introduced to each, which takes the least time. Larger clusters are introduced along
/// chords, and gossip does the rest.
const MESH: usize = 32;

/// Whom a node is to be introduced to.
#[derive(Clone, Default)]
struct Introduction {
    others: Vec<NodeAddress>,
    strangers: bool,
}

/// Plans the introductions that are missing.
pub fn introduce(survey: &Survey<'_>, now: Timestamp, plan: &mut Plan) {
    let ours: HashSet<NodeAddress> = survey
        .members
        .iter()
        .filter_map(|member| member.place.address)
        .collect();
    let mut others: Vec<Introduction> = vec![Introduction::default(); survey.live.len()];
    for (first, second) in pairs(survey.live.len(), now) {
        let (Some(&a), Some(&b)) = (survey.live.get(first), survey.live.get(second)) else {
            continue;
        };
        let missing = if !knows(a, b) {
            Some((first, a, b))
        } else if !knows(b, a) {
            Some((second, b, a))
        } else {
            None
        };
        let Some((from, sender, receiver)) = missing else {
            continue;
        };
        if in_handshake(sender, receiver) || in_handshake(receiver, sender) {
            continue;
        }
        let strangers = !acquainted(sender, receiver);
        // Of no use for the cluster, and its address is the next to be given to another pod.
        if strangers && (sender.member.place.leaving || receiver.member.place.leaving) {
            continue;
        }
        if let Some(hold) = merges_clusters(sender, receiver, &ours) {
            if !plan.holds.contains(&hold) {
                plan.holds.push(hold);
            }
            continue;
        }
        if let (Some(one), Some(address)) = (others.get_mut(from), receiver.member.place.address) {
            one.others.push(address);
            one.strangers |= strangers && survey.wanted.formed_before;
        }
    }
    for (sender, Introduction { others, strangers }) in survey.live.iter().zip(others) {
        if others.is_empty() {
            continue;
        }
        let reason = format!(
            "{} does not know the live addresses of {} other nodes",
            sender.pod(),
            others.len()
        );
        let action = Action::Meet {
            member: sender.index,
            others,
            strangers,
        };
        plan.step(action, reason);
    }
}

/// Pairs of positions. On a chord ring of n nodes every node is reached in log2(n) hops; one more offset changes with the time,
/// so that no pair is left out for ever.
fn pairs(count: usize, now: Timestamp) -> Vec<(usize, usize)> {
    if count <= MESH {
        return (0..count)
            .flat_map(|first| (first + 1..count).map(move |second| (first, second)))
            .collect();
    }
    let turn = usize::try_from(now.as_second()).unwrap_or_default() % count;
    let powers = (0..usize::BITS)
        .map(|bit| 1 << bit)
        .take_while(|offset| *offset <= count / 2);
    powers
        .chain((turn > 0).then_some(turn))
        .flat_map(|offset| (0..count).map(move |first| (first, (first + offset) % count)))
        .collect()
}

/// Whether `a` has `b` in its table with the address it has now.
fn knows(a: Live<'_>, b: Live<'_>) -> bool {
    a.report
        .view
        .get(b.report.id())
        .is_some_and(|node| node.address.is_some() && node.address == b.member.place.address)
}

/// Whether one of them has heard of the other, at whatever address.
fn acquainted(a: Live<'_>, b: Live<'_>) -> bool {
    a.report.view.get(b.report.id()).is_some() || b.report.view.get(a.report.id()).is_some()
}

/// Whether `a` is about to get to know `b`.
fn in_handshake(a: Live<'_>, b: Live<'_>) -> bool {
    a.report
        .view
        .others()
        .any(|node| node.flags.has(Flag::Handshake) && node.address == b.member.place.address)
}

/// Two nodes that both have company and have never heard of each other may belong to two clusters: an address that was given to a
/// pod of another cluster in the meantime looks like that. They do if one has a healthy link to a node at an address that is none of ours.
fn merges_clusters(a: Live<'_>, b: Live<'_>, ours: &HashSet<NodeAddress>) -> Option<Hold> {
    if acquainted(a, b) || a.report.is_alone() || b.report.is_alone() {
        return None;
    }
    [a, b].into_iter().find_map(|one| {
        let foreign = one.report.view.others().find_map(|node| {
            let healthy = node.linked && !node.is_failing() && !node.flags.has(Flag::Handshake);
            node.address
                .filter(|address| healthy && !ours.contains(address))
        })?;
        Some(Hold::Foreign {
            pod: one.pod().to_owned(),
            address: foreign,
        })
    })
}

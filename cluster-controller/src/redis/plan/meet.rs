//! Addresses: every node has to know every other by its live address.

use super::{Action, Peer, Plan};
use crate::redis::survey::{Live, Survey};
use common::cluster::topology::Flag;
use k8s_openapi::jiff::Timestamp;

/// Up to this many nodes each is introduced to each, which takes the least time. Larger clusters are introduced along
/// chords, and gossip does the rest.
const MESH: usize = 32;

/// Whom a node is to be introduced to.
#[derive(Clone, Default)]
struct Introduction {
    others: Vec<Peer>,
    first_contact: bool,
}

/// Plans the introductions that are missing.
pub fn introduce(survey: &Survey<'_>, now: Timestamp, plan: &mut Plan) {
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
        let first_contact = !acquainted(sender, receiver);
        // Of no use for the cluster, and its address is the next to be given to another pod.
        if first_contact
            && (sender.member.expected.terminating || receiver.member.expected.terminating)
        {
            continue;
        }
        if let (Some(one), Some(address)) = (others.get_mut(from), receiver.member.expected.address)
        {
            one.others.push(Peer {
                id: receiver.report.id(),
                address,
            });
            one.first_contact |= first_contact;
        }
    }
    for (
        sender,
        Introduction {
            others,
            first_contact,
        },
    ) in survey.live.iter().zip(others)
    {
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
            first_contact,
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
        .is_some_and(|node| node.address.is_some() && node.address == b.member.expected.address)
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
        .any(|node| node.flags.has(Flag::Handshake) && node.address == b.member.expected.address)
}

//! Which of the servers that answered belong to this cluster. Pure.
//!
//! An address proves nothing: Kubernetes gives the address of a pod that is gone to the next one, and the status of a pod on a
//! Kubernetes node that is cut off stays as it was. A server counts as ours by its node id (recorded in the status, or listed in the
//! table of a node that is ours), or because it is blank and alone. Every other one is foreign: the plan never sees its report, so no
//! command can reach it, and its slots and its view count for nothing.

use super::member::{Answer, ForeignNode, Member, Report, Wanted};
use common::cluster::topology::{Flag, NodeAddress, NodeId};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Node ids of this cluster, each with the pod that it was last seen in.
pub type KnownNodes = BTreeMap<NodeId, String>;

/// Replaces the report of every foreign server by [`Answer::Foreign`].
pub fn recognize(wanted: &Wanted, members: &mut [Member]) {
    let trusted = trusted_ids(wanted, members);
    for member in members {
        let Answer::Report(report) = &member.answer else {
            continue;
        };
        if trusted.contains(&report.id()) {
            continue;
        }
        if is_new(report) {
            if !member.expected.address_is_current {
                let node = member.expected.kubernetes_node.as_deref().unwrap_or("?");
                let why = format!("its Kubernetes node {node} is not Ready");
                member.answer = Answer::Absent(why);
            }
            continue;
        }
        member.answer = Answer::Foreign(ForeignNode {
            id: report.id(),
            known_nodes: companions(report).count(),
        });
    }
}

/// The node ids to record: those that answer now, and those that may come back. An id is dropped once its pod answers with another one
/// and no node of the cluster lists it any more.
pub fn known_nodes(wanted: &Wanted, members: &[Member]) -> KnownNodes {
    let reports = || members.iter().filter_map(Member::report);
    let listed: HashSet<NodeId> = reports()
        .flat_map(|report| companions(report).map(|node| node.id))
        .collect();
    let answering: HashSet<&str> = members
        .iter()
        .filter(|member| member.report().is_some())
        .map(|member| member.expected.pod.as_str())
        .collect();
    let mut known: KnownNodes = wanted
        .known
        .iter()
        .filter(|(id, pod)| listed.contains(id) || !answering.contains(pod.as_str()))
        .map(|(id, pod)| (*id, pod.clone()))
        .collect();
    for member in members {
        if let Some(report) = member.report() {
            known.insert(report.id(), member.expected.pod.clone());
        }
    }
    known
}

/// Whether it may be given any role, because it has never had one: no slots, no keys, no other node.
fn is_new(report: &Report) -> bool {
    report.is_blank() && companions(report).next().is_none()
}

/// The other nodes in its table. One that it is only shaking hands with has no id of its own yet.
fn companions(
    report: &Report,
) -> impl Iterator<Item = &common::cluster::topology::ClusterNode> + '_ {
    let others = report.view.others();
    others.filter(|node| !node.flags.has(Flag::Handshake))
}

/// The recorded ids, and from there on what the tables of nodes that are ours list.
fn trusted_ids(wanted: &Wanted, members: &[Member]) -> BTreeSet<NodeId> {
    let mut trusted: BTreeSet<NodeId> = wanted.known.keys().copied().collect();
    if trusted.is_empty() {
        return adopted_ids(wanted, members);
    }
    let mut unread: Vec<&Report> = members.iter().filter_map(Member::report).collect();
    loop {
        let (ours, others): (Vec<&Report>, Vec<&Report>) = unread
            .into_iter()
            .partition(|report| trusted.contains(&report.id()));
        if ours.is_empty() {
            return trusted;
        }
        for report in ours {
            trusted.extend(companions(report).map(|node| node.id));
        }
        unread = others;
    }
}

/// The ids of a cluster of which nothing is recorded, which is created again over volumes that were kept: its nodes know each other
/// and no living node elsewhere. Fewer than half of the expected nodes, or two groups, are no proof.
fn adopted_ids(wanted: &Wanted, members: &[Member]) -> BTreeSet<NodeId> {
    let found: Vec<&Report> = members
        .iter()
        .filter_map(Member::report)
        .filter(|report| !is_new(report))
        .collect();
    let addresses: HashSet<NodeAddress> = members
        .iter()
        .filter_map(|member| member.expected.address)
        .collect();
    let ids: BTreeSet<NodeId> = found.iter().map(|report| report.id()).collect();
    let is_outside = |report: &&Report| {
        companions(report).any(|node| {
            let alive = node.linked && !node.is_failing();
            let expected = node.address.is_some_and(|one| addresses.contains(&one));
            alive && !expected && !ids.contains(&node.id)
        })
    };
    let enough = found.len() * 2 >= wanted.nodes();
    if !enough || found.iter().any(is_outside) || !is_one_group(&found) {
        return BTreeSet::new();
    }
    ids
}

/// Whether each of them is connected with each other one by what their tables list.
fn is_one_group(reports: &[&Report]) -> bool {
    let lists = |a: &Report, b: &Report| a.view.get(b.id()).is_some();
    let Some((first, rest)) = reports.split_first() else {
        return true;
    };
    let mut group = vec![*first];
    let mut unread: Vec<&Report> = rest.to_vec();
    while !unread.is_empty() {
        let (joins, others): (Vec<&Report>, Vec<&Report>) = unread.into_iter().partition(|one| {
            group
                .iter()
                .any(|other| lists(one, other) || lists(other, one))
        });
        if joins.is_empty() {
            return false;
        }
        group.extend(joins);
        unread = others;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::plan::simulation::{World, wanted};
    use k8s_openapi::jiff::Timestamp;

    fn kinds(members: &[Member]) -> Vec<&'static str> {
        let kinds = members.iter().map(|member| match &member.answer {
            Answer::Report(_) => "ours",
            Answer::Foreign(_) => "foreign",
            Answer::Absent(_) => "absent",
            Answer::Unresponsive(_) | Answer::Loading => "silent",
        });
        kinds.collect()
    }

    fn new_cluster() -> World {
        World::new(wanted(3, 0, true))
    }

    #[test]
    fn a_blank_node_counts_only_at_a_current_address() {
        let world = new_cluster();
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        members[1].expected.address_is_current = false;
        recognize(&world.wanted, &mut members);
        assert_eq!(kinds(&members), ["ours", "absent", "ours"]);
    }

    /// Its cluster was deleted with its volumes kept, and is created again: nothing is recorded.
    #[test]
    fn nodes_that_know_each_other_are_adopted_together() {
        let mut world = new_cluster();
        let found = world.add_foreign(3);
        for (index, other) in found.iter().enumerate() {
            world.give_address_to(index, *other);
        }
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        assert_eq!(kinds(&members), ["ours", "ours", "ours"]);
        let known = known_nodes(&world.wanted, &members);
        assert_eq!(known.len(), 3);
        // Recorded, they are known at any address; others are not.
        let mut recorded = world.wanted.clone();
        recorded.known = known;
        recorded.known.pop_first();
        recognize(&recorded, &mut members);
        assert_eq!(kinds(&members), ["ours", "ours", "ours"], "by the tables");
        recorded.known = KnownNodes::from([(NodeId::from_bytes([9; 20]), "shop-0-0".into())]);
        recognize(&recorded, &mut members);
        assert_eq!(kinds(&members), ["foreign", "foreign", "foreign"]);
    }

    #[test]
    fn an_id_is_dropped_once_it_cannot_return() {
        let world = new_cluster();
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        let mut recorded = world.wanted.clone();
        let gone = NodeId::from_bytes([9; 20]);
        recorded.known = KnownNodes::from([(gone, members[0].expected.pod.clone())]);
        assert!(!known_nodes(&recorded, &members).contains_key(&gone));
        members[0].answer = Answer::Loading;
        assert!(known_nodes(&recorded, &members).contains_key(&gone));
    }
}

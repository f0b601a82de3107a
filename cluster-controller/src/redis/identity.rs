//! Which of the servers that answered belong to this cluster. Pure.
//!
//! An address proves nothing: Kubernetes gives the address of a pod that is gone to the next one, and the status of a pod on a
//! Kubernetes node that is cut off stays as it was. A server counts as ours by its node id (recorded in the status, or listed in the
//! table of a node that is ours), or because it is blank and alone. Besides, it has to run in the pod at whose address it was asked: the
//! start script lets it say which pod that is. Every other one is left alone: the plan never sees its report, so no command can reach it,
//! and its slots and its view count for nothing.

pub use super::member::KnownNodes;

use super::member::{Answer, ExpectedNode, ForeignNode, Member, Report, Wanted};
use common::cluster::topology::{Flag, NodeAddress, NodeId};
use crds::headless_service_name;
use std::collections::{BTreeSet, HashSet};

/// Nodes of the smallest cluster.
const FEWEST_NODES: usize = 3;
/// Why a member is absent although a server answers at its address.
const OF_ANOTHER_POD: &str = "its address is answered by a server of another pod";

/// Replaces the report of every foreign server by [`Answer::Foreign`], and that of one that answers for another pod by
/// [`Answer::Absent`].
pub fn recognize(wanted: &Wanted, members: &mut [Member]) {
    let misplaced = set_misplaced_aside(members);
    for (index, pod) in answering_for_another(wanted, members) {
        if let Some(member) = members.get_mut(index) {
            let why = format!("its address is answered by the server of pod {pod}");
            member.answer = Answer::Absent(why);
        }
    }
    let trusted = trusted_ids(wanted, members);
    for member in members.iter_mut() {
        let Answer::Report(report) = &member.answer else {
            continue;
        };
        if trusted.contains(&report.id()) {
            continue;
        }
        if !is_new(report) {
            member.answer = Answer::Foreign(foreign(report));
        } else if let Err(why) = proves_its_pod(&member.expected, report) {
            member.answer = Answer::Absent(why);
        }
    }
    for (index, report) in misplaced {
        if let Some(member) = members.get_mut(index)
            && !trusted.contains(&report.id())
            && !is_new(&report)
        {
            member.answer = Answer::Foreign(foreign(&report));
        }
    }
}

/// Takes the reports of servers that prove to run in another pod than the one that was asked, also of those that are known by
/// their ids: a cloned volume has the id of one of ours, and its table may list nodes of another cluster.
fn set_misplaced_aside(members: &mut [Member]) -> Vec<(usize, Report)> {
    let mut aside = Vec::new();
    for (index, member) in members.iter_mut().enumerate() {
        let Some(proof) = &member.expected.proof else {
            continue;
        };
        if member.report().is_none_or(|report| report.proof == *proof) {
            continue;
        }
        let why = Answer::Absent(OF_ANOTHER_POD.to_owned());
        if let Answer::Report(report) = std::mem::replace(&mut member.answer, why) {
            aside.push((index, *report));
        }
    }
    aside
}

fn foreign(report: &Report) -> ForeignNode {
    ForeignNode {
        id: report.id(),
        known_nodes: companions(report).count(),
    }
}

/// The pod whose name a node announces, if it is one of the cluster's: that of its load balancer, or its DNS name, which the start script lets
/// servers of 7.0 and newer announce.
///
/// It says where a node is to be expected of which nothing is recorded, and no more than that: another Kubernetes cluster may have a
/// namespace and a RedisCluster of the same names.
pub fn announced_pod<'a>(hostname: &'a str, members: &'a [Member]) -> Option<&'a str> {
    let names = |member: &&Member| {
        let own = member.expected.hostname.as_ref();
        own.is_some_and(|own| own.name == hostname)
    };
    if let Some(member) = members.iter().find(names) {
        return Some(&member.expected.pod);
    }
    let (pod, domain) = hostname.split_once('.')?;
    let (set, _) = pod.rsplit_once('-')?;
    let (cluster, _) = set.rsplit_once('-')?;
    let domain = domain.strip_prefix(&headless_service_name(cluster))?;
    let namespace = domain.strip_prefix('.')?.strip_suffix(".svc")?;
    let proofs = members.iter().filter_map(|one| one.expected.proof.as_ref());
    let mut namespaces = proofs.filter_map(|proof| proof.split('/').next());
    let is_ours = members.iter().any(|one| one.expected.pod == pod)
        && namespaces.any(|known| known == namespace);
    is_ours.then_some(pod)
}

/// Whether there is a node to record: it gets no command before.
pub fn has_unrecorded(wanted: &Wanted, known: &KnownNodes) -> bool {
    known.keys().any(|id| !wanted.known.contains_key(id))
}

/// A server that is not known by its id proves that it runs in the expected pod by what the pod's start script gave it. Where a pod was
/// created with an older start script, which gives nothing, a current address has to do.
fn proves_its_pod(expected: &ExpectedNode, report: &Report) -> Result<(), String> {
    let node = expected.kubernetes_node.as_deref().unwrap_or("?");
    match &expected.proof {
        Some(proof) if *proof == report.proof => Ok(()),
        Some(_) => Err(OF_ANOTHER_POD.to_owned()),
        None if expected.address_is_current => Ok(()),
        None => Err(format!("its Kubernetes node {node} is not Ready")),
    }
}

/// Members at whose address the server of another pod answers, with that pod: an address that is not the pod's any more. A node keeps its
/// pod, because its volume does, and a pod without a volume starts with a new node.
fn answering_for_another(wanted: &Wanted, members: &[Member]) -> Vec<(usize, String)> {
    let reported: Vec<(usize, NodeId)> = members
        .iter()
        .enumerate()
        .filter_map(|(index, member)| Some((index, member.report()?.id())))
        .collect();
    let pod_of = |index: usize| members.get(index).map(|one| one.expected.pod.as_str());
    let mut wrong = Vec::new();
    for (index, id) in &reported {
        let mut same = reported
            .iter()
            .filter(|(other, known)| other != index && known == id);
        let recorded = wanted.known.get(id).map(String::as_str);
        let is_recorded = recorded.is_none() || recorded == pod_of(*index);
        let away = recorded.is_some_and(|pod| {
            let mut members = members.iter();
            members.any(|one| one.expected.pod == pod && one.report().is_none())
        });
        let twice = same.clone().any(|(other, _)| {
            recorded.is_some() && recorded == pod_of(*other) || recorded.is_none() && other < index
        });
        if twice || (!is_recorded && away) {
            let first = same.next().and_then(|(other, _)| pod_of(*other));
            let pod = recorded.or(first).unwrap_or_default();
            wrong.push((*index, pod.to_owned()));
        }
    }
    wrong
}

/// The node ids to record: those that answer now, and those that may come back. An id is dropped once every pod answers, its own with
/// another one, and no node of the cluster lists it any more: one that is still loading may list it.
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
    let all_answer = members.iter().all(|member| member.report().is_some());
    let mut known: KnownNodes = wanted
        .known
        .iter()
        .filter(|(id, pod)| listed.contains(id) || !answering.contains(pod.as_str()) || !all_answer)
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
    let mut reports = members.iter().filter_map(Member::report);
    let proven = reports.any(|report| trusted.contains(&report.id()) && !is_new(report));
    // Blank nodes that were seen first must not keep those with the data from being adopted.
    if !proven && (trusted.is_empty() || !wanted.formed_before) {
        trusted.extend(adopted_ids(wanted, members));
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

/// The ids of a cluster of which nothing is recorded, which is created again over volumes that were kept, maybe with another number of
/// shards: its nodes prove their pods, know each other and no living node elsewhere. Fewer than half of the nodes that are expected or
/// listed, or two groups, are no proof.
fn adopted_ids(wanted: &Wanted, members: &[Member]) -> BTreeSet<NodeId> {
    let found: Vec<&Report> = members
        .iter()
        .filter_map(|member| Some((&member.expected, member.report()?)))
        .filter(|(expected, report)| !is_new(report) && proves_its_pod(expected, report).is_ok())
        .map(|(_, report)| report)
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
    let listed = found.iter().map(|report| report.view.nodes().len()).max();
    let all = wanted
        .nodes()
        .min(listed.unwrap_or_default().max(FEWEST_NODES));
    let enough = found.len() * 2 >= all;
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
    use crate::redis::{
        plan::{
            Blocker, plan,
            simulation::{World, wanted},
            tests::formed,
        },
        survey::Survey,
    };
    use common::cluster::topology::{ClusterNode, NodesView};
    use k8s_openapi::jiff::Timestamp;

    fn kinds(members: &[Member]) -> Vec<&'static str> {
        let kinds = members.iter().map(|member| match &member.answer {
            Answer::Report(_) => "ours",
            Answer::Foreign(_) => "foreign",
            Answer::Absent(_) => "absent",
            Answer::Unresponsive(_) | Answer::Loading | Answer::Busy => "silent",
        });
        kinds.collect()
    }

    /// Of pods whose servers prove nothing.
    fn new_cluster_of(shards: usize, replicas: usize) -> World {
        let mut world = World::new(wanted(shards, replicas, true));
        world.proving = false;
        world
    }

    fn new_cluster() -> World {
        new_cluster_of(3, 0)
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
        recorded.formed_before = true;
        recognize(&recorded, &mut members);
        assert_eq!(kinds(&members), ["foreign", "foreign", "foreign"]);
    }

    #[test]
    fn a_blank_node_proves_its_pod() {
        let world = new_cluster();
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        members[0].expected.proof = Some("team/shop-0-0/uid".into());
        members[1].expected.proof = Some("team/shop-1-0/uid".into());
        let Answer::Report(report) = &mut members[1].answer else {
            panic!("no report");
        };
        report.proof = "team/shop-1-0/uid".into();
        recognize(&world.wanted, &mut members);
        assert_eq!(kinds(&members), ["absent", "ours", "ours"]);
    }

    /// Whose address each of these members has, if not its own: a cluster that is created again, of which nothing is recorded.
    fn created_again(of_others: usize, change: impl Fn(&mut ExpectedNode)) -> Vec<&'static str> {
        let mut world = new_cluster_of(2, 1);
        let found = world.add_foreign(u32::try_from(of_others).unwrap());
        for (index, other) in found.iter().enumerate() {
            world.give_address_to(index, *other);
        }
        let mut members = world.asked(Timestamp::UNIX_EPOCH);
        for member in members.iter_mut().take(of_others) {
            change(&mut member.expected);
        }
        recognize(&world.wanted, &mut members);
        kinds(&members)
    }

    #[test]
    fn no_node_is_adopted_that_does_not_prove_its_pod() {
        assert_eq!(created_again(2, |_| ()), ["ours"; 4]);
        let proves = |one: &mut ExpectedNode| one.proof = Some(format!("team/{}/uid", one.pod));
        let foreign = ["foreign", "foreign", "ours", "ours"];
        assert_eq!(created_again(2, proves), foreign);
        assert_eq!(
            created_again(2, |one| one.address_is_current = false),
            foreign
        );
        // One of two is too few to adopt the other.
        let first = |one: &mut ExpectedNode| {
            if one.pod == "sim-0-0" {
                proves(one);
            }
        };
        assert_eq!(created_again(2, first), foreign);
    }

    /// A volume that was cloned carries the id of one of ours, and its table those of another cluster.
    #[test]
    fn a_recorded_id_does_not_stand_for_the_pod() {
        let mut world = new_cluster();
        let found = world.add_foreign(3);
        world.give_address_to(0, found[0]);
        let mut members = world.asked(Timestamp::UNIX_EPOCH);
        let Answer::Report(report) = &members[0].answer else {
            panic!("no report");
        };
        let mut recorded = world.wanted.clone();
        recorded.known = KnownNodes::from([(report.id(), members[0].expected.pod.clone())]);
        members[0].expected.proof = Some("team/sim-0-0/uid".into());
        recognize(&recorded, &mut members);
        assert_eq!(kinds(&members), ["absent", "ours", "ours"]);
    }

    #[test]
    fn blank_nodes_seen_first_do_not_prevent_adoption() {
        let mut world = new_cluster_of(2, 1);
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        world.wanted.known = known_nodes(&world.wanted, &members[..1]);
        let found = world.add_foreign(2);
        for (index, other) in found.iter().enumerate() {
            world.give_address_to(index + 1, *other);
        }
        members = world.members(Timestamp::UNIX_EPOCH);
        assert_eq!(kinds(&members), ["ours"; 4]);
        // Once it has served, only what is recorded counts.
        world.wanted.formed_before = true;
        members = world.members(Timestamp::UNIX_EPOCH);
        assert_eq!(kinds(&members), ["ours", "foreign", "foreign", "ours"]);
    }

    /// The address of one pod was given to another one, and the first one's status does not show it yet.
    #[test]
    fn one_server_counts_for_one_pod() {
        let world = new_cluster();
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        let mut recorded = world.wanted.clone();
        recorded.known = known_nodes(&recorded, &members);
        members[0].answer = members[1].answer.clone();
        recognize(&recorded, &mut members);
        assert_eq!(kinds(&members), ["absent", "ours", "ours"]);
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        members[0].answer = members[1].answer.clone();
        members[1].answer = Answer::Unresponsive("down".into());
        recognize(&recorded, &mut members);
        assert_eq!(kinds(&members), ["absent", "silent", "ours"]);
    }

    #[test]
    fn a_name_of_another_cluster_is_no_pod() {
        let mut world = new_cluster();
        world.proving = true;
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        for member in &mut members {
            member.expected.proof = Some(format!("team/{}/uid", member.expected.pod));
        }
        let pod = |name| announced_pod(name, &members);
        assert_eq!(pod("sim-1-0.sim-nodes.team.svc"), Some("sim-1-0"));
        for other in [
            "sim-7-0.sim-nodes.team.svc",
            "sim-1-0.sim-nodes.other.svc",
            "sim-1-0.shop-nodes.team.svc",
            "shop-1-0.shop-nodes.team.svc",
            "sim-1-0.sim-nodes.team",
            "sim-1-0",
            "",
        ] {
            assert_eq!(pod(other), None, "{other}");
        }
    }

    /// Its pod was deleted by force while its Kubernetes node is cut off, and the status of the cluster was lost.
    #[test]
    fn a_node_is_expected_in_the_pod_it_names() {
        let world = formed(3, 1, true);
        for named in [false, true] {
            let mut members = world.members(Timestamp::UNIX_EPOCH);
            let id = members[0].report().unwrap().id();
            let mut wanted = world.wanted.clone();
            wanted.known.remove(&id);
            for member in &mut members {
                member.expected.proof = Some(format!("team/{}/uid", member.expected.pod));
                let Answer::Report(report) = &mut member.answer else {
                    panic!("no report");
                };
                let lines = report.view.nodes().iter().map(|line| ClusterNode {
                    hostname: (named && line.id == id)
                        .then(|| "sim-0-0.sim-nodes.team.svc".to_owned()),
                    ..line.as_ref().clone()
                });
                report.view = NodesView::of(lines.collect()).unwrap();
            }
            members[0].answer = Answer::Absent("the new pod waits".into());
            members[0].expected.address = None;
            let survey = Survey::of(&wanted, &members);
            let missing = &survey.missing[&id];
            assert_eq!(missing.pod.as_deref(), named.then_some("sim-0-0"));
            assert!(!missing.recorded && !missing.is_gone());
            let blockers = plan(&survey, Timestamp::UNIX_EPOCH).blockers;
            let by_hand = |one: &Blocker| matches!(one, Blocker::NodeWithoutPod { .. });
            assert_eq!(blockers.iter().any(by_hand), !named, "{blockers:?}");
        }
    }

    #[test]
    fn an_id_is_dropped_once_it_cannot_return() {
        let world = new_cluster();
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        let mut recorded = world.wanted.clone();
        let gone = NodeId::from_bytes([9; 20]);
        recorded.known = KnownNodes::from([(gone, members[0].expected.pod.clone())]);
        assert!(!known_nodes(&recorded, &members).contains_key(&gone));
        // Another node may still list it.
        let mut loading = members.clone();
        loading[1].answer = Answer::Loading;
        assert!(known_nodes(&recorded, &loading).contains_key(&gone));
        members[0].answer = Answer::Loading;
        assert!(known_nodes(&recorded, &members).contains_key(&gone));
    }
}

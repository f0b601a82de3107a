//! What the nodes report, and what Kubernetes says of their pods.

use super::{
    World,
    node::{Entry, Node},
};
use crate::redis::{
    identity::recognize,
    member::{Answer, ExpectedNode, Member, ProcessEvidence, Report, WriteRefusal, ZoneLabel},
};
use common::cluster::{
    info::{PersistenceInfo, ReplicationInfo, ServerInfo, UpstreamLink},
    slots::{Slot, SlotSet},
    topology::{
        ClusterInfo, ClusterNode, Flag, Flags, NodeAddress, NodeId, NodesView, OpenSlot,
        OpenSlotKind,
    },
};
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeMap;

impl World {
    /// What the planner sees.
    pub fn members(&self, now: Timestamp) -> Vec<Member> {
        let mut members = self.asked(now);
        recognize(&self.wanted, &mut members);
        members
    }

    /// What was answered at the address of each pod, by whatever server.
    pub fn asked(&self, now: Timestamp) -> Vec<Member> {
        let members = (0..self.wanted.nodes()).map(|index| {
            let behind = self.behind(index);
            let node = &self.nodes[behind];
            let (shard, ordinal) = self.nodes[index].seat.unwrap();
            let pod = format!("sim-{shard}-{ordinal}");
            let ids = self.wanted.known.iter().filter(|(_, known)| **known == pod);
            Member {
                expected: ExpectedNode {
                    current_until: ids
                        .clone()
                        .map(|(id, _)| (*id, now - self.down_for))
                        .collect(),
                    unresponsive_since: ids
                        .clone()
                        .filter(|_| !node.answers())
                        .map(|(id, _)| (*id, now - self.down_for))
                        .collect(),
                    former: ids.map(|(id, _)| (*id, self.evidence())).collect(),
                    address: node.own.address,
                    address_is_current: !self.not_current.contains(&index),
                    proof: self.proving.then(|| self.nodes[index].proof.clone()),
                    last_started: Some(Timestamp::UNIX_EPOCH),
                    has_volume: self.wanted.persistent,
                    kubernetes_node: Some(self.kubernetes_nodes[index].to_owned()),
                    zone: ZoneLabel::Absent,
                    down_since: (!node.answers()).then(|| now - self.down_for),
                    ..ExpectedNode::new(pod, shard, ordinal)
                },
                answer: match (node.up && !node.is_cut_off, node.loading) {
                    (true, _) if self.busy.contains(&index) => Answer::Busy,
                    (true, 0) => Answer::Report(Box::new(self.report(behind))),
                    (true, _) => Answer::Loading,
                    (false, _) => Answer::Unresponsive("down".into()),
                },
            }
        });
        members.collect()
    }

    fn evidence(&self) -> ProcessEvidence {
        if self.has_evidence {
            return ProcessEvidence::Ended("it was broken".into());
        }
        ProcessEvidence::MayRun {
            why: "its Kubernetes node two is not Ready".into(),
            cure: "if its machine is off: kubectl delete node".into(),
        }
    }

    /// What is answered at an address.
    pub fn answer_at(&self, address: Option<NodeAddress>) -> Answer {
        let mut nodes = self.nodes.iter().enumerate();
        let found = nodes.find(|(_, node)| {
            node.up && !node.is_cut_off && address.is_some() && node.own.address == address
        });
        match found {
            Some((index, _)) if self.busy.contains(&index) => Answer::Busy,
            Some((index, node)) if node.loading == 0 => {
                Answer::Report(Box::new(self.report(index)))
            }
            Some(_) => Answer::Loading,
            None => Answer::Unresponsive("no answer in time".into()),
        }
    }

    fn report(&self, index: usize) -> Report {
        let node = &self.nodes[index];
        let mut lines = vec![ClusterNode {
            open_slots: open_slots(node),
            hostname: node.hostname.clone(),
            ..line(node.id, &node.own, Some(Flag::Myself), true)
        }];
        for (id, entry) in &node.table {
            let other = self.reach(index, entry.address);
            let linked = other.is_some_and(|other| self.nodes[other].id == *id);
            lines.push(line(*id, entry, None, linked));
        }
        let covered: usize = lines.iter().map(|line| line.slots.len()).sum();
        let failing = lines
            .iter()
            .any(|line| !line.slots.is_empty() && line.is_failing());
        let slots_ok = lines
            .iter()
            .filter(|line| !line.is_failing())
            .map(|line| line.slots.len())
            .sum::<usize>();
        Report {
            cluster: ClusterInfo {
                ok: covered == 16384 && !failing,
                slots_assigned: u32::try_from(covered).unwrap(),
                slots_ok: u32::try_from(slots_ok).unwrap(),
                current_epoch: node.newest_epoch(),
                known_nodes: u32::try_from(lines.len()).unwrap(),
                ..ClusterInfo::default()
            },
            server: ServerInfo {
                version: "7.0.15".into(),
                uptime_seconds: node.age,
                ..ServerInfo::default()
            },
            replication: ReplicationInfo {
                upstream: node.own.primary.map(|primary| UpstreamLink {
                    ip: node
                        .table
                        .get(&primary)
                        .and_then(|entry| Some(entry.address?.ip)),
                    port: node
                        .table
                        .get(&primary)
                        .and_then(|entry| Some(entry.address?.port)),
                    up: node.linked,
                    down_seconds: (node.in_step && !node.linked).then(|| node.orphaned.into()),
                    ..UpstreamLink::default()
                }),
                // A restart forgets it.
                offset: u64::from(node.in_step) * (100 + node.content.newest()),
                ..ReplicationInfo::default()
            },
            keys: node.content.count(),
            node_timeout: self.wanted.node_timeout,
            persistence: PersistenceInfo::default(),
            refusal: WriteRefusal::default(),
            unserved: Some(match node.own.primary {
                None => node.content.any(),
                Some(_) => SlotSet::new(),
            }),
            strays: unserved(node).len() as u64,
            imports: false,
            feeds: node.feeds,
            users: crate::redis::users::ReportedUsers::default(),
            proof: if self.proving {
                node.proof.clone()
            } else {
                String::new()
            },
            view: NodesView::of(lines).unwrap(),
            settings: BTreeMap::new(),
            used_memory: 0,
        }
    }
}

/// Slots of which a primary has keys and that it does not serve.
pub(super) fn unserved(node: &Node) -> SlotSet {
    match node.own.primary {
        None => node.content.any().difference(&node.own.slots),
        Some(_) => SlotSet::new(),
    }
}

pub(super) fn open_slots(node: &Node) -> Vec<OpenSlot> {
    let mark = |(slot, peer): (&Slot, &NodeId), kind| OpenSlot {
        slot: *slot,
        kind,
        peer: *peer,
    };
    let migrating = node.migrating.iter();
    let migrating = migrating.map(|one| mark(one, OpenSlotKind::Migrating));
    let importing = node.importing.iter();
    let importing = importing.map(|one| mark(one, OpenSlotKind::Importing));
    migrating.chain(importing).collect()
}

fn line(id: NodeId, entry: &Entry, flag: Option<Flag>, linked: bool) -> ClusterNode {
    let role = if entry.primary.is_some() {
        Flag::Replica
    } else {
        Flag::Primary
    };
    let mut flags = Flags::default().with(role);
    if let Some(flag) = flag {
        flags = flags.with(flag);
    }
    if entry.failed {
        flags = flags.with(Flag::Fail);
    }
    if entry.address.is_none() {
        flags = flags.with(Flag::NoAddr);
    }
    ClusterNode {
        id,
        address: entry.address,
        hostname: None,
        flags,
        primary: entry.primary,
        config_epoch: entry.epoch,
        linked,
        slots: entry.slots.clone(),
        open_slots: Vec::new(),
    }
}

//! A model of Redis Cluster as coarse as the planner needs: tables, claims with epochs, elections, copies. It refuses what the servers
//! refuse, and it panics where data is destroyed.

use crate::redis::{
    identity::{KnownNodes, known_nodes, recognize},
    member::{
        Answer, ExpectedNode, Member, ProcessEvidence, Recovery, Report, Wanted, WriteRefusal,
        ZoneLabel,
    },
    plan::{Action, Assignment, Plan},
};
use common::cluster::{
    info::{PersistenceInfo, ReplicationInfo, ServerInfo, UpstreamLink},
    node::FailoverMode,
    slots::{Slot, SlotRange, SlotSet},
    topology::{ClusterInfo, ClusterNode, Flag, Flags, NodeAddress, NodeId, NodesView},
};
use crds::LostSlots;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

const KUBERNETES_NODES: [&str; 3] = ["one", "two", "three"];

/// What a node remembers of another one, or says of itself.
#[derive(Clone, Debug)]
struct Entry {
    address: Option<NodeAddress>,
    primary: Option<NodeId>,
    slots: SlotSet,
    epoch: u64,
    failed: bool,
}

#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // independent facts
struct Node {
    id: NodeId,
    up: bool,
    /// Ticks since it was started.
    age: u64,
    /// Ticks until its data is loaded: it runs, but does not answer.
    loading: u32,
    /// Itself, by its own word.
    own: Entry,
    table: BTreeMap<NodeId, Entry>,
    banned: BTreeMap<NodeId, u32>,
    /// The newest epoch that it has received.
    heard: u64,
    /// Slots that were taken from it by hand: it still has their keys.
    left: SlotSet,
    /// How much it has of what was written to its shard: 0 is nothing, and each filling adds 1.
    data: u64,
    /// Whether it has been in step with its primary since it was started: one that has not never stands for election.
    in_step: bool,
    /// Whether it feeds replicas: not before it has been given a role.
    feeds: bool,
    linked: bool,
    /// Ticks since its primary has failed.
    orphaned: u32,
}

impl Node {
    /// Whether it answers.
    fn answers(&self) -> bool {
        self.up && self.loading == 0
    }

    fn owns(&self) -> bool {
        self.own.primary.is_none() && !self.own.slots.is_empty()
    }

    /// The newest epoch it knows of: what a bump goes beyond.
    fn newest_epoch(&self) -> u64 {
        let known = self.table.values().map(|entry| entry.epoch);
        known
            .chain([self.own.epoch, self.heard])
            .max()
            .unwrap_or_default()
    }
}

/// All nodes of a cluster.
#[derive(Clone, Debug)]
pub struct World {
    pub wanted: Wanted,
    /// How long nodes that do not answer have been down according to Kubernetes.
    pub down_for: SignedDuration,
    /// Whether Kubernetes knows that nodes which are down have ended.
    pub has_evidence: bool,
    /// Nodes that are busy with a script: alive for the others, but without an answer.
    pub busy: BTreeSet<usize>,
    /// The Kubernetes node of each node.
    pub kubernetes_nodes: Vec<&'static str>,
    nodes: Vec<Node>,
    next: u32,
    pub refused: Vec<String>,
    /// Nodes of another cluster, as they are to stay.
    foreign: BTreeMap<usize, Node>,
    /// Whether servers prove in which pod they run: those of older start scripts do not.
    pub proving: bool,
    /// Pods of which Kubernetes does not know whether their address is still theirs.
    pub not_current: BTreeSet<usize>,
}

/// What happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// It comes back without memory (always so without persistence).
    pub wiped: bool,
    /// It comes back at another address.
    pub moved: bool,
    /// It stays down for so many ticks.
    pub down: u32,
    /// It loads its data for so many ticks after that.
    pub loading: u32,
}

impl World {
    /// Blank nodes that do not know each other.
    pub fn new(wanted: Wanted) -> Self {
        let mut world = Self {
            down_for: SignedDuration::ZERO,
            has_evidence: true,
            busy: BTreeSet::new(),
            kubernetes_nodes: (0..wanted.nodes())
                .map(|index| KUBERNETES_NODES[index % 3])
                .collect(),
            nodes: Vec::new(),
            next: 0,
            refused: Vec::new(),
            foreign: BTreeMap::new(),
            proving: true,
            not_current: BTreeSet::new(),
            wanted,
        };
        for _ in 0..world.wanted.nodes() {
            let address = world.fresh_address();
            let node = world.blank(address);
            world.nodes.push(node);
        }
        world
    }

    fn fresh_address(&mut self) -> NodeAddress {
        self.next += 1;
        NodeAddress::new(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + self.next)), 6379)
    }

    fn blank(&mut self, address: NodeAddress) -> Node {
        self.next += 1;
        let mut id = [0; 20];
        // The order of ids must not be that of their creation.
        let mixed = self.next.wrapping_mul(2_654_435_761);
        id[..4].copy_from_slice(&mixed.to_be_bytes());
        id[4..8].copy_from_slice(&self.next.to_be_bytes());
        Node {
            id: NodeId::from_bytes(id),
            up: true,
            age: 0,
            loading: 0,
            own: Entry {
                address: Some(address),
                primary: None,
                slots: SlotSet::new(),
                epoch: 0,
                failed: false,
            },
            table: BTreeMap::new(),
            banned: BTreeMap::new(),
            heard: 0,
            left: SlotSet::new(),
            data: 0,
            in_step: false,
            feeds: false,
            linked: false,
            orphaned: 0,
        }
    }

    fn shard(&self, index: usize) -> usize {
        index / self.wanted.nodes_per_shard()
    }

    /// Writes to every primary, which its replicas have at the next tick.
    pub fn fill(&mut self) {
        for node in &mut self.nodes {
            node.data += u64::from(node.up && node.owns());
        }
    }

    /// Time in which nothing happens.
    pub fn age(&mut self, ticks: u64) {
        for node in &mut self.nodes {
            node.age += ticks;
        }
    }

    /// What the primary of each shard has, by shard.
    pub fn served(&self) -> BTreeMap<usize, u64> {
        let primaries = self.nodes.iter().enumerate().take(self.wanted.nodes());
        let primaries = primaries.filter(|(_, node)| node.answers() && node.owns());
        primaries
            .map(|(index, node)| (self.shard(index), node.data))
            .collect()
    }

    /// Shards of which a primary holds the keys.
    pub fn shards_with_data(&self) -> BTreeSet<usize> {
        let served = self.served().into_iter();
        served
            .filter(|(_, data)| *data > 0)
            .map(|(shard, _)| shard)
            .collect()
    }

    /// Whether the node has slots.
    pub fn owns(&self, index: usize) -> bool {
        self.nodes[index].owns()
    }

    /// Shards of which any node, up or down, still holds the keys.
    pub fn shards_that_can_be_saved(&self) -> BTreeSet<usize> {
        let holders = self
            .nodes
            .iter()
            .enumerate()
            .take(self.wanted.nodes())
            .filter(|(_, node)| node.data > 0);
        holders.map(|(index, _)| self.shard(index)).collect()
    }

    /// A node goes down.
    pub fn break_node(&mut self, index: usize, fault: Fault) {
        let address = match self.nodes[index].own.address {
            Some(address) if !fault.moved => address,
            _ => self.fresh_address(),
        };
        if fault.wiped || !self.wanted.persistent {
            self.nodes[index] = self.blank(address);
        }
        let node = &mut self.nodes[index];
        node.own.address = Some(address);
        node.up = false;
        node.linked = false;
        node.in_step = false;
        node.loading = if node.data > 0 { fault.loading } else { 0 };
    }

    /// A node is cut off: it keeps what it has, and nothing reaches it.
    pub fn cut(&mut self, index: usize) {
        self.nodes[index].up = false;
    }

    /// CLUSTER DELSLOTS on every node.
    pub fn take_slots_by_hand(&mut self, from: usize, count: usize) {
        let taken: SlotSet = self.nodes[from].own.slots.iter().take(count).collect();
        self.leave_keys(from, &taken);
        for node in &mut self.nodes {
            node.own.slots = node.own.slots.difference(&taken);
            for entry in node.table.values_mut() {
                entry.slots = entry.slots.difference(&taken);
            }
        }
    }

    /// CLUSTER DELSLOTS on the node alone: the others list the slots on.
    pub fn strike_out(&mut self, from: usize, count: usize) {
        let taken: SlotSet = self.nodes[from].own.slots.iter().take(count).collect();
        let node = &mut self.nodes[from];
        node.own.slots = node.own.slots.difference(&taken);
    }

    /// A node has keys of slots that it does not serve.
    pub fn leave_keys(&mut self, index: usize, slots: &SlotSet) {
        let node = &mut self.nodes[index];
        node.left = node.left.union(slots);
    }

    pub fn restart(&mut self, index: usize) {
        self.nodes[index].up = true;
        self.nodes[index].age = 0;
    }

    /// Another cluster of this many primaries with keys; one that is alone knows no other node. Their indexes.
    pub fn add_foreign(&mut self, count: u32) -> Vec<usize> {
        let first = self.nodes.len();
        for number in 0..count {
            let address = self.fresh_address();
            let mut node = self.blank(address);
            node.own.slots = (0..16384_u16)
                .filter(|slot| u32::from(*slot) * count / 16384 == number)
                .map(|slot| Slot::new(slot).unwrap())
                .map(|slot| SlotRange::new(slot, slot).unwrap())
                .collect();
            // Newer than all of ours: if both merged, these would win.
            node.own.epoch = 1000 + u64::from(number);
            node.data = 7;
            node.feeds = true;
            self.nodes.push(node);
        }
        let added: Vec<usize> = (first..self.nodes.len()).collect();
        for index in &added {
            let others = added.iter().filter(|other| *other != index);
            let table = others.map(|other| (self.nodes[*other].id, self.nodes[*other].own.clone()));
            self.nodes[*index].table = table.collect();
        }
        self.keep_foreign(&added);
        added
    }

    /// A node of another cluster that is only being formed: without slots, keys or any other node. Its index.
    pub fn add_blank_foreign(&mut self) -> usize {
        let address = self.fresh_address();
        let node = self.blank(address);
        self.nodes.push(node);
        let added = self.nodes.len() - 1;
        self.keep_foreign(&[added]);
        added
    }

    fn keep_foreign(&mut self, added: &[usize]) {
        let nodes = added
            .iter()
            .map(|index| (*index, self.nodes[*index].clone()));
        self.foreign = nodes.collect();
    }

    /// A node is cut off, and its address is given to a foreign one.
    pub fn give_address_to(&mut self, index: usize, foreign: usize) {
        self.nodes[index].up = false;
        self.nodes[foreign].own.address = self.nodes[index].own.address;
    }

    /// A node that was cut off is reached again, at another address.
    pub fn reconnect(&mut self, index: usize) {
        self.nodes[index].own.address = Some(self.fresh_address());
        self.not_current.remove(&index);
        self.restart(index);
    }

    /// What a foreign cluster has to be like whatever we do: no node of ours, the same slots, roles and keys.
    pub fn check_foreign(&self) {
        let ids: BTreeSet<NodeId> = self.foreign.values().map(|node| node.id).collect();
        for (index, before) in &self.foreign {
            let node = &self.nodes[*index];
            assert!(
                node.table.keys().all(|id| ids.contains(id)),
                "a node of ours was introduced to a foreign one"
            );
            assert_eq!(node.own.slots, before.own.slots, "foreign slots");
            assert_eq!(node.own.primary, before.own.primary, "foreign role");
            assert_eq!(node.data, before.data, "foreign keys");
        }
        for (index, node) in self.nodes.iter().enumerate() {
            let ours = !self.foreign.contains_key(&index);
            let known = node.table.keys().any(|id| ids.contains(id));
            assert!(!(ours && known), "a foreign node is in a table of ours");
        }
    }

    /// A primary without a pod, added by hand, to which slots of a node were moved with their keys. Its index.
    pub fn add_without_pod(&mut self, from: usize, count: usize) -> usize {
        let address = self.fresh_address();
        let mut node = self.blank(address);
        let moved: SlotSet = self.nodes[from].own.slots.iter().take(count).collect();
        node.own.epoch = self.nodes.iter().map(Node::newest_epoch).max().unwrap() + 1;
        node.own.slots = moved.clone();
        node.data = 9;
        node.feeds = true;
        let others = self.nodes.iter();
        node.table = others.map(|other| (other.id, other.own.clone())).collect();
        for other in &mut self.nodes {
            other.own.slots = other.own.slots.difference(&moved);
            for entry in other.table.values_mut() {
                entry.slots = entry.slots.difference(&moved);
            }
            other.table.insert(node.id, node.own.clone());
        }
        for entry in node.table.values_mut() {
            entry.slots = entry.slots.difference(&moved);
        }
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// A node's slots by its own table, and whether every node that answers has it in its table.
    pub fn slots_of(&self, index: usize) -> (SlotSet, bool) {
        let id = self.nodes[index].id;
        let mut others = self
            .nodes
            .iter()
            .filter(|node| node.answers() && node.id != id);
        let known = others.all(|node| node.table.contains_key(&id));
        (self.nodes[index].own.slots.clone(), known)
    }

    /// The node that answers at an expected address; where none does, the one that is to.
    fn behind(&self, index: usize) -> usize {
        let address = self.nodes[index].own.address;
        let mut others = self.foreign.keys().copied();
        let other = others.find(|other| {
            let node = &self.nodes[*other];
            node.answers() && node.own.address == address
        });
        match other {
            Some(other) if !self.nodes[index].answers() => other,
            _ => index,
        }
    }

    /// The node that a command to a member reaches.
    fn reached(&self, member: usize) -> usize {
        let index = self.behind(member);
        assert!(
            !self.foreign.contains_key(&index),
            "a command reached a foreign node"
        );
        index
    }

    /// What the planner sees.
    pub fn members(&self, now: Timestamp) -> Vec<Member> {
        let mut members = self.asked(now);
        recognize(&self.wanted, &mut members);
        members
    }

    /// The namespace, name and uid of the pod in which a node runs.
    fn pod_of(&self, index: usize) -> String {
        if index < self.wanted.nodes() {
            let (shard, ordinal) = (self.shard(index), index % self.wanted.nodes_per_shard());
            format!("team/sim-{shard}-{ordinal}/uid")
        } else {
            format!("other/pod-{index}/uid")
        }
    }

    /// What was answered at the address of each pod, by whatever server.
    pub fn asked(&self, now: Timestamp) -> Vec<Member> {
        let members = (0..self.wanted.nodes()).map(|index| {
            let behind = self.behind(index);
            let node = &self.nodes[behind];
            let (shard, ordinal) = (self.shard(index), index % self.wanted.nodes_per_shard());
            let pod = format!("sim-{shard}-{ordinal}");
            let ids = self.wanted.known.iter().filter(|(_, known)| **known == pod);
            Member {
                expected: ExpectedNode {
                    former: ids.map(|(id, _)| (*id, self.evidence())).collect(),
                    why_loading: None,
                    cordoned: false,
                    pod,
                    shard,
                    ordinal,
                    address: node.own.address,
                    wanted: true,
                    exists: true,
                    address_is_current: !self.not_current.contains(&index),
                    proof: self.proving.then(|| self.pod_of(index)),
                    kubernetes_node: Some(self.kubernetes_nodes[index].to_owned()),
                    zone: ZoneLabel::Absent,
                    terminating: false,
                    down_since: (!node.answers()).then(|| now - self.down_for),
                },
                answer: match (node.up, node.loading) {
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

    fn report(&self, index: usize) -> Report {
        let node = &self.nodes[index];
        let mut lines = vec![line(node.id, &node.own, Some(Flag::Myself), true)];
        for (id, entry) in &node.table {
            let linked = self.at(entry.address).is_some_and(|other| other.id == *id);
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
                upstream: node.own.primary.map(|_| UpstreamLink {
                    up: node.linked,
                    down_seconds: (node.in_step && !node.linked).then(|| node.orphaned.into()),
                    ..UpstreamLink::default()
                }),
                // A restart forgets it.
                offset: u64::from(node.in_step) * (100 + node.data),
                ..ReplicationInfo::default()
            },
            keys: node.data * 10,
            node_timeout: self.wanted.node_timeout,
            persistence: PersistenceInfo::default(),
            refusal: WriteRefusal::default(),
            unserved: Some(node.left.difference(&node.own.slots)),
            proof: if self.proving {
                self.pod_of(index)
            } else {
                String::new()
            },
            view: NodesView::of(lines).unwrap(),
            settings: BTreeMap::new(),
            used_memory: 0,
        }
    }

    fn at(&self, address: Option<NodeAddress>) -> Option<&Node> {
        let address = address?;
        self.nodes
            .iter()
            .find(|node| node.answers() && node.own.address == Some(address))
    }

    fn refuse(&mut self, why: &str) {
        self.refused.push(why.to_owned());
    }

    /// Does the steps for which `done` says so: the others are those that a controller did not get to. The ids are recorded before.
    pub fn execute(&mut self, plan: &Plan, mut done: impl FnMut() -> bool) {
        let members = self.members(Timestamp::UNIX_EPOCH);
        self.wanted.known = known_nodes(&self.wanted, &members);
        for step in &plan.steps {
            if done() {
                self.act(&step.action);
            }
        }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::AssignSlots {
                member,
                ranges,
                how,
            } => {
                let slots: SlotSet = ranges.iter().copied().collect();
                self.assign(self.reached(*member), &slots, how);
            }
            Action::Meet { member, others, .. } => {
                for other in others {
                    self.meet(self.reached(*member), other.address);
                }
            }
            Action::Promote {
                member,
                mode,
                empty,
                ..
            } => {
                let index = self.reached(*member);
                assert!(
                    *empty || self.nodes[index].data > 0 || !self.holds_data(self.shard(index)),
                    "a replica without a copy was promoted silently"
                );
                self.promote(index, *mode);
            }
            Action::HandOver { to, from, .. } => {
                let (to, from) = (self.reached(*to), self.reached(*from));
                self.hand_over(to, from);
            }
            Action::Replicate { member, primary } => {
                self.replicate(self.reached(*member), *primary);
            }
            Action::Forget { id, on } => {
                for index in on {
                    let index = self.reached(*index);
                    let node = &mut self.nodes[index];
                    if node.own.primary == Some(*id) {
                        self.refused.push("FORGET of the own primary".to_owned());
                        continue;
                    }
                    let forgotten = node.table.remove(id);
                    assert!(
                        forgotten.is_none_or(|entry| entry.slots.is_empty()),
                        "a node with slots was forgotten"
                    );
                    node.banned.insert(*id, 60);
                }
            }
            Action::RestoreNodeTimeout { .. } => {}
        }
    }

    fn assign(&mut self, index: usize, slots: &SlotSet, how: &Assignment) {
        let shard = self.shard(index);
        let others_data = (0..self.nodes.len())
            .any(|other| self.nodes[other].data > 0 && self.shard(other) == shard);
        let newest = self.nodes[index].newest_epoch();
        let node = &mut self.nodes[index];
        let listed = node
            .table
            .values()
            .fold(SlotSet::new(), |all, entry| all.union(&entry.slots));
        match how {
            Assignment::Alone { epoch, .. } => {
                if !node.table.is_empty() || node.own.epoch != 0 {
                    return self.refuse("SET-CONFIG-EPOCH");
                }
                assert!(!others_data, "slots created although a node has their keys");
                node.own.epoch = *epoch;
            }
            Assignment::Joined => {
                if !listed.intersection(slots).is_empty() {
                    return self.refuse("ADDSLOTS: busy");
                }
                assert!(
                    !others_data || node.data > 0,
                    "slots created although a node has their keys"
                );
            }
            Assignment::Restored { listed } => {
                let struck: SlotSet = listed.iter().copied().collect();
                for entry in node.table.values_mut() {
                    entry.slots = entry.slots.difference(&struck);
                }
                assert!(node.data > 0, "slots restored without their keys");
                node.own.epoch = newest + 1;
            }
            Assignment::Recreated { .. } => {
                let accepted = self.wanted.recovery.lost_slots == LostSlots::RecreateEmpty;
                assert!(
                    !self.wanted.persistent || accepted,
                    "slots of volumes recreated"
                );
                assert!(
                    !others_data,
                    "slots recreated although a node has their keys"
                );
                for entry in node.table.values_mut() {
                    entry.slots = entry.slots.difference(slots);
                }
                node.own.epoch = newest + 1;
            }
        }
        assert!(node.own.primary.is_none(), "slots given to a replica");
        node.own.slots = node.own.slots.union(slots);
        node.feeds = true;
    }

    fn meet(&mut self, index: usize, address: NodeAddress) {
        let Some(other) = self
            .nodes
            .iter()
            .position(|node| node.answers() && node.own.address == Some(address))
        else {
            return;
        };
        if other == index {
            return;
        }
        assert!(
            !self.foreign.contains_key(&other),
            "a foreign node was introduced"
        );
        for (from, to) in [(index, other), (other, index)] {
            let entry = Entry {
                address: self.nodes[to].own.address,
                primary: self.nodes[to].own.primary,
                slots: SlotSet::new(),
                epoch: 0,
                failed: false,
            };
            let (id, live) = (self.nodes[to].id, self.nodes[to].own.address);
            let known = self.nodes[from].table.entry(id).or_insert(entry);
            known.address = live;
            known.failed = false;
        }
    }

    fn promote(&mut self, index: usize, mode: FailoverMode) {
        let Some(primary) = self.nodes[index].own.primary else {
            return self.refuse("FAILOVER on a primary");
        };
        if mode == FailoverMode::Force && !self.has_majority(index) {
            return self.refuse("election lost");
        }
        self.take_over(index, primary);
    }

    /// The replica has everything before it takes over, and the old primary follows it.
    fn hand_over(&mut self, to: usize, from: usize) {
        let primary = self.nodes[from].id;
        let linked = self.nodes[to].linked && self.nodes[to].own.primary == Some(primary);
        if !linked || !self.has_majority(to) {
            return self.refuse("FAILOVER: not linked, or no majority");
        }
        self.nodes[to].data = self.nodes[from].data;
        self.take_over(to, primary);
    }

    /// Whether any node of the shard, up or down, has keys.
    fn holds_data(&self, shard: usize) -> bool {
        let nodes = self.nodes.iter().enumerate().take(self.wanted.nodes());
        let mut nodes = nodes.filter(|(index, _)| self.shard(*index) == shard);
        nodes.any(|(_, node)| node.data > 0)
    }

    /// A replica follows another primary, as servers before 7.0 arrange it for a primary without replicas.
    pub fn migrate(&mut self, replica: usize, primary: usize) {
        let id = self.nodes[primary].id;
        let data = self.nodes[primary].data;
        let node = &mut self.nodes[replica];
        assert!(node.own.primary.is_some(), "a primary does not migrate");
        node.own.primary = Some(id);
        node.data = data;
        node.in_step = true;
    }

    /// A replica is attached and has not copied anything yet.
    pub fn unlink_before_the_copy(&mut self, replica: usize) {
        let node = &mut self.nodes[replica];
        node.data = 0;
        node.in_step = false;
        node.linked = false;
    }

    fn take_over(&mut self, index: usize, primary: NodeId) {
        let newest = self.nodes[index].newest_epoch();
        let node = &mut self.nodes[index];
        if let Some(entry) = node.table.get_mut(&primary) {
            node.own.slots = std::mem::take(&mut entry.slots);
        }
        node.own.primary = None;
        node.own.epoch = newest + 1;
        node.linked = false;
        node.orphaned = 0;
    }

    /// Whether most of the primaries in the node's table answer at the addresses it has.
    fn has_majority(&self, index: usize) -> bool {
        let node = &self.nodes[index];
        let primaries = node
            .table
            .iter()
            .filter(|(_, entry)| !entry.slots.is_empty());
        let (mut all, mut reached) = (usize::from(!node.own.slots.is_empty()), 0);
        reached += all;
        for (id, entry) in primaries {
            all += 1;
            reached += usize::from(self.at(entry.address).is_some_and(|other| other.id == *id));
        }
        reached * 2 > all
    }

    fn replicate(&mut self, index: usize, primary: NodeId) {
        let node = &mut self.nodes[index];
        node.feeds = true;
        if !node.table.contains_key(&primary) {
            return self.refuse("REPLICATE: unknown node");
        }
        if node.own.primary.is_none() && (node.data > 0 || !node.own.slots.is_empty()) {
            return self.refuse("REPLICATE: not empty");
        }
        if node.own.primary == Some(primary) {
            return;
        }
        // Its copy goes; there has to be another.
        let (shard, data) = (self.shard(index), self.nodes[index].data);
        if data > 0 {
            let copies = (0..self.nodes.len())
                .filter(|other| self.nodes[*other].data >= data && self.shard(*other) == shard)
                .count();
            assert!(copies > 1, "the last copy was replaced");
        }
        let node = &mut self.nodes[index];
        node.data = 0;
        node.linked = false;
        node.in_step = false;
        node.own.primary = Some(primary);
    }

    /// Time passes: pings, gossip, failure, election, replication.
    pub fn tick(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.up) {
            node.age += 1;
            node.loading = node.loading.saturating_sub(1);
        }
        for index in 0..self.nodes.len() {
            if self.nodes[index].answers() {
                self.ping_all(index);
            }
        }
        for index in 0..self.nodes.len() {
            if self.nodes[index].answers() {
                self.follow(index);
                self.nodes[index].banned.retain(|_, ticks| {
                    *ticks -= 1;
                    *ticks > 0
                });
            }
        }
    }

    fn ping_all(&mut self, index: usize) {
        let ids: Vec<NodeId> = self.nodes[index].table.keys().copied().collect();
        for id in ids {
            let address = self.nodes[index].table[&id].address;
            let answers = self.at(address).map(|other| other.id);
            let entry = self.nodes[index].table.get_mut(&id).unwrap();
            match answers {
                None => entry.failed = entry.address.is_some(),
                // "PONG contains mismatching sender id"
                Some(other) if other != id => entry.address = None,
                Some(_) => {
                    entry.failed = false;
                    let other = self.nodes.iter().position(|node| node.id == id).unwrap();
                    self.exchange(index, other);
                }
            }
        }
    }

    /// `from` pings `to`, and both learn from each other.
    fn exchange(&mut self, from: usize, to: usize) {
        let sender = self.nodes[from].id;
        if !self.nodes[to].table.contains_key(&sender) {
            // Pings of unknown nodes are ignored, but the sender learns from the answer.
            return self.learn(from, to);
        }
        let address = self.nodes[from].own.address;
        let entry = self.nodes[to].table.get_mut(&sender).unwrap();
        entry.address = address;
        entry.failed = false;
        self.learn(from, to);
        self.learn(to, from);
    }

    /// `pupil` takes in what `teacher` says of itself and whom it knows.
    fn learn(&mut self, pupil: usize, teacher: usize) {
        let (id, own) = (self.nodes[teacher].id, self.nodes[teacher].own.clone());
        let gossip: Vec<(NodeId, Option<NodeAddress>)> = self.nodes[teacher]
            .table
            .iter()
            .filter(|(_, entry)| !entry.failed && entry.address.is_some())
            .map(|(id, entry)| (*id, entry.address))
            .collect();
        // The cluster's current epoch travels with every message.
        let heard = self.nodes[teacher].newest_epoch();
        let node = &mut self.nodes[pupil];
        node.heard = node.heard.max(heard);
        for (other, address) in gossip {
            if other == node.id || node.banned.contains_key(&other) {
                continue;
            }
            let known = node.table.entry(other).or_insert(Entry {
                address,
                primary: None,
                slots: SlotSet::new(),
                epoch: 0,
                failed: false,
            });
            if known.failed {
                known.address = address;
            }
        }
        if own.primary.is_some() {
            let entry = node.table.get_mut(&id).unwrap();
            entry.primary = own.primary;
            entry.slots = SlotSet::new();
            return;
        }
        let newer = |epoch, other| (epoch, other) >= (own.epoch, id);
        let mut won = own.slots.clone();
        if newer(node.own.epoch, node.id) {
            won = won.difference(&node.own.slots);
        }
        for (other, entry) in &node.table {
            if *other != id && newer(entry.epoch, *other) {
                won = won.difference(&entry.slots);
            }
        }
        let lost_all = !node.own.slots.is_empty() && node.own.slots.difference(&won).is_empty();
        node.own.slots = node.own.slots.difference(&won);
        let was_primary_lost = node.own.primary.is_some_and(|primary| {
            node.table.get(&primary).is_some_and(|entry| {
                !entry.slots.is_empty() && entry.slots.difference(&won).is_empty()
            })
        });
        for (other, entry) in &mut node.table {
            if *other != id {
                entry.slots = entry.slots.difference(&won);
            }
        }
        let entry = node.table.get_mut(&id).unwrap();
        entry.primary = None;
        entry.epoch = own.epoch;
        entry.slots = entry.slots.intersection(&own.slots).union(&won);
        if (lost_all || was_primary_lost) && !won.is_empty() && node.own.primary != Some(id) {
            node.own.primary = Some(id);
            node.linked = false;
            node.feeds = true;
        }
    }

    /// A replica copies its primary, or stands for election when it has failed.
    fn follow(&mut self, index: usize) {
        let Some(primary) = self.nodes[index].own.primary else {
            return;
        };
        let Some(entry) = self.nodes[index].table.get(&primary).cloned() else {
            return;
        };
        let source = self.at(entry.address).cloned();
        if let Some(source) = source.filter(|source| source.feeds) {
            assert!(
                source.id == primary || source.data > 0 || self.nodes[index].data == 0,
                "a replica copied an empty node that is not its primary"
            );
            self.nodes[index].linked = source.id == primary;
            if source.id == primary && source.own.primary.is_none() {
                let lost = self.nodes[index].data > source.data;
                assert!(!lost, "a replica copied less than it had");
                self.nodes[index].data = source.data;
                self.nodes[index].in_step = true;
            }
            self.nodes[index].orphaned = 0;
            return;
        }
        self.nodes[index].linked = false;
        if entry.failed && !entry.slots.is_empty() && self.has_majority(index) {
            self.nodes[index].orphaned += 1;
            if self.nodes[index].orphaned > 2 && self.nodes[index].in_step {
                self.take_over(index, primary);
            }
        }
    }

    /// The tables, for a failure.
    pub fn tables(&self) -> String {
        let lines = self.nodes.iter().flat_map(|node| {
            let own = format!(
                "{} up {} loading {} data {} {:?}",
                node.id.short(),
                node.up,
                node.loading,
                node.data,
                node.own
            );
            let table = node.table.iter();
            let table = table.map(|(id, entry)| format!("    {} {entry:?}", id.short()));
            std::iter::once(own).chain(table)
        });
        lines.collect::<Vec<_>>().join("\n")
    }
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

/// What the simulated clusters want.
pub fn wanted(shards: usize, replicas: usize, persistent: bool) -> Wanted {
    Wanted {
        shards,
        replicas_per_shard: replicas,
        persistent,
        formed_before: false,
        node_timeout: Duration::from_secs(5),
        patience: Duration::from_secs(30),
        recovery: Recovery::default(),
        may_spread: true,
        absent_are_blank: false,
        known: KnownNodes::new(),
    }
}

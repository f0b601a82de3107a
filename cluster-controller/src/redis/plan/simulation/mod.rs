//! A model of Redis Cluster as coarse as the planner needs: tables, claims with epochs, elections, copies, moves of slots. It refuses what the
//! servers refuse, and it panics where data is destroyed.
//!
//! `node`, `content`: what a node is and holds; `gossip`: what the servers do among themselves; `commands`, `moves`: what the controller
//! does; `faults` and `foreign`: what happens to them; `reports`: what the planner sees; `truth`: what is so.

mod commands;
mod content;
mod faults;
mod foreign;
mod gossip;
mod moves;
mod node;
mod reports;
mod truth;

pub use content::{Content, KEYS};
pub use faults::{Fault, PodIdentity};
pub use moves::Refusal;

use crate::redis::member::Wanted;
use common::cluster::topology::{NodeAddress, NodeId};
use k8s_openapi::jiff::SignedDuration;
use node::{Entry, Node};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

const KUBERNETES_NODES: [&str; 3] = ["one", "two", "three"];

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
    /// Whether what a node tells all others at once gets lost, as with a process that is killed right afterwards.
    pub loses_broadcasts: bool,
    /// The last write.
    written: u64,
    /// How often a replica has taken over.
    takeovers: usize,
    /// What was given up with a primary that had been away for as long as it is waited for.
    forfeited: Content,
}

impl World {
    /// Blank nodes that do not know each other.
    pub fn new(wanted: Wanted) -> Self {
        let mut world = Self::without_nodes(wanted);
        for shard in 0..world.wanted.shards {
            for ordinal in 0..world.wanted.nodes_per_shard() {
                let index = world.add_node();
                let node = &mut world.nodes[index];
                node.seat = Some((shard, ordinal));
                node.proof = format!("team/sim-{shard}-{ordinal}/uid");
            }
        }
        world
    }

    /// A cluster that has yet to get its nodes.
    pub fn without_nodes(wanted: Wanted) -> Self {
        Self {
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
            loses_broadcasts: false,
            written: 0,
            takeovers: 0,
            forfeited: Content::default(),
            wanted,
        }
    }

    /// A blank node, which runs. Its index.
    pub fn add_node(&mut self) -> usize {
        let address = self.fresh_address();
        let node = self.blank(address);
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    pub fn fresh_address(&mut self) -> NodeAddress {
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
            seat: None,
            proof: format!("other/pod-{}/uid", self.next),
            hostname: None,
            up: true,
            is_cut_off: false,
            age: 0,
            away: 0,
            loading: 0,
            own: Entry::new(Some(address)),
            table: BTreeMap::new(),
            banned: BTreeMap::new(),
            heard: 0,
            migrating: BTreeMap::new(),
            importing: BTreeMap::new(),
            content: Content::default(),
            in_step: false,
            feeds: false,
            linked: false,
            orphaned: 0,
        }
    }

    /// Time in which nothing happens.
    pub fn age(&mut self, ticks: u64) {
        for node in &mut self.nodes {
            node.age += ticks;
        }
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
}

/// What the simulated clusters want.
pub fn wanted(shards: usize, replicas: usize, persistent: bool) -> Wanted {
    Wanted::new((shards, replicas), persistent, Duration::from_secs(5))
}

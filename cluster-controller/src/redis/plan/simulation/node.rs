//! What a node is: its own line, its table, and its keys.

use super::content::Content;
use common::cluster::{
    slots::{Slot, SlotSet},
    topology::{NodeAddress, NodeId},
};
use std::collections::BTreeMap;

/// What a node remembers of another one, or says of itself.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) address: Option<NodeAddress>,
    pub(super) primary: Option<NodeId>,
    pub(super) slots: SlotSet,
    pub(super) epoch: u64,
    pub(super) failed: bool,
}

impl Entry {
    /// A primary without slots.
    pub(super) fn new(address: Option<NodeAddress>) -> Self {
        Self {
            address,
            primary: None,
            slots: SlotSet::new(),
            epoch: 0,
            failed: false,
        }
    }
}

#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // independent facts
pub(super) struct Node {
    pub(super) id: NodeId,
    /// Shard and ordinal of its pod, if it is in one of the cluster's.
    pub(super) seat: Option<(usize, usize)>,
    /// Namespace, name and uid of its pod, as its start script has set it.
    pub(super) proof: String,
    /// What it announces.
    pub(super) hostname: Option<String>,
    pub(super) up: bool,
    /// Whether it is on the other side of a network that is cut: the controller is on this side.
    pub(super) is_cut_off: bool,
    /// Ticks since it was started.
    pub(super) age: u64,
    /// Ticks since it answered last.
    pub(super) away: u64,
    /// Ticks until its data is loaded: it runs, but does not answer.
    pub(super) loading: u32,
    /// Itself, by its own word.
    pub(super) own: Entry,
    pub(super) table: BTreeMap<NodeId, Entry>,
    pub(super) banned: BTreeMap<NodeId, u32>,
    /// The newest epoch that it has received.
    pub(super) heard: u64,
    /// Slots that it is to give to other nodes.
    pub(super) migrating: BTreeMap<Slot, NodeId>,
    /// Slots that it expects from other nodes.
    pub(super) importing: BTreeMap<Slot, NodeId>,
    pub(super) content: Content,
    /// Whether it has been in step with its primary since it was started: one that has not never stands for election.
    pub(super) in_step: bool,
    /// Whether it feeds replicas: not before it has been given a role.
    pub(super) feeds: bool,
    pub(super) linked: bool,
    /// Ticks since its primary has failed.
    pub(super) orphaned: u32,
}

impl Node {
    /// Whether its table names a role of its own: only then its server feeds replicas from its start.
    pub(super) fn has_role(&self) -> bool {
        self.own.primary.is_some() || !self.own.slots.is_empty()
    }

    /// Whether it answers those who reach it.
    pub(super) fn answers(&self) -> bool {
        self.up && self.loading == 0
    }

    pub(super) fn owns(&self) -> bool {
        self.own.primary.is_none() && !self.own.slots.is_empty()
    }

    /// Strikes slots out of the lines of all others.
    pub(super) fn strike(&mut self, slots: &SlotSet) {
        for entry in self.table.values_mut() {
            entry.slots = entry.slots.difference(slots);
        }
    }

    /// Whether it lists a node as the replica of this primary.
    pub(super) fn lists(&self, replica: NodeId, primary: NodeId) -> bool {
        let entry = self.table.get(&replica);
        entry.is_some_and(|entry| entry.primary == Some(primary))
    }

    /// Whether it votes for a replica that claims the slots of its primary: it has to list it as that one's, and to know no newer owner of
    /// any of them (`clusterSendFailoverAuthIfNeeded` in `cluster.c`).
    pub(super) fn votes_for(&self, replica: NodeId, (primary, claim): (NodeId, &Entry)) -> bool {
        let mut owners = self.table.values().chain([&self.own]);
        self.lists(replica, primary)
            && !owners.any(|owner| {
                owner.primary.is_none()
                    && owner.epoch > claim.epoch
                    && !owner.slots.intersection(&claim.slots).is_empty()
            })
    }

    /// The newest epoch it knows of: what a bump goes beyond.
    pub(super) fn newest_epoch(&self) -> u64 {
        let known = self.table.values().map(|entry| entry.epoch);
        known
            .chain([self.own.epoch, self.heard])
            .max()
            .unwrap_or_default()
    }

    /// Slots that it expects: it takes in no claim to them (`clusterUpdateSlotsConfigWith` in `cluster.c`).
    pub(super) fn imported(&self) -> SlotSet {
        self.importing.keys().copied().collect()
    }
}

//! What happens to nodes without the controller.

use super::{
    World,
    content::{Content, KEYS},
};
use common::cluster::{slots::SlotSet, topology::NodeAddress};

/// The pod in which a process starts.
#[derive(Clone, Debug)]
pub struct PodIdentity {
    /// Shard and ordinal.
    pub seat: (usize, usize),
    pub proof: String,
    pub address: NodeAddress,
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

impl Fault {
    /// It goes down, and keeps what it has.
    pub const DOWN: Self = Self {
        wiped: false,
        moved: false,
        down: 0,
        loading: 0,
    };
}

impl World {
    /// A node goes down.
    pub fn break_node(&mut self, index: usize, fault: Fault) {
        let address = match self.nodes[index].own.address {
            Some(address) if !fault.moved => address,
            _ => self.fresh_address(),
        };
        if fault.wiped || !self.wanted.persistent {
            self.wipe(index);
        }
        let node = &mut self.nodes[index];
        node.own.address = Some(address);
        node.up = false;
        node.linked = false;
        node.in_step = false;
        node.feeds = node.has_role();
        node.loading = if node.content.is_empty() {
            0
        } else {
            fault.loading
        };
    }

    /// A node loses everything it has, its identity too.
    pub fn wipe(&mut self, index: usize) {
        let address = self.fresh_address();
        let blank = self.blank(address);
        let old = std::mem::replace(&mut self.nodes[index], blank);
        let node = &mut self.nodes[index];
        node.seat = old.seat;
        node.proof = old.proof;
        node.is_cut_off = old.is_cut_off;
    }

    /// The process ends.
    pub fn stop(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.up = false;
        node.linked = false;
        node.in_step = false;
    }

    /// A process starts in a pod, with what the node has on its volume.
    pub fn start(&mut self, index: usize, pod: PodIdentity, loading: u32) {
        let node = &mut self.nodes[index];
        node.seat = Some(pod.seat);
        node.proof = pod.proof;
        node.own.address = Some(pod.address);
        node.loading = if node.content.is_empty() { 0 } else { loading };
        node.up = true;
        node.age = 0;
        node.feeds = node.has_role();
    }

    /// A node goes to the other side of a network that is cut, or comes back.
    pub fn cut_off(&mut self, index: usize, is_cut_off: bool) {
        self.nodes[index].is_cut_off = is_cut_off;
    }

    /// A node is cut off: it keeps what it has, and nothing reaches it.
    pub fn cut(&mut self, index: usize) {
        self.nodes[index].up = false;
    }

    pub fn restart(&mut self, index: usize) {
        self.nodes[index].up = true;
        self.nodes[index].age = 0;
    }

    /// CLUSTER DELSLOTS on every node.
    pub fn take_slots_by_hand(&mut self, from: usize, count: usize) {
        let taken: SlotSet = self.nodes[from].own.slots.iter().take(count).collect();
        for node in &mut self.nodes {
            node.own.slots = node.own.slots.difference(&taken);
            for entry in node.table.values_mut() {
                entry.slots = entry.slots.difference(&taken);
            }
        }
    }

    /// CLUSTER DELSLOTS on the node alone, of slots without keys: the others list them on.
    pub fn strike_out(&mut self, from: usize, count: usize) {
        let taken: SlotSet = self.nodes[from].own.slots.iter().take(count).collect();
        let node = &mut self.nodes[from];
        node.own.slots = node.own.slots.difference(&taken);
        for node in &mut self.nodes {
            node.content.clear(&taken);
        }
    }

    /// Two primaries each list slots without keys with the other one: SETSLOT by hand, between messages of before.
    pub fn point_at_each_other(&mut self, from: usize, other: usize, count: usize) {
        let slots: SlotSet = self.nodes[from].own.slots.iter().take(count).collect();
        let ids = [self.nodes[from].id, self.nodes[other].id];
        for (index, listed) in [(from, ids[1]), (other, ids[0])] {
            let node = &mut self.nodes[index];
            node.own.slots = node.own.slots.difference(&slots);
            node.strike(&slots);
            if let Some(entry) = node.table.get_mut(&listed) {
                entry.slots = entry.slots.union(&slots);
            }
        }
        for node in &mut self.nodes {
            node.content.clear(&slots);
        }
    }

    /// A node has keys of slots that it does not serve.
    pub fn leave_keys(&mut self, index: usize, slots: &SlotSet) {
        let number = self.written;
        let content = &mut self.nodes[index].content;
        (0..KEYS).for_each(|key| content.write(key, slots, number));
    }

    /// A replica follows another primary, as servers before 7.0 arrange it for a primary without replicas.
    pub fn migrate(&mut self, replica: usize, primary: usize) {
        let id = self.nodes[primary].id;
        let content = self.nodes[primary].content.clone();
        let node = &mut self.nodes[replica];
        assert!(node.own.primary.is_some(), "a primary does not migrate");
        node.own.primary = Some(id);
        node.content = content;
        node.in_step = true;
    }

    /// A replica is attached and has not copied anything yet.
    pub fn unlink_before_the_copy(&mut self, replica: usize) {
        let node = &mut self.nodes[replica];
        node.content = Content::default();
        node.in_step = false;
        node.linked = false;
    }
}

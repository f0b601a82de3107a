//! Nodes that are none of the cluster's pods.

use super::{World, content::KEYS, node::Node};
use common::cluster::{
    slots::{Slot, SlotRange, SlotSet},
    topology::{NodeAddress, NodeId},
};
use std::collections::BTreeSet;

impl World {
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
            let slots = node.own.slots.clone();
            (0..KEYS).for_each(|key| node.content.write(key, &slots, 7));
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

    pub(super) fn keep_foreign(&mut self, added: &[usize]) {
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

    pub fn has_foreign(&self) -> bool {
        !self.foreign.is_empty()
    }

    /// The id of a foreign node.
    pub fn foreign_id(&self) -> Option<NodeId> {
        self.foreign.values().next().map(|node| node.id)
    }

    /// A foreign node gets an address that was another one's.
    pub fn take_address(&mut self, foreign: usize, address: NodeAddress) {
        self.nodes[foreign].own.address = Some(address);
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
            assert_eq!(node.content, before.content, "foreign keys");
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
        node.content = self.nodes[from].content.within(&moved);
        self.nodes[from].content.clear(&moved);
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
}

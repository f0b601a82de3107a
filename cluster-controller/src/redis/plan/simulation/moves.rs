//! Moves of slots, command by command: `CLUSTER SETSLOT` and `MIGRATE`, with what the servers refuse.

use super::{
    World,
    reports::{open_slots, unserved},
};
use crate::redis::reshard::SlotTable;
use common::cluster::{
    slots::{Slot, SlotSet},
    topology::NodeId,
};

/// Why a server did not do it.
pub type Refusal = String;

impl World {
    /// The node that answers the controller with this id.
    pub fn answering(&self, id: NodeId) -> Result<usize, Refusal> {
        let mut nodes = self.nodes.iter();
        let index = nodes.position(|node| node.id == id && node.answers() && !node.is_cut_off);
        let index = index.ok_or_else(|| format!("{} does not answer", id.short()))?;
        assert!(!self.is_foreign(index), "slots move to a foreign node");
        Ok(index)
    }

    /// What a primary says of its slots; none: it is a replica.
    pub fn slot_table(&self, id: NodeId) -> Result<Option<SlotTable>, Refusal> {
        let index = self.answering(id)?;
        let node = &self.nodes[index];
        if node.own.primary.is_some() {
            return Ok(None);
        }
        let lines = node.table.values().map(|entry| &entry.slots);
        let others = node.table.iter().filter(|(_, one)| one.primary.is_none());
        Ok(Some(SlotTable {
            slots: node.own.slots.clone(),
            open: open_slots(node),
            unlisted: lines.fold(SlotSet::full().difference(&node.own.slots), |all, slots| {
                all.difference(slots)
            }),
            primaries: others.map(|(id, _)| *id).collect(),
            ..SlotTable::default()
        }))
    }

    /// Whether any node has a mark of a slot that moves.
    pub fn has_open_slots(&self) -> bool {
        let mut nodes = self.nodes.iter();
        nodes.any(|node| !node.migrating.is_empty() || !node.importing.is_empty())
    }

    /// Slots that a primary does not serve and of which it has keys.
    pub fn unserved_by(&self, id: NodeId) -> Result<SlotSet, Refusal> {
        let index = self.answering(id)?;
        Ok(unserved(&self.nodes[index]))
    }

    pub fn keys_in(&self, id: NodeId, slot: Slot) -> Result<u64, Refusal> {
        let index = self.answering(id)?;
        Ok(self.nodes[index].content.count_in(slot))
    }

    /// Whether the node knows that another one serves the slots.
    pub fn lists(&self, node: NodeId, owner: NodeId, slots: &SlotSet) -> Result<(), Refusal> {
        let index = self.answering(node)?;
        let owner = self.nodes[index].table.get(&owner);
        match owner {
            Some(owner) if slots.difference(&owner.slots).is_empty() => Ok(()),
            Some(_) | None => Err("the target does not know who serves a slot".into()),
        }
    }

    /// `SETSLOT IMPORTING`
    pub fn import(&mut self, node: NodeId, from: NodeId, slots: &SlotSet) -> Result<(), Refusal> {
        let index = self.primary(node)?;
        let node = &mut self.nodes[index];
        if !node.own.slots.intersection(slots).is_empty() {
            return Err("already the owner of a slot".into());
        }
        if !node.table.contains_key(&from) {
            return Err("unknown node".into());
        }
        for slot in slots.iter() {
            node.importing.insert(slot, from);
        }
        Ok(())
    }

    /// `SETSLOT MIGRATING`
    pub fn migrate_slots(
        &mut self,
        node: NodeId,
        to: NodeId,
        slots: &SlotSet,
    ) -> Result<(), Refusal> {
        let index = self.primary(node)?;
        let node = &mut self.nodes[index];
        if !slots.difference(&node.own.slots).is_empty() {
            return Err("not the owner of a slot".into());
        }
        if !node.table.contains_key(&to) {
            return Err("unknown node".into());
        }
        for slot in slots.iter() {
            node.migrating.insert(slot, to);
        }
        Ok(())
    }

    /// `SETSLOT STABLE`
    pub fn close(&mut self, node: NodeId, slots: &SlotSet) -> Result<(), Refusal> {
        let index = self.primary(node)?;
        for slot in slots.iter() {
            self.nodes[index].migrating.remove(&slot);
            self.nodes[index].importing.remove(&slot);
        }
        Ok(())
    }

    /// `MIGRATE` of one key of each slot. What `from` sends replaces what is there, unless the other one is right. `breaks_off`: the answer
    /// does not arrive, so that both have it.
    pub fn move_keys(
        &mut self,
        (from, to): (NodeId, NodeId),
        (key, slots): (usize, &SlotSet),
        target_is_right: bool,
        breaks_off: bool,
    ) -> Result<(), Refusal> {
        let (from, to) = (self.primary(from)?, self.primary(to)?);
        if self.reach(from, self.nodes[to].own.address) != Some(to) {
            return Err("IOERR".into());
        }
        let sent = self.nodes[from].content.only(key).within(slots);
        let arriving = sent.any();
        let target = &self.nodes[to];
        let expected = target.own.slots.union(&target.imported());
        if !arriving.difference(&expected).is_empty() {
            return Err("MOVED".into());
        }
        if target_is_right {
            let present = self.nodes[to].content.slots(key);
            let missing = sent.within(&arriving.difference(&present));
            self.nodes[to].content.put(&missing);
        } else {
            let replaced = self.nodes[to].content.only(key).within(&arriving);
            assert!(
                replaced.beyond(&sent).is_empty(),
                "a key was replaced by an earlier write of it"
            );
            self.nodes[to].content.put(&sent);
        }
        self.replicate_now(to);
        if breaks_off {
            return Err("IOERR: no answer".into());
        }
        let gone = self.unique(from).only(key).within(slots);
        assert!(
            gone.is_empty(),
            "a key that moves was the last copy: {gone:?}"
        );
        self.nodes[from].content.remove(key, slots);
        self.replicate_now(from);
        Ok(())
    }

    /// `SETSLOT NODE`
    pub fn assign_moved(
        &mut self,
        node: NodeId,
        target: NodeId,
        slots: &SlotSet,
    ) -> Result<(), Refusal> {
        let index = self.primary(node)?;
        let newest = self.nodes[index].newest_epoch();
        let node = &mut self.nodes[index];
        if node.id != target && !node.table.contains_key(&target) {
            return Err("unknown node".into());
        }
        let given = node.own.slots.intersection(slots);
        if node.id != target && !node.content.any().intersection(&given).is_empty() {
            return Err("still has keys of a slot".into());
        }
        for slot in slots.iter() {
            node.migrating.remove(&slot);
        }
        node.strike(slots);
        if node.id == target {
            let imported = slots.iter().any(|slot| node.importing.contains_key(&slot));
            for slot in slots.iter() {
                node.importing.remove(&slot);
            }
            node.own.slots = node.own.slots.union(slots);
            if imported {
                node.own.epoch = newest + 1;
                // The target tells all nodes at once (`clusterCommand` in `cluster.c`).
                if !self.loses_broadcasts {
                    self.broadcast(index);
                }
            }
        } else {
            node.own.slots = node.own.slots.difference(slots);
            let entry = node.table.get_mut(&target);
            if let Some(entry) = entry.filter(|entry| entry.primary.is_none()) {
                entry.slots = entry.slots.union(slots);
            }
        }
        Ok(())
    }

    /// A primary that answers.
    fn primary(&self, id: NodeId) -> Result<usize, Refusal> {
        let index = self.answering(id)?;
        match self.nodes[index].own.primary {
            None => Ok(index),
            Some(_) => Err(format!("{} is a replica", id.short())),
        }
    }

    /// A node that becomes a replica has no open slots (`clusterCloseAllSlots`).
    pub(super) fn close_all(&mut self, index: usize) {
        self.nodes[index].migrating.clear();
        self.nodes[index].importing.clear();
    }

    /// What the marks of slots that are half moved look like: part of the keys are at the target.
    pub fn leave_half_moved(&mut self, from: usize, to: usize, slots: &SlotSet, stage: u32) {
        let (source, target) = (self.nodes[from].id, self.nodes[to].id);
        for step in 1..=stage.min(4) {
            let done = match step {
                1 => self.import(target, source, slots).map(drop),
                2 => self.migrate_slots(source, target, slots).map(drop),
                3 => self
                    .move_keys((source, target), (0, slots), false, stage == 3)
                    .map(drop),
                _ => self
                    .move_keys((source, target), (1, slots), false, stage == 4)
                    .map(drop),
            };
            if done.is_err() {
                return;
            }
        }
    }
}

//! What is so, not what any node or the controller believes: who has the keys, and who serves which slots.

use super::{World, content::Content, node::Node};
use common::cluster::{slots::SlotSet, topology::NodeId};
use std::collections::{BTreeMap, BTreeSet};

impl World {
    /// The nodes that are none of another cluster.
    fn ours(&self) -> impl Iterator<Item = (usize, &Node)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter(|(index, _)| !self.foreign.contains_key(index))
    }

    /// The nodes in pods of the cluster.
    fn seated(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.ours().filter(|(_, node)| node.seat.is_some())
    }

    /// The earliest write that what the primary of each shard serves comes from, by shard.
    pub fn served(&self) -> BTreeMap<usize, u64> {
        let primaries = self
            .seated()
            .filter(|(_, node)| node.answers() && node.owns());
        let served = primaries.filter_map(|(_, node)| {
            let oldest = node.content.oldest(&node.own.slots);
            Some((node.seat?.0, oldest))
        });
        served.collect()
    }

    /// Shards of which a primary holds the keys.
    pub fn shards_with_data(&self) -> BTreeSet<usize> {
        let served = self.served().into_iter();
        served
            .filter(|(_, oldest)| *oldest > 0)
            .map(|(shard, _)| shard)
            .collect()
    }

    /// Shards of which any node, up or down, still holds the keys.
    pub fn shards_that_can_be_saved(&self) -> BTreeSet<usize> {
        let holders = self.seated().filter(|(_, node)| !node.content.is_empty());
        holders.filter_map(|(_, node)| Some(node.seat?.0)).collect()
    }

    /// Whether the node has slots.
    pub fn owns(&self, index: usize) -> bool {
        self.nodes[index].owns()
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

    pub fn content_of(&self, index: usize) -> &Content {
        &self.nodes[index].content
    }

    /// How many slots it expects.
    pub fn imported_by(&self, index: usize) -> usize {
        self.nodes[index].importing.len()
    }

    /// Whether the process runs and has read its data.
    pub fn has_loaded(&self, index: usize) -> bool {
        self.nodes[index].answers()
    }

    pub fn is_cut_off(&self, index: usize) -> bool {
        self.nodes[index].is_cut_off
    }

    pub fn is_foreign(&self, index: usize) -> bool {
        self.foreign.contains_key(&index)
    }

    /// Nodes that have a copy of another one in step.
    pub fn linked_replicas_of(&self, index: usize) -> Vec<usize> {
        let id = self.nodes[index].id;
        let linked = |node: &Node| node.answers() && node.linked && node.own.primary == Some(id);
        let found = self.ours().filter(|(_, node)| linked(node));
        found.map(|(index, _)| index).collect()
    }

    /// What no other node has, up or down.
    pub fn unique(&self, index: usize) -> Content {
        let mut rest = self.nodes[index].content.beyond(&self.forfeited);
        for (other, node) in self.ours() {
            if rest.is_empty() {
                break;
            }
            if other != index {
                rest = rest.beyond(&node.content);
            }
        }
        rest
    }

    /// Whether another node of its shard, none of these, has a copy of what the node is there for.
    pub fn has_copy_elsewhere(&self, index: usize, lost: &BTreeSet<usize>) -> bool {
        let node = &self.nodes[index];
        if node.own.primary.is_none() && !node.owns() {
            return self.unique(index).is_empty();
        }
        let shard = node.own.primary.unwrap_or(node.id);
        let needed = match node.own.primary {
            Some(_) => node.content.clone(),
            None => node.content.within(&node.own.slots.union(&node.imported())),
        };
        self.ours().any(|(other, copy)| {
            let is_of_shard = copy.id == shard || copy.own.primary == Some(shard);
            other != index
                && !lost.contains(&other)
                && is_of_shard
                && needed.beyond(&copy.content).is_empty()
        })
    }

    /// What all nodes together have, up or down.
    pub fn everything(&self) -> Content {
        let mut all = Content::default();
        for (_, node) in self.ours() {
            all.take_newer(&node.content);
        }
        all
    }

    /// What the nodes in pods have, up or down.
    pub fn in_pods(&self) -> Content {
        let mut all = Content::default();
        for (_, node) in self.seated() {
            all.take_newer(&node.content);
        }
        all
    }

    /// Whether a move of slots that is half done can still be recognized without these nodes: by the mark of another primary. Two
    /// replicas that take over on both sides know nothing of it.
    pub fn keeps_marks(&self, lost: &BTreeSet<usize>) -> bool {
        let marks = |index: &usize| {
            let node = &self.nodes[*index];
            let slots = node.migrating.keys().chain(node.importing.keys());
            slots.copied().collect::<SlotSet>()
        };
        let has_mark =
            |node: &Node| node.answers() && !node.is_cut_off && node.own.primary.is_none();
        let kept = self
            .ours()
            .filter(|(index, node)| !lost.contains(index) && has_mark(node));
        let kept = kept.fold(SlotSet::new(), |all, (index, _)| all.union(&marks(&index)));
        lost.iter()
            .all(|index| marks(index).difference(&kept).is_empty())
    }

    /// How often a replica has taken over, by whatever means.
    pub fn takeovers(&self) -> usize {
        self.takeovers
    }

    /// What was given up, as the policy allows it.
    pub fn forfeited(&self) -> &Content {
        &self.forfeited
    }

    /// The newest claims to each slot, of nodes up and down.
    pub fn claims(&self) -> BTreeMap<usize, SlotSet> {
        let owners = self.ours().filter(|(_, node)| node.owns());
        let mut owners: Vec<(u64, NodeId, usize)> = owners
            .map(|(index, node)| (node.own.epoch, node.id, index))
            .collect();
        owners.sort_unstable();
        let mut taken = SlotSet::new();
        let mut claims = BTreeMap::new();
        for (_, _, index) in owners.into_iter().rev() {
            let won = self.nodes[index].own.slots.difference(&taken);
            taken = taken.union(&won);
            claims.insert(index, won);
        }
        claims
    }

    /// The tables, for a failure.
    pub fn tables(&self) -> String {
        let lines = self.nodes.iter().flat_map(|node| {
            let own = format!(
                "{} {:?} up {} cut off {} loading {} in step {} linked {} {:?} migrating {:?} importing {:?} holds {:?}",
                node.id.short(),
                node.seat,
                node.up,
                node.is_cut_off,
                node.loading,
                node.in_step,
                node.linked,
                node.own,
                node.migrating,
                node.importing,
                node.content,
            );
            let table = node.table.iter();
            let table = table.map(|(id, entry)| format!("    {} {entry:?}", id.short()));
            std::iter::once(own).chain(table)
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

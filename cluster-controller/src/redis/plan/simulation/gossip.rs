//! What the servers do among themselves: pings, gossip, failure, election, replication.

use super::{
    World,
    content::KEYS,
    node::{Entry, Node},
};
use common::cluster::{
    slots::{SlotRange, SlotSet},
    topology::{NodeAddress, NodeId},
};

impl World {
    /// Time passes: pings, gossip, failure, election, replication.
    pub fn tick(&mut self) {
        for node in &mut self.nodes {
            let is_away = !node.answers() || node.is_cut_off;
            node.away = if is_away { node.away + 1 } else { 0 };
        }
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
            let answers = self.reach(index, address).map(|other| self.nodes[other].id);
            let entry = self.nodes[index].table.get_mut(&id).unwrap();
            match answers {
                None => entry.failed = entry.address.is_some(),
                // "PONG contains mismatching sender id"
                Some(other) if other != id => entry.address = None,
                Some(_) => {
                    entry.failed = false;
                    if let Some(other) = self.reach(index, address) {
                        self.exchange(index, other);
                    }
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
        self.update(from, to);
        self.update(to, from);
    }

    /// A node that claims slots, for itself or for its primary, hears of their newer owner from every node that knows of it, wherever that
    /// owner is: an UPDATE message (`clusterProcessPacket` in `cluster.c`).
    fn update(&mut self, claimant: usize, other: usize) {
        let own = &self.nodes[claimant];
        let primary = own.own.primary;
        let claim = primary.map_or(Some(&own.own), |primary| own.table.get(&primary));
        let Some(claim) = claim else { return };
        let owners = self.nodes[other].table.iter();
        let owners = owners.filter(|(id, entry)| {
            let known = own.table.get(id);
            known.is_some_and(|known| known.epoch < entry.epoch)
                && entry.primary.is_none()
                && entry.epoch > claim.epoch
                && !entry.slots.intersection(&claim.slots).is_empty()
        });
        let owners: Vec<(NodeId, Entry)> = owners.map(|(id, entry)| (*id, entry.clone())).collect();
        for (id, entry) in owners {
            self.learn_claims(claimant, id, &entry);
        }
    }

    /// `pupil` takes in what `teacher` says of itself and whom it knows.
    pub(super) fn learn(&mut self, pupil: usize, teacher: usize) {
        let [node, other] = self.nodes.get_disjoint_mut([pupil, teacher]).unwrap();
        // The cluster's current epoch travels with every message.
        node.heard = node.heard.max(other.newest_epoch());
        for (id, heard) in &other.table {
            if heard.failed || heard.address.is_none() {
                continue;
            }
            if *id == node.id || node.banned.contains_key(id) {
                continue;
            }
            let known = node.table.entry(*id).or_insert(Entry::new(heard.address));
            if known.failed {
                known.address = heard.address;
            }
        }
        let (id, own) = (other.id, &other.own);
        let entry = node.table.get_mut(&id).unwrap();
        if own.primary.is_some() {
            entry.primary = own.primary;
            entry.slots = SlotSet::new();
            return;
        }
        if entry.primary.is_none() && entry.epoch == own.epoch && entry.slots == own.slots {
            return;
        }
        let own = own.clone();
        self.learn_claims(pupil, id, &own);
    }

    /// A newer claim wins, except to slots that the node expects from another one.
    fn learn_claims(&mut self, pupil: usize, id: NodeId, claim: &Entry) {
        let node = &mut self.nodes[pupil];
        let newer = |epoch, other| (epoch, other) >= (claim.epoch, id);
        let mut won = claim.slots.difference(&node.imported());
        if newer(node.own.epoch, node.id) {
            won = won.difference(&node.own.slots);
        }
        for (other, entry) in &node.table {
            if *other != id && newer(entry.epoch, *other) {
                won = won.difference(&entry.slots);
            }
        }
        // The slots of the shard that the node belongs to.
        let before = match node.own.primary {
            None => node.own.slots.clone(),
            Some(primary) if primary == id => SlotSet::new(),
            Some(primary) => {
                let primary = node.table.get(&primary);
                primary.map(|entry| entry.slots.clone()).unwrap_or_default()
            }
        };
        // `cluster-allow-replica-migration no`: it follows one that has taken over, not one that was given its last slots.
        let taken_over = !before.is_empty()
            && before.difference(&won).is_empty()
            && claim.slots.difference(&before).is_empty();
        let lost = node.own.slots.intersection(&won);
        node.own.slots = node.own.slots.difference(&won);
        for (other, entry) in &mut node.table {
            if *other != id {
                entry.slots = entry.slots.difference(&won);
            }
        }
        let entry = node.table.get_mut(&id).unwrap();
        entry.primary = None;
        entry.epoch = claim.epoch;
        entry.slots = entry.slots.intersection(&claim.slots).union(&won);
        if taken_over {
            node.own.primary = Some(id);
            node.linked = false;
            node.in_step = false;
            self.close_all(pupil);
        } else if !lost.is_empty() {
            // "Here we have lost slots with keys": `clusterUpdateSlotsConfigWith` deletes them.
            let unique = self.unique(pupil).within(&lost);
            assert!(unique.is_empty(), "keys of lost slots were the last copy");
            self.nodes[pupil].content.clear(&lost);
        }
    }

    /// A replica copies its primary, or stands for election when it has failed.
    fn follow(&mut self, index: usize) {
        let Some(primary) = self.nodes[index].own.primary else {
            return;
        };
        let Some(entry) = self.nodes[index].table.get(&primary) else {
            return;
        };
        let stands = entry.failed && !entry.slots.is_empty();
        let source = self.reach(index, entry.address);
        if let Some(source) = source.filter(|source| self.nodes[*source].feeds) {
            let is_primary = self.nodes[source].id == primary;
            assert!(
                is_primary
                    || !self.nodes[source].content.is_empty()
                    || self.nodes[index].content.is_empty(),
                "a replica copied an empty node that is not its primary"
            );
            self.nodes[index].linked = is_primary;
            if is_primary && self.nodes[source].own.primary.is_none() {
                self.copy(index, source);
            }
            self.nodes[index].orphaned = 0;
            return;
        }
        self.nodes[index].linked = false;
        if stands && self.wins_election(index, primary) {
            self.nodes[index].orphaned += 1;
            if self.nodes[index].orphaned > 2 && self.nodes[index].in_step {
                self.be_elected(index, primary);
            }
        }
    }

    /// The node that wins an election tells every other at once (`clusterFailoverReplaceYourMaster` in `cluster.c`): no primary votes for
    /// another replica of the same primary, and none gives itself the epoch of the election.
    pub(super) fn be_elected(&mut self, winner: usize, primary: NodeId) {
        self.take_over(winner, primary);
        self.broadcast(winner);
    }

    /// A node tells every other at once what it serves.
    pub(super) fn broadcast(&mut self, node: usize) {
        let (id, address) = (self.nodes[node].id, self.nodes[node].own.address);
        for other in 0..self.nodes.len() {
            let one = &self.nodes[other];
            let hears = other != node && one.answers() && one.table.contains_key(&id);
            if hears && self.reach(other, address) == Some(node) {
                self.learn(other, node);
            }
        }
    }

    fn copy(&mut self, index: usize, source: usize) {
        self.nodes[index].in_step = true;
        if self.nodes[index].content == self.nodes[source].content {
            return;
        }
        let unique = self.unique(index);
        assert!(
            unique.is_empty(),
            "a replica copied less than it had: {unique:?}"
        );
        self.nodes[index].content = self.nodes[source].content.clone();
    }

    /// Those that are linked to a primary have at once what it was given. One that has missed it does not stand for election: what a primary
    /// takes while its replicas are cut off from it is not safe before it has them back.
    pub(super) fn replicate_now(&mut self, primary: usize) {
        let (id, address) = (self.nodes[primary].id, self.nodes[primary].own.address);
        let content = self.nodes[primary].content.clone();
        for replica in 0..self.nodes.len() {
            if self.nodes[replica].own.primary != Some(id) {
                continue;
            }
            if self.nodes[replica].linked && self.reach(replica, address) == Some(primary) {
                self.nodes[replica].content.clone_from(&content);
            } else if self.nodes[replica].content != content {
                self.nodes[replica].in_step = false;
            }
        }
    }

    pub(super) fn take_over(&mut self, index: usize, primary: NodeId) {
        self.takeovers += 1;
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

    /// Whether most of the primaries that a replica knows vote for it in the place of its primary.
    pub(super) fn wins_election(&self, index: usize, primary: NodeId) -> bool {
        let node = &self.nodes[index];
        let claim = node.table.get(&primary);
        // Without slots it does not stand (`clusterHandleSlaveFailover` in `cluster.c`).
        let Some(claim) = claim.filter(|claim| !claim.slots.is_empty()) else {
            return false;
        };
        let votes = |voter: &Node| voter.votes_for(node.id, (primary, claim));
        let (mut all, mut granted) = (0, 0);
        for voter in self.listed_primaries(index) {
            all += 1;
            granted += usize::from(voter.is_some_and(votes));
        }
        granted * 2 > all
    }

    /// Whether most of the primaries in the node's table answer at the addresses it has.
    pub(super) fn has_majority(&self, index: usize) -> bool {
        let own = usize::from(!self.nodes[index].own.slots.is_empty());
        let (mut all, mut reached) = (own, own);
        for primary in self.listed_primaries(index) {
            all += 1;
            reached += usize::from(primary.is_some());
        }
        reached * 2 > all
    }

    /// The primaries with slots that a node lists; none for one that does not answer at the address it has.
    fn listed_primaries(&self, index: usize) -> impl Iterator<Item = Option<&Node>> {
        let listed = self.nodes[index].table.iter();
        let primaries = listed.filter(|(_, entry)| !entry.slots.is_empty());
        primaries.map(move |(id, entry)| {
            let other = &self.nodes[self.reach(index, entry.address)?];
            (other.id == *id).then_some(other)
        })
    }

    /// The node that answers another one at an address.
    pub(super) fn reach(&self, from: usize, address: Option<NodeAddress>) -> Option<usize> {
        let (address, side) = (address?, self.nodes[from].is_cut_off);
        self.nodes.iter().position(|node| {
            node.answers() && node.is_cut_off == side && node.own.address == Some(address)
        })
    }

    /// The node that answers the controller at an address.
    pub(super) fn answering_at(&self, address: NodeAddress) -> Option<usize> {
        self.nodes.iter().position(|node| {
            node.answers() && !node.is_cut_off && node.own.address == Some(address)
        })
    }

    /// Users write every key of every primary that has a majority. A key that its primary has given away already is written where the
    /// slot goes to.
    pub fn fill(&mut self) {
        self.written += 1;
        let mut written = SlotSet::new();
        for index in 0..self.nodes.len() {
            let node = &self.nodes[index];
            let serves = node.answers() && node.owns() && !self.is_foreign(index);
            if !serves || !self.has_majority(index) {
                continue;
            }
            let (id, slots) = (self.nodes[index].id, self.nodes[index].own.slots.clone());
            // Two primaries of a slot take different writes.
            if !written.intersection(&slots).is_empty() {
                self.written += 1;
            }
            written = written.union(&slots);
            let number = self.written;
            let migrating: SlotSet = self.nodes[index].migrating.keys().copied().collect();
            for key in 0..KEYS {
                let node = &mut self.nodes[index];
                let given = migrating.difference(&node.content.slots(key));
                let here = node.own.slots.difference(&given);
                node.content.write(key, &here, number);
                for slot in given.iter() {
                    let target = self.nodes[index].migrating[&slot];
                    let target = self.nodes.iter().position(|node| {
                        node.id == target && node.importing.get(&slot) == Some(&id)
                    });
                    let target = target.filter(|target| {
                        self.reach(index, self.nodes[*target].own.address) == Some(*target)
                    });
                    if let Some(target) = target {
                        let slot = SlotSet::from(SlotRange::from(slot));
                        self.nodes[target].content.write(key, &slot, number);
                        self.replicate_now(target);
                    }
                }
            }
            self.replicate_now(index);
        }
    }
}

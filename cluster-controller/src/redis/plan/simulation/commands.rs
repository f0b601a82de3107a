//! The commands of the controller, and what the servers refuse of them. It panics where data is destroyed.

use super::{World, content::Content, node::Entry};
use crate::redis::{
    identity::known_nodes,
    member::{ClientSetting, Member},
    plan::{Action, Assignment, Plan, PromotedCopy},
    survey::Index,
};
use common::cluster::{
    node::FailoverMode,
    slots::SlotSet,
    topology::{NodeAddress, NodeId},
};
use crds::LostSlots;
use k8s_openapi::jiff::Timestamp;

/// Ticks after which a primary is not waited for any more (`spec.recovery.after`).
const WAITED: u64 = 30;

impl World {
    /// Does the steps for which `done` says so: the others are those that a controller did not get to. The ids are recorded before.
    pub fn execute(&mut self, plan: &Plan, done: impl FnMut() -> bool) {
        let members = self.members(Timestamp::UNIX_EPOCH);
        self.wanted.known = known_nodes(&self.wanted, &members);
        self.carry_out(plan, &members, done);
    }

    /// Does the steps of a plan that was made of these answers.
    pub fn carry_out(&mut self, plan: &Plan, members: &[Member], mut done: impl FnMut() -> bool) {
        for step in &plan.steps {
            if done() {
                self.act(&step.action, members);
            }
        }
    }

    /// The node that a command to a member reaches: its server proves its id before.
    fn reached(&self, members: &[Member], member: Index) -> Option<usize> {
        let member = &members[member];
        let (id, address) = (member.report()?.id(), member.expected.address?);
        self.proven(id, address)
    }

    /// The server at an address, where it is the one that was meant.
    fn proven(&self, id: NodeId, address: NodeAddress) -> Option<usize> {
        let index = self.answering_at(address)?;
        let is_meant = self.nodes[index].id == id;
        assert!(
            !is_meant || !self.foreign.contains_key(&index),
            "a command was meant for a foreign node"
        );
        is_meant.then_some(index)
    }

    fn act(&mut self, action: &Action, members: &[Member]) {
        match action {
            Action::AssignSlots {
                member,
                ranges,
                how,
            } => {
                let slots: SlotSet = ranges.iter().copied().collect();
                if let Some(index) = self.reached(members, *member) {
                    self.assign(index, &slots, how);
                }
            }
            Action::Meet { member, others, .. } => {
                if let Some(index) = self.reached(members, *member) {
                    for other in others {
                        if let Some(other) = self.proven(other.id, other.address) {
                            self.meet(index, other);
                        }
                    }
                }
            }
            Action::Promote {
                member,
                mode,
                copy,
                unheard,
                ..
            } => {
                if let Some(index) = self.reached(members, *member) {
                    assert!(
                        *copy != PromotedCopy::Held || self.has_copied(index),
                        "a replica without a copy was promoted silently"
                    );
                    self.promote(index, *mode);
                    self.claim(index, &unheard.iter().copied().collect());
                }
            }
            Action::HandOver { to, from, .. } => {
                let to = self.reached(members, *to);
                if let Some((to, from)) = to.zip(self.reached(members, *from)) {
                    self.hand_over(to, from);
                }
            }
            Action::Admit { member } => {
                if let Some(index) = self.reached(members, *member) {
                    self.nodes[index].feeds = true;
                }
            }
            Action::Replicate {
                member, primary, ..
            } => {
                if let Some(index) = self.reached(members, *member) {
                    self.replicate(index, *primary);
                }
            }
            Action::Forget { id, on } => {
                for index in on {
                    if let Some(index) = self.reached(members, *index) {
                        self.forget(index, *id);
                    }
                }
            }
            Action::RestoreNodeTimeout { .. } => {}
            Action::TellClients {
                member,
                setting,
                value,
            } => {
                let index = self.reached(members, *member);
                if let (Some(index), ClientSetting::Hostname) = (index, setting) {
                    self.nodes[index].hostname = Some(value.clone());
                }
            }
        }
    }

    /// Whether a replica has a copy, or there is nothing to copy.
    fn has_copied(&self, index: usize) -> bool {
        let node = &self.nodes[index];
        let primary = node.own.primary.and_then(|id| node.table.get(&id));
        let slots = primary.map(|entry| entry.slots.clone()).unwrap_or_default();
        !node.content.is_empty() || self.everything().within(&slots).is_empty()
    }

    fn forget(&mut self, index: usize, id: NodeId) {
        let node = &mut self.nodes[index];
        if node.own.primary == Some(id) {
            return self.refuse("FORGET of the own primary");
        }
        let forgotten = node.table.remove(&id);
        assert!(
            forgotten.is_none_or(|entry| entry.slots.is_empty()),
            "a node with slots was forgotten"
        );
        node.banned.insert(id, 60);
    }

    fn assign(&mut self, index: usize, slots: &SlotSet, how: &Assignment) {
        let everything = self.in_pods().within(slots);
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
                assert!(
                    everything.is_empty(),
                    "slots created although a node has their keys"
                );
                node.own.epoch = *epoch;
            }
            Assignment::Joined => {
                if !listed.intersection(slots).is_empty() {
                    return self.refuse("ADDSLOTS: busy");
                }
                assert!(
                    everything.beyond(&node.content).is_empty(),
                    "slots created although a node has their keys"
                );
            }
            Assignment::Restored { listed } => {
                node.strike(&listed.iter().copied().collect());
                assert!(
                    everything.beyond(&node.content).is_empty(),
                    "slots restored without their keys"
                );
                node.own.epoch = newest + 1;
            }
            Assignment::Recreated { .. } => {
                let accepted = self.wanted.recovery.lost_slots == LostSlots::RecreateEmpty;
                assert!(
                    !self.wanted.persistent || accepted,
                    "slots of volumes recreated"
                );
                assert!(
                    everything.is_empty(),
                    "slots recreated although a node has their keys"
                );
                node.strike(slots);
                node.own.epoch = newest + 1;
            }
        }
        assert!(node.own.primary.is_none(), "slots given to a replica");
        node.own.slots = node.own.slots.union(slots);
        node.feeds = true;
    }

    fn meet(&mut self, index: usize, other: usize) {
        if other == index {
            return;
        }
        assert!(
            !self.foreign.contains_key(&other),
            "a foreign node was introduced"
        );
        for (from, to) in [(index, other), (other, index)] {
            let entry = Entry {
                primary: self.nodes[to].own.primary,
                ..Entry::new(self.nodes[to].own.address)
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
        if mode == FailoverMode::Force && !self.wins_election(index, primary) {
            return self.refuse("election lost");
        }
        let old = self.nodes.iter().position(|node| node.id == primary);
        let is_given_up = old.is_none_or(|old| {
            // One that runs in a majority goes on taking writes where it is: only an election, or its end, makes that impossible.
            let is_fenced =
                mode == FailoverMode::Force || !self.nodes[old].up || !self.has_majority(old);
            self.nodes[old].away >= WAITED && is_fenced
        });
        let copies = self.nodes.iter().filter(|node| {
            let is_of_shard = node.id == primary || node.own.primary == Some(primary);
            is_given_up && is_of_shard && node.away >= WAITED
        });
        for copy in copies {
            let lost = copy.content.beyond(&self.nodes[index].content);
            self.forfeited.take_newer(&lost);
        }
        match mode {
            FailoverMode::Force | FailoverMode::Coordinated => self.be_elected(index, primary),
            FailoverMode::Takeover => self.take_over(index, primary),
        }
    }

    /// `DELSLOTS` and `ADDSLOTS` of slots that a primary is to serve under the epoch that it has.
    fn claim(&mut self, index: usize, slots: &SlotSet) {
        let node = &mut self.nodes[index];
        if node.own.primary.is_some() {
            return;
        }
        node.strike(slots);
        node.own.slots = node.own.slots.union(slots);
    }

    /// The replica has everything before it takes over, and the old primary follows it.
    pub fn hand_over(&mut self, to: usize, from: usize) {
        let primary = self.nodes[from].id;
        let linked = self.nodes[to].linked && self.nodes[to].own.primary == Some(primary);
        if !linked || !self.has_majority(to) {
            return self.refuse("FAILOVER: not linked, or no majority");
        }
        assert!(
            self.nodes[from].owns(),
            "a hand-over of no slots was asked for: the replica does not stand for it"
        );
        let is_listed = self.nodes[from].lists(self.nodes[to].id, primary);
        assert!(
            is_listed && self.wins_election(to, primary),
            "a hand-over was asked for that the voters refuse: clients wait for seconds"
        );
        self.nodes[to].content = self.nodes[from].content.clone();
        self.be_elected(to, primary);
    }

    fn replicate(&mut self, index: usize, primary: NodeId) {
        let node = &mut self.nodes[index];
        node.feeds = true;
        if !node.table.contains_key(&primary) {
            return self.refuse("REPLICATE: unknown node");
        }
        if node.own.primary.is_none() && (!node.content.is_empty() || !node.own.slots.is_empty()) {
            return self.refuse("REPLICATE: not empty");
        }
        if node.own.primary == Some(primary) {
            return;
        }
        // Its copy goes; there has to be another.
        assert!(self.unique(index).is_empty(), "the last copy was replaced");
        let node = &mut self.nodes[index];
        node.content = Content::default();
        node.own.primary = Some(primary);
        self.close_all(index);
        self.nodes[index].linked = false;
        self.nodes[index].in_step = false;
    }

    pub(super) fn refuse(&mut self, why: &str) {
        self.refused.push(why.to_owned());
    }
}

//! Decides what to do: a pure function of what is wanted, what every node says, and the time.
//!
//! The plan is recomputed from every observation and nothing of it is stored, so it does not matter where an earlier one was
//! interrupted. It never resets a node, never flushes one, and gives slots or another primary only to nodes without keys of
//! their own. At the goal it is empty.

pub mod age;
mod begin;
mod blocker;
mod fence;
mod first_primaries;
mod foreign;
mod forget;
mod leave;
mod meet;
mod node_timeout;
pub mod placement;
mod promote;
mod replicate;
mod restore;
mod slots;
mod spread;
mod tell;

#[cfg(test)]
mod age_tests;
#[cfg(test)]
mod foreign_tests;
#[cfg(test)]
mod loss_tests;
#[cfg(test)]
mod placement_tests;
#[cfg(test)]
mod restore_tests;
#[cfg(test)]
pub(crate) mod simulation;
#[cfg(test)]
pub(crate) mod tests;

pub use blocker::Blocker;
pub use fence::Doubt;

use super::{
    member::ClientSetting,
    survey::{Index, Survey},
};
use common::cluster::{
    node::FailoverMode,
    slots::{SlotRange, SlotSet},
    topology::{NodeAddress, NodeId},
};
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

/// What is to be done with a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Gives slots to a node.
    AssignSlots {
        /// The member that becomes the primary of these slots.
        member: Index,
        /// Slots that no living node claims.
        ranges: Vec<SlotRange>,
        /// What has to be done with it besides.
        how: Assignment,
    },
    /// Introduces nodes to each other by their live addresses.
    Meet {
        /// The node that sends.
        member: Index,
        /// The nodes that it is to know.
        others: Vec<Peer>,
        /// Whether one of them is new to a cluster that has served before.
        first_contact: bool,
    },
    /// Lets a replica take over from a primary that is gone.
    Promote {
        /// The replica that takes over.
        member: Index,
        /// The primary that is gone.
        primary: NodeId,
        /// With or without an election.
        mode: FailoverMode,
        /// Slots of the primary that the replica has not heard of: it takes over only what it knows, and claims these afterwards.
        unheard: Vec<SlotRange>,
        /// What it has of what the primary had.
        copy: PromotedCopy,
    },
    /// Lets a linked replica take over from its living primary, without the loss of a write. At most one in a plan, and no other step.
    HandOver {
        /// The replica that takes over.
        to: Index,
        /// The primary that becomes its replica.
        from: Index,
        /// What it is good for.
        reason: HandOverReason,
    },
    /// Lets a primary feed replicas: a server that was started without a role refuses it.
    Admit {
        /// The member that serves, or is to serve, the shard's slots.
        member: Index,
    },
    /// Makes a node the replica of another.
    Replicate {
        /// The member that becomes a replica.
        member: Index,
        /// Node id of the primary that it copies.
        primary: NodeId,
        /// Node timeout of a new node until it serves.
        formation_node_timeout: Option<Duration>,
    },
    /// Gives a node the node timeout of its spec.
    RestoreNodeTimeout {
        /// A node that has another one.
        member: Index,
        /// What its spec asks for.
        node_timeout: Duration,
    },
    /// Changes what a node tells clients.
    TellClients {
        /// A node that tells them something else.
        member: Index,
        /// Of what.
        setting: ClientSetting,
        /// What it is to tell.
        value: String,
    },
    /// Removes a node that is gone from the tables of the others.
    Forget {
        /// The node that is gone.
        id: NodeId,
        /// Members that list it.
        on: Vec<Index>,
    },
}

/// What a replica that takes over has of what its primary had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromotedCopy {
    /// A copy.
    Held,
    /// Nothing, and the primary had nothing either.
    NotNeeded,
    /// Nothing: the keys of the shard are lost.
    Lost,
}

impl Action {
    /// Whether slots are served without the keys that they had. `formed`: the cluster has served before.
    pub fn gives_keys_up(&self, formed: bool) -> bool {
        match self {
            Self::AssignSlots { how, .. } => match how {
                Assignment::Recreated { .. } => true,
                Assignment::Restored { .. } => false,
                Assignment::Alone { .. } | Assignment::Joined => formed,
            },
            Self::Promote { copy, .. } => *copy == PromotedCopy::Lost,
            Self::Meet { .. }
            | Self::HandOver { .. }
            | Self::Admit { .. }
            | Self::Replicate { .. }
            | Self::Forget { .. }
            | Self::RestoreNodeTimeout { .. }
            | Self::TellClients { .. } => false,
        }
    }
}

/// What a hand-over is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandOverReason {
    /// Primaries are spread over the Kubernetes nodes.
    Spread,
    /// The pod of the primary is to be replaced.
    Replace,
    /// The pod of the primary leaves the cluster.
    Leave,
}

/// A node to be introduced. Its server proves its id before its address is given to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The node id, which a connection has to prove.
    pub id: NodeId,
    /// Its live address.
    pub address: NodeAddress,
}

/// How a node comes to its slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// It knows no other node yet, so that it can be given its epoch as well.
    Alone {
        /// The epoch, different for each shard.
        epoch: u64,
        /// Node timeout to run with until it serves.
        formation_node_timeout: Option<Duration>,
    },
    /// It knows others.
    Joined,
    /// It has their keys, or no node has any: it serves them again, whatever others list.
    Restored {
        /// What it has to strike out of its own table first.
        listed: Vec<SlotRange>,
    },
    /// The slots are listed with nodes that are gone together with their data: it takes them over, empty.
    Recreated {
        /// What it has to strike out of its own table first.
        listed: Vec<SlotRange>,
    },
}

/// One step, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The change, to one node or between two.
    pub action: Action,
    /// Why, in words.
    pub reason: String,
}

impl Step {
    /// Whether something could be lost if the observation were wrong: look again, live, before it is done.
    pub fn is_risky(&self) -> bool {
        match &self.action {
            Action::Promote { .. } | Action::Forget { .. } => true,
            Action::AssignSlots { how, .. } => matches!(
                how,
                Assignment::Recreated { .. } | Assignment::Restored { .. }
            ),
            // The address may by now be that of a pod of another cluster, and two clusters that have met are hard to part.
            Action::Meet { first_contact, .. } => *first_contact,
            // The servers refuse it unless the replica is linked, and lose nothing by it.
            Action::HandOver { .. }
            | Action::Admit { .. }
            | Action::Replicate { .. }
            | Action::RestoreNodeTimeout { .. }
            | Action::TellClients { .. } => false,
        }
    }
}

/// What to do, in order, and what is waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Steps. Neighbours of the same kind may be done at the same time.
    pub steps: Vec<Step>,
    /// Why nothing is done about the rest.
    pub blockers: Vec<Blocker>,
}

impl Plan {
    /// Whether a step has to be confirmed by another, live look.
    pub fn is_risky(&self) -> bool {
        self.steps.iter().any(Step::is_risky)
    }

    /// Whether nothing goes on before a person has done something.
    pub fn is_stuck(&self) -> bool {
        self.steps.is_empty()
            && !self.blockers.is_empty()
            && self.blockers.iter().all(|blocker| !blocker.clears_itself())
    }

    /// Whether the cluster is as it should be but for the places of its primaries and the names of its nodes: those steps repair nothing.
    pub fn repairs_nothing(&self) -> bool {
        let mut steps = self.steps.iter();
        steps.all(|step| {
            matches!(
                step.action,
                Action::HandOver { .. } | Action::TellClients { .. }
            )
        })
    }

    /// Whether slots may move: nothing is to be repaired or waited for but keys, which move back to the primaries of their slots.
    pub fn lets_slots_move(&self) -> bool {
        let mut blockers = self.blockers.iter();
        self.repairs_nothing()
            && blockers.all(|blocker| {
                matches!(
                    blocker,
                    Blocker::KeysWithoutSlots {
                        returning: true,
                        ..
                    }
                )
            })
    }

    /// Whether a primary is to hand its slots over.
    pub fn hands_over(&self) -> bool {
        let mut steps = self.steps.iter();
        steps.any(|step| matches!(step.action, Action::HandOver { .. }))
    }

    /// Whether there are steps, and they only bring nodes together: each is the condition of the next one, and nothing is lost by any.
    pub fn only_joins(&self) -> bool {
        let joins = |step: &Step| {
            matches!(
                step.action,
                Action::AssignSlots { .. }
                    | Action::Meet { .. }
                    | Action::Admit { .. }
                    | Action::Replicate { .. }
                    | Action::TellClients { .. }
            )
        };
        !self.steps.is_empty() && self.steps.iter().all(joins)
    }

    fn step(&mut self, action: Action, reason: impl Into<String>) {
        self.steps.push(Step {
            action,
            reason: reason.into(),
        });
    }
}

/// Decides what to do.
pub fn plan(survey: &Survey<'_>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    foreign::report(survey, &mut plan);
    let assigned = slots::assign(survey, now, &mut plan);
    if survey.is_fresh() && !assigned {
        return plan;
    }
    meet::introduce(survey, now, &mut plan);
    // An election needs voters that reach each other.
    if plan.steps.is_empty() {
        promote::promote(survey, now, &mut plan);
    }
    replicate::attach(survey, &mut plan);
    forget::forget(survey, &mut plan);
    node_timeout::restore(survey, &mut plan);
    tell::tell(survey, &mut plan);
    leave::hand_over(survey, &mut plan);
    spread::spread(survey, &mut plan);
    plan
}

/// The slots as short text.
fn text(slots: &SlotSet) -> String {
    let ranges = slots.ranges();
    let mut words: Vec<String> = ranges.iter().take(5).map(ToString::to_string).collect();
    if ranges.len() > 5 {
        words.push("…".to_owned());
    }
    words.join(",")
}

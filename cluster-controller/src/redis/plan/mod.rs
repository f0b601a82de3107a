//! Decides what to do: a pure function of what is wanted, what every node says, and the time.
//!
//! The plan is made anew from every observation and nothing of it is stored, so it does not matter where an earlier one was
//! interrupted. It never resets a node, never flushes one, and gives slots or another primary only to nodes without keys of
//! their own. At the goal it is empty.

mod forget;
mod meet;
mod promote;
mod replicate;
mod slots;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use super::{
    member::{Member, Wanted},
    survey::{Index, Survey},
};
use common::cluster::{
    node::FailoverMode,
    slots::{SlotRange, SlotSet},
    topology::{NodeAddress, NodeId},
};
use k8s_openapi::jiff::Timestamp;
use std::{fmt, time::Duration};

/// What is to be done with a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Gives slots to a node.
    AssignSlots {
        /// The node.
        member: Index,
        /// The slots.
        ranges: Vec<SlotRange>,
        /// What has to be done with it besides.
        how: Assignment,
    },
    /// Introduces nodes to each other by their live addresses.
    Meet {
        /// The node that sends.
        member: Index,
        /// The nodes that it is to know.
        others: Vec<NodeAddress>,
    },
    /// Lets a replica take over from a primary that is gone.
    Promote {
        /// The replica.
        member: Index,
        /// The primary that is gone.
        primary: NodeId,
        /// With or without an election.
        mode: FailoverMode,
    },
    /// Makes a node the replica of another.
    Replicate {
        /// The node.
        member: Index,
        /// Its primary.
        primary: NodeId,
    },
    /// Gives a node its node timeout back.
    Calm {
        /// The node.
        member: Index,
        /// The timeout.
        node_timeout: Duration,
    },
    /// Removes a node that is gone from the tables of the others.
    Forget {
        /// The node that is gone.
        id: NodeId,
        /// The others.
        on: Vec<Index>,
    },
}

/// How a node comes to its slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// It knows no other node yet, so that it can be given its epoch as well.
    Alone {
        /// The epoch, different for each shard.
        epoch: u64,
        /// Node timeout to run with until it serves. A primary that has seen no majority (and without slots there is none) waits
        /// for as long as the node timeout, at most 5 s, before it serves.
        hurry: Option<Duration>,
    },
    /// It knows others.
    Joined,
    /// The slots are listed with nodes that are gone together with their data: it takes them over, empty.
    Recreated {
        /// What it has to strike out of its own table first.
        listed: Vec<SlotRange>,
    },
}

/// One step, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What.
    pub action: Action,
    /// Why, in words.
    pub reason: String,
}

impl Step {
    /// Whether something could be lost if the observation were wrong: look again, live, before it is done.
    pub fn is_risky(&self) -> bool {
        match &self.action {
            Action::Promote { .. } | Action::Forget { .. } => true,
            Action::AssignSlots { how, .. } => matches!(how, Assignment::Recreated { .. }),
            Action::Meet { .. } | Action::Replicate { .. } | Action::Calm { .. } => false,
        }
    }
}

/// Why nothing is done although something is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hold {
    /// The cluster is not formed before its nodes are there.
    WaitingForNodes {
        /// Pods that have not answered.
        pods: Vec<String>,
    },
    /// No node that is left has the data of these slots, and they are not created empty behind the user's back.
    SlotsLost {
        /// The slots.
        slots: String,
        /// How many.
        count: usize,
    },
    /// A primary has keys but no slots: it is left alone.
    KeysWithoutSlots {
        /// Its pod.
        pod: String,
        /// Its keys.
        keys: u64,
    },
    /// A node is linked to nodes that are none of the cluster's: introducing it would merge two clusters.
    Foreign {
        /// Its pod.
        pod: String,
        /// Where the other one is.
        address: NodeAddress,
    },
    /// An owner is down; its replicas take over by themselves, or it returns.
    OwnerDown {
        /// Its shard.
        shard: usize,
        /// The owner.
        id: NodeId,
    },
}

impl fmt::Display for Hold {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WaitingForNodes { pods } => {
                write!(out, "waiting for {} to answer", list(pods))
            }
            Self::SlotsLost { slots, count } => write!(
                out,
                "{count} slots ({slots}) are lost: every node that had their keys is gone together with its volume; \
                 restore a backup into a new cluster"
            ),
            Self::KeysWithoutSlots { pod, keys } => write!(
                out,
                "{pod} is a primary with {keys} keys but without slots: it is left alone; if the keys are of no use, \
                 delete its volume and its pod"
            ),
            Self::Foreign { pod, address } => write!(
                out,
                "{pod} is linked to a node at {address} that is none of this cluster's: it is not introduced to the \
                 others; remove the foreign node with CLUSTER FORGET"
            ),
            Self::OwnerDown { shard, id } => write!(
                out,
                "the primary of shard {shard} ({}) is down; waiting for the election of a replica or for its return",
                id.short()
            ),
        }
    }
}

/// Names, at most five of them.
fn list(names: &[String]) -> String {
    let mut text: Vec<&str> = names.iter().take(5).map(String::as_str).collect();
    let more = format!("{} more", names.len().saturating_sub(5));
    if names.len() > 5 {
        text.push(&more);
    }
    text.join(", ")
}

/// What to do, in order, and what is waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Steps. Neighbours of the same kind may be done at the same time.
    pub steps: Vec<Step>,
    /// Why nothing is done about the rest.
    pub holds: Vec<Hold>,
}

impl Plan {
    /// Whether a step has to be confirmed by another, live look.
    pub fn is_risky(&self) -> bool {
        self.steps.iter().any(Step::is_risky)
    }

    fn step(&mut self, action: Action, reason: impl Into<String>) {
        self.steps.push(Step {
            action,
            reason: reason.into(),
        });
    }
}

/// Decides what to do.
pub fn plan(wanted: &Wanted, members: &[Member], now: Timestamp) -> Plan {
    let survey = Survey::of(wanted, members);
    let mut plan = Plan::default();
    let assigned = slots::assign(&survey, now, &mut plan);
    if survey.is_fresh() && !assigned {
        return plan;
    }
    meet::introduce(&survey, now, &mut plan);
    // An election needs voters that reach each other.
    if plan.steps.is_empty() {
        promote::promote(&survey, now, &mut plan);
    }
    replicate::attach(&survey, &mut plan);
    forget::forget(&survey, &mut plan);
    slots::calm(&survey, &mut plan);
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

//! What is waited for, in words: what is the matter, why nothing is done about it, and what ends it.

use common::cluster::topology::{NodeAddress, NodeId};
use std::fmt;

/// Why nothing is done although something is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hold {
    /// The cluster is not formed before its nodes are there.
    WaitingForNodes {
        /// Pods that gave no report, each with the reason.
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
        /// A pod of the shard that is loading its data.
        loading: Option<String>,
    },
    /// An owner is down, and its replica may never have been a copy.
    EmptyCopy {
        /// Its shard.
        shard: usize,
        /// The owner.
        id: NodeId,
        /// The replica's pod.
        pod: String,
    },
}

impl Hold {
    /// Whether waiting alone may end it. The others end with something that a person does.
    pub fn is_patient(&self) -> bool {
        match self {
            Self::WaitingForNodes { .. } | Self::OwnerDown { .. } => true,
            Self::SlotsLost { .. }
            | Self::KeysWithoutSlots { .. }
            | Self::Foreign { .. }
            | Self::EmptyCopy { .. } => false,
        }
    }
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
                 restore a backup into a new cluster (and disable spec.podDisruptionBudget if machines have to be drained before)"
            ),
            Self::KeysWithoutSlots { pod } => write!(
                out,
                "{pod} is a primary with keys but without slots: it is left alone; if the keys are of no use, \
                 delete its volume and its pod"
            ),
            Self::Foreign { pod, address } => write!(
                out,
                "{pod} is linked to a node at {address} that is none of this cluster's: it is not introduced to the \
                 others; remove the foreign node with CLUSTER FORGET"
            ),
            Self::OwnerDown {
                shard,
                id,
                loading: Some(pod),
            } => write!(
                out,
                "the primary of shard {shard} ({}) does not answer; waiting for {pod}, which is loading its data",
                id.short()
            ),
            Self::OwnerDown {
                shard,
                id,
                loading: None,
            } => write!(
                out,
                "the primary of shard {shard} ({}) is down; waiting for the election of a replica or for its return",
                id.short()
            ),
            Self::EmptyCopy { shard, id, pod } => write!(
                out,
                "the primary of shard {shard} ({}) is down, and {pod} has nothing of it: either the shard was empty, or \
                 {pod} has never copied it. Bring the primary's pod back with its volume; if its data is not needed, run \
                 redis-cli cluster failover takeover in {pod}",
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

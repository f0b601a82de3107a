//! Why a reshard stopped. What was moved until then stays moved, and the next plan continues from there.

use common::{
    cluster::{node::NodeError, slots::Slot, topology::NodeId},
    errors::{Classified, ErrorClass},
};
use std::net::SocketAddr;

/// Why a reshard stopped.
#[derive(Debug, thiserror::Error)]
pub enum ReshardError {
    /// The plan names a node that the caller gave no endpoint for.
    #[error("node {} is part of the plan, but its address is not known: read the topology again", .0.short())]
    NoAddress(NodeId),
    /// A node does not answer.
    #[error("node {} was lost while slots were moved: {source}", node.short())]
    NodeLost {
        /// The node that was asked.
        node: NodeId,
        /// How the connection or the command failed.
        source: NodeError,
    },
    /// Another node serves the slot than planned.
    #[error(
        "slot {slot} is served by {}, not by node {} as planned: the slots are planned again",
        found.map_or_else(|| "another node".to_owned(), |id| format!("node {}", id.short())),
        planned.short()
    )]
    OwnerChanged {
        /// The first slot of which this was found.
        slot: Slot,
        /// The primary of the plan.
        planned: NodeId,
        /// The primary that was found, if it is known.
        found: Option<NodeId>,
    },
    /// A node of the plan is no primary.
    #[error("node {} is no primary any more: the slots are planned again", .0.short())]
    NotPrimary(NodeId),
    /// The target lacks memory. Nothing was moved if it was found beforehand.
    #[error(
        "node {}: {needed} more bytes do not fit into maxmemory {maxmemory}, of which {used} are used; raise maxmemory or the memory limit, or add shards",
        target.short()
    )]
    TargetFull {
        /// The node that was to receive the slots.
        target: NodeId,
        /// Bytes that the slots need.
        needed: u64,
        /// Bytes in use.
        used: u64,
        /// `maxmemory` of the target, in bytes.
        maxmemory: u64,
    },
    /// A node sees the cluster as down.
    #[error("slot {slot}: {message}; moving slots continues when the cluster serves again")]
    ClusterDown {
        /// The slot whose command was refused.
        slot: Slot,
        /// What the node said.
        message: String,
    },
    /// The source could not reach the target, again and again.
    #[error(
        "keys of slot {slot} do not get from node {} to node {}: {message}",
        source_node.short(), target.short()
    )]
    Unreachable {
        /// The slot that is open now.
        slot: Slot,
        /// The node that has the keys.
        source_node: NodeId,
        /// The node that receives them.
        target: NodeId,
        /// What the source said.
        message: String,
    },
    /// A node refused a command.
    #[error("node {} refused to move slot {slot}: {message}", node.short())]
    Refused {
        /// The node that was asked.
        node: NodeId,
        /// The first slot concerned.
        slot: Slot,
        /// What it said.
        message: String,
    },
    /// A node that is about to get its first slot does not take the functions that the others have.
    #[error(
        "node {} does not take the functions of node {} ({message}): make their versions and modules the same, or load the functions there with FUNCTION LOAD",
        node.short(), source_node.short()
    )]
    FunctionsRefused {
        /// The node without slots.
        node: NodeId,
        /// The node that has the functions.
        source_node: NodeId,
        /// What the former said.
        message: String,
    },
    /// A replica does not confirm what its primary did with the keys of open slots: the loss of the primary would cost these, or bring them
    /// back.
    #[error(
        "the replica at {replica} is more than 10 s behind its primary, node {}: slots are handed over once it has caught up",
        node.short()
    )]
    ReplicasBehind {
        /// The node that is copied.
        node: NodeId,
        /// The first of its replicas that is behind.
        replica: SocketAddr,
    },
    /// A replica of a node that gets slots does not copy it: the loss of the node would cost the keys that have moved there.
    #[error(
        "the replica at {replica} is not attached to its primary, node {}, which gets slots: see its log, or delete its pod",
        node.short()
    )]
    ReplicaNotAttached {
        /// The node that is copied.
        node: NodeId,
        /// The first of its replicas that is not attached.
        replica: SocketAddr,
    },
    /// Keys stay where they are, though the source reports that it moves them.
    #[error("keys of slot {slot} stay on node {} after several attempts", node.short())]
    KeysRemain {
        /// The slot that is open now.
        slot: Slot,
        /// The node that still has the keys.
        node: NodeId,
    },
    /// The server's own migration failed. It has taken everything back.
    #[error(
        "node {} did not move slots {slots} to node {}: {message}",
        source_node.short(), target.short()
    )]
    MigrationFailed {
        /// The node that has the slots.
        source_node: NodeId,
        /// The node that receives them.
        target: NodeId,
        /// As short text: the first ranges.
        slots: String,
        /// What the server said.
        message: String,
    },
    /// The server moves slots already, on behalf of an earlier controller or of a user.
    #[error("node {} already moves slots by itself: waiting until it has ended", .0.short())]
    OtherMigration(NodeId),
    /// The atomic engine was asked for, and a node does not have it.
    #[error("node {} does not know CLUSTER MIGRATESLOTS: choose the engine Auto or Legacy", .0.short())]
    NoAtomicEngine(NodeId),
    /// The slots were moved, but a node still has another table.
    #[error("node {} still has another table for slot {slot}: waiting until it agrees", node.short())]
    NotAgreed {
        /// The node whose table differs.
        node: NodeId,
        /// The first slot that differs.
        slot: Slot,
    },
}

impl ReshardError {
    /// The failure of a command about a slot.
    pub(super) fn of(node: NodeId, slot: Slot, error: NodeError) -> Self {
        let Some(text) = refusal(&error) else {
            return Self::NodeLost {
                node,
                source: error,
            };
        };
        Self::of_text(node, slot, text)
    }

    /// The refusal of a command about a slot. The texts are those of `CLUSTER SETSLOT` in the engine's `cluster.c`, and of `WAIT`.
    pub(super) fn of_text(node: NodeId, slot: Slot, text: String) -> Self {
        let by_replica = [
            "only with masters",
            "can't be set in a replica",
            "cannot be used with replica instances",
        ];
        if by_replica.iter().any(|part| text.contains(part)) {
            Self::NotPrimary(node)
        } else if text.contains("not the owner of hash slot") {
            Self::OwnerChanged {
                slot,
                planned: node,
                found: None,
            }
        } else if text.contains("still hold keys") {
            Self::KeysRemain { slot, node }
        } else {
            Self::Refused {
                node,
                slot,
                message: text,
            }
        }
    }
}

/// Code and text of what the server said when it refused; none if it said nothing.
pub(super) fn refusal(error: &NodeError) -> Option<String> {
    match error {
        NodeError::Refused { source, .. } => Some(text_of(source)),
        NodeError::Loading { .. } => Some("LOADING".to_owned()),
        NodeError::Busy { .. } => Some("BUSY".to_owned()),
        NodeError::Connect { .. }
        | NodeError::NotEncrypted { .. }
        | NodeError::ConnectTimeout { .. }
        | NodeError::Unauthenticated { .. }
        | NodeError::WrongNode { .. }
        | NodeError::NotRedis { .. }
        | NodeError::Lost { .. }
        | NodeError::Malformed { .. }
        | NodeError::NotHandedOver { .. }
        | NodeError::EpochNotNewer { .. }
        | NodeError::Topology { .. } => None,
    }
}

/// Code and text of a server's error.
pub(super) fn text_of(error: &redis::RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    }
}

impl Classified for ReshardError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::NodeLost { .. }
            | Self::ClusterDown { .. }
            | Self::Unreachable { .. }
            | Self::Refused { .. }
            | Self::FunctionsRefused { .. }
            | Self::ReplicasBehind { .. }
            | Self::ReplicaNotAttached { .. }
            | Self::KeysRemain { .. }
            | Self::MigrationFailed { .. }
            | Self::OtherMigration(_)
            | Self::NotAgreed { .. } => ErrorClass::Transient,
            Self::NoAddress(_) | Self::OwnerChanged { .. } | Self::NotPrimary(_) => {
                ErrorClass::Conflict
            }
            Self::TargetFull { .. } | Self::NoAtomicEngine(_) => ErrorClass::InvalidSpec,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NoAddress(_) => "NodeWithoutAddress",
            Self::NodeLost { .. } => "NodeLost",
            Self::OwnerChanged { .. } => "SlotOwnerChanged",
            Self::NotPrimary(_) => "NotPrimary",
            Self::TargetFull { .. } => "TargetFull",
            Self::ClusterDown { .. } => "ClusterDown",
            Self::Unreachable { .. } => "TargetUnreachable",
            Self::Refused { .. } => "SlotMoveRefused",
            Self::FunctionsRefused { .. } => "FunctionsRefused",
            Self::ReplicasBehind { .. } => "ReplicasBehind",
            Self::ReplicaNotAttached { .. } => "ReplicaNotAttached",
            Self::KeysRemain { .. } => "KeysRemain",
            Self::MigrationFailed { .. } => "MigrationFailed",
            Self::OtherMigration(_) => "OtherMigration",
            Self::NoAtomicEngine(_) => "NoAtomicEngine",
            Self::NotAgreed { .. } => "TablesDisagree",
        }
    }
}

//! Connections to the primaries, each proven by its id, and the commands about slots.

use super::error::{ReshardError, text_of};
use common::cluster::{
    endpoint::{Endpoint, NodeCredentials},
    node::{NodeClient, NodeError},
    slots::Slot,
    topology::{NodeId, NodesView},
};
use futures::{StreamExt, stream};
use redis::{Cmd, FromRedisValue, Pipeline, RedisError, Value, cmd, pipe};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Mutex;

/// How every primary of the cluster is reached.
pub type NodeEndpoints = BTreeMap<NodeId, Endpoint>;

/// What is known of the replicas of a node.
#[derive(Default)]
pub(super) struct ReplicaTable {
    /// The node's table, and when it was read: a server needs milliseconds to write one with thousands of slots in pieces.
    pub(super) table: Option<(Instant, NodesView)>,
    /// Replicas of a source that were waited for and did not come back.
    pub(super) absent: BTreeSet<SocketAddr>,
}

/// Nodes asked at the same time.
const CONCURRENCY: usize = 32;
/// Longest wait for any other answer, at least: from Valkey 8 on `SETSLOT` waits up to two seconds for the node's replicas
/// (`clusterCommandSetSlot` in the engine's `cluster_legacy.c`).
const LONGEST_ANSWER: Duration = Duration::from_secs(3);
/// Longest wait for any answer over the connection for keys: each call has a bound of its own.
const LONGEST_CALL: Duration = Duration::from_mins(10);

/// A primary.
#[derive(Clone)]
pub(super) struct NodeLink {
    pub(super) id: NodeId,
    /// Where the source of keys finds it.
    pub(super) address: SocketAddr,
    pub(super) credentials: Option<NodeCredentials>,
    /// For everything but keys.
    pub(super) control: NodeClient,
    /// For keys: a call takes as long as it takes, and what comes after it on the same connection waits.
    pub(super) data: NodeClient,
    /// Held by the worker that waits for its replicas: what one has waited for spares it the others.
    pub(super) replicas: Arc<Mutex<ReplicaTable>>,
    /// Held by the worker that removes strays from it.
    pub(super) strays: Arc<Mutex<()>>,
    endpoint: Endpoint,
}

/// All primaries that answer.
pub(super) struct NodeLinks(BTreeMap<NodeId, NodeLink>);

/// What `SETSLOT` is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotState {
    Importing(NodeId),
    Migrating(NodeId),
    Node(NodeId),
    Stable,
}

impl NodeLinks {
    /// Connects to all nodes. Those in `needed` have to answer; another one learns of moves by gossip.
    pub(super) async fn connect(
        nodes: &NodeEndpoints,
        needed: &BTreeSet<NodeId>,
    ) -> Result<Self, ReshardError> {
        if let Some(missing) = needed.iter().find(|id| !nodes.contains_key(id)) {
            return Err(ReshardError::NoAddress(*missing));
        }
        let endpoints: Vec<(NodeId, Endpoint)> =
            nodes.iter().map(|(id, one)| (*id, one.clone())).collect();
        let answers: Vec<(NodeId, Result<NodeLink, NodeError>)> = stream::iter(endpoints)
            .map(|(id, endpoint)| async move {
                let moves_keys = needed.contains(&id);
                (id, NodeLink::connect(id, &endpoint, moves_keys).await)
            })
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await;
        let mut links = BTreeMap::new();
        for (node, answer) in answers {
            match answer {
                Ok(link) => {
                    links.insert(node, link);
                }
                Err(source) if needed.contains(&node) => {
                    return Err(ReshardError::NodeLost { node, source });
                }
                Err(error) => {
                    tracing::info!(%node, %error, "a primary does not answer: it learns of moved slots from the others");
                }
            }
        }
        Ok(Self(links))
    }

    pub(super) fn get(&self, id: NodeId) -> Result<&NodeLink, ReshardError> {
        self.0.get(&id).ok_or(ReshardError::NoAddress(id))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &NodeLink> {
        self.0.values()
    }
}

impl NodeLink {
    /// A node that is only informed needs no connection for keys of its own.
    async fn connect(id: NodeId, endpoint: &Endpoint, moves_keys: bool) -> Result<Self, NodeError> {
        let endpoint = endpoint.clone().expecting(id);
        let answer = endpoint.answer_timeout().max(LONGEST_ANSWER);
        let endpoint = endpoint.with_answer_timeout(answer);
        let control = NodeClient::connect(&endpoint).await?;
        let data = if moves_keys {
            let patient = endpoint.clone().with_answer_timeout(LONGEST_CALL);
            NodeClient::connect(&patient).await?
        } else {
            control.clone()
        };
        Ok(Self {
            id,
            address: endpoint.address(),
            credentials: endpoint.credentials().cloned(),
            control,
            data,
            replicas: Arc::default(),
            strays: Arc::default(),
            endpoint,
        })
    }

    /// The same node over a connection that no one else uses.
    pub(super) async fn reconnected(&self) -> Result<Self, ReshardError> {
        let control = NodeClient::connect(&self.endpoint).await;
        Ok(Self {
            control: control.map_err(|error| self.lost(error))?,
            ..self.clone()
        })
    }

    /// Fails unless the node that was connected to still answers at its address, with the same id.
    pub(super) async fn is_itself(&self) -> Result<(), ReshardError> {
        let id = self.control.id().await.map_err(|error| self.lost(error))?;
        if id == self.id {
            Ok(())
        } else {
            Err(ReshardError::NoAddress(self.id))
        }
    }

    /// The node's own view.
    pub(super) async fn view(&self) -> Result<NodesView, NodeError> {
        let text: String = self
            .control
            .ask("CLUSTER NODES", cmd("CLUSTER").arg("NODES"))
            .await?;
        NodesView::parse(&text).map_err(|source| NodeError::Topology {
            address: self.control.address(),
            source,
        })
    }

    /// `CLUSTER SETSLOT` for many slots in one round trip: the node writes its table to disk once. The first refusal ends it.
    pub(super) async fn set_slots(
        &self,
        slots: &[Slot],
        state: SlotState,
    ) -> Result<(), ReshardError> {
        let mut commands = pipe();
        for slot in slots {
            let command = commands.cmd("CLUSTER").arg("SETSLOT").arg(slot.get());
            match state {
                SlotState::Importing(from) => command.arg("IMPORTING").arg(from.to_string()),
                SlotState::Migrating(to) => command.arg("MIGRATING").arg(to.to_string()),
                SlotState::Node(id) => command.arg("NODE").arg(id.to_string()),
                SlotState::Stable => command.arg("STABLE"),
            };
        }
        let replies: Vec<Result<Value, RedisError>> =
            self.each(slots, "CLUSTER SETSLOT", commands).await?;
        for (slot, reply) in slots.iter().zip(replies) {
            reply.map_err(|error| ReshardError::of_text(self.id, *slot, text_of(&error)))?;
        }
        Ok(())
    }

    /// Sends a pipeline about these slots; each answer may be a refusal.
    pub(super) async fn each<T: FromRedisValue>(
        &self,
        slots: &[Slot],
        name: &'static str,
        mut commands: Pipeline,
    ) -> Result<Vec<Result<T, RedisError>>, ReshardError> {
        let Some(first) = slots.first().copied().filter(|_| !commands.is_empty()) else {
            return Ok(Vec::new());
        };
        commands.ignore_errors();
        self.control
            .ask_all(name, &commands)
            .await
            .map_err(|error| ReshardError::of(self.id, first, error))
    }

    /// A command whose failure concerns no slot in particular.
    pub(super) async fn ask<T: FromRedisValue>(
        &self,
        name: &'static str,
        command: &Cmd,
    ) -> Result<T, ReshardError> {
        let answer = self.control.ask(name, command).await;
        answer.map_err(|error| ReshardError::of(self.id, Slot::MIN, error))
    }

    /// The failure to get an answer.
    pub(super) fn lost(&self, source: NodeError) -> ReshardError {
        ReshardError::NodeLost {
            node: self.id,
            source,
        }
    }
}

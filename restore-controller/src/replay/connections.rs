//! The connections to the primaries of the target: which slot goes where, how much is in flight, what comes back.

use super::{
    batch::{CommandBatch, Requeued},
    connection::{self, ConnectionEvent},
    reply_action::{ReplyAction, RetryReason},
    routes::Routes,
};
use common::cluster::{
    endpoint::NodeAccess,
    slots::{SLOT_COUNT, Slot},
};
use std::{collections::VecDeque, net::SocketAddr};
use tokio::{sync::mpsc, task::JoinSet};

/// Bytes of commands that make a batch worth sending.
pub const BATCH_BYTES: usize = 32 * 1024;
/// A batch that has grown far beyond the usual size is freed instead of recycled.
const KEPT_BYTES: usize = 4 * BATCH_BYTES;
/// Batches that a connection's queue holds. A full queue returns the batch to its sender.
const QUEUE: usize = 1024;
/// Events in flight from all connections together.
const EVENTS: usize = 1024;

/// How much may be in flight to one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Commands without an answer.
    pub commands: usize,
    /// Bytes of those commands.
    pub bytes: usize,
}

impl Default for Window {
    /// Deep enough that the node always has the next command in its socket, and no more than 4 MiB.
    fn default() -> Self {
        Self {
            commands: 4096,
            bytes: 4 * 1024 * 1024,
        }
    }
}

/// All connections of one replay.
pub struct NodeConnections {
    nodes: Vec<NodeConnection>,
    /// Index of the connection of each slot.
    slots: Vec<usize>,
    /// Every node of the target.
    members: NodeAccess,
    window: Window,
    spare: Vec<CommandBatch>,
    /// Batches that did not reach their connection.
    returned: VecDeque<ConnectionEvent>,
    tasks: JoinSet<()>,
    sender: mpsc::Sender<ConnectionEvent>,
    events: mpsc::Receiver<ConnectionEvent>,
}

struct NodeConnection {
    address: SocketAddr,
    /// `None` while there is no connection; the next batch opens one.
    queue: Option<mpsc::Sender<CommandBatch>>,
    filling: CommandBatch,
    commands: usize,
    bytes: usize,
}

impl NodeConnections {
    /// Connects to a primary when there is something for it.
    pub fn new(routes: &Routes, window: Window) -> Self {
        let (sender, events) = mpsc::channel(EVENTS);
        let mut connections = Self {
            nodes: Vec::new(),
            // A slot without a known primary is sent to the first node, which redirects it or says why not.
            slots: vec![0; usize::from(SLOT_COUNT)],
            members: routes.members.clone(),
            window,
            spare: Vec::new(),
            returned: VecDeque::new(),
            tasks: JoinSet::new(),
            sender,
            events,
        };
        connections.set_routes(routes);
        connections
    }

    /// Takes new routes. Slots without a primary stay where they were.
    pub fn set_routes(&mut self, routes: &Routes) {
        self.members = routes.members.clone();
        for route in &routes.primaries {
            for range in route.slots.ranges() {
                for slot in range.slots() {
                    self.set_primary(slot, route.address);
                }
            }
        }
    }

    /// Every node of the target.
    pub fn members(&self) -> &NodeAccess {
        &self.members
    }

    /// One slot has a new primary.
    pub fn set_primary(&mut self, slot: Slot, address: SocketAddr) {
        let connection = self.connection_to(address);
        if let Some(entry) = self.slots.get_mut(slot.index()) {
            *entry = connection;
        }
    }

    fn connection_to(&mut self, address: SocketAddr) -> usize {
        let known = self
            .nodes
            .iter()
            .position(|connection| connection.address == address);
        known.unwrap_or_else(|| {
            self.nodes.push(NodeConnection {
                address,
                queue: None,
                filling: CommandBatch::default(),
                commands: 0,
                bytes: 0,
            });
            self.nodes.len() - 1
        })
    }

    /// Where the connection leads.
    pub fn address(&self, connection: usize) -> Option<SocketAddr> {
        self.nodes
            .get(connection)
            .map(|connection| connection.address)
    }

    /// Every node seen so far.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes
            .iter()
            .map(|connection| connection.address)
            .collect()
    }

    /// The batch that is being filled for the primary of `slot`. A batch holds commands of one block only.
    pub fn filling(&mut self, slot: Slot, block: u64) -> Option<&mut CommandBatch> {
        let index = *self.slots.get(slot.index())?;
        let filling = &self.nodes.get(index)?.filling;
        if filling.block != block && filling.commands() > 0 {
            self.send(index);
        }
        let filling = &mut self.nodes.get_mut(index)?.filling;
        filling.block = block;
        Some(filling)
    }

    /// Sends every batch that holds at least `minimum` bytes.
    pub fn flush(&mut self, minimum: usize) {
        for index in 0..self.nodes.len() {
            let filling = self.nodes.get(index).map(|connection| &connection.filling);
            if filling.is_some_and(|batch| batch.commands() > 0 && batch.bytes.len() >= minimum) {
                self.send(index);
            }
        }
    }

    /// Sends one command to a node that is importing its slot.
    pub fn ask(&mut self, address: SocketAddr, command: &Requeued) {
        let index = self.connection_to(address);
        self.dispatch(index, CommandBatch::of_requeued(command, true));
    }

    fn send(&mut self, index: usize) {
        let mut next = self.spare.pop().unwrap_or_default();
        next.reset(0);
        if let Some(connection) = self.nodes.get_mut(index) {
            let batch = std::mem::replace(&mut connection.filling, next);
            self.dispatch(index, batch);
        }
    }

    fn dispatch(&mut self, index: usize, batch: CommandBatch) {
        let Some(connection) = self.nodes.get_mut(index) else {
            return;
        };
        connection.commands += batch.commands();
        connection.bytes += batch.bytes.len();
        let queue = connection.queue.get_or_insert_with(|| {
            let (queue, receiver) = mpsc::channel(QUEUE);
            let members = self.members.clone();
            let task = connection::run(
                index,
                connection.address,
                members,
                receiver,
                self.sender.clone(),
            );
            self.tasks.spawn(task);
            queue
        });
        if let Err(refused) = queue.try_send(batch) {
            let mut batch = refused.into_inner();
            batch.requeue_rest(&ReplyAction::Wait(RetryReason::Disconnected));
            self.returned.push_back(ConnectionEvent::Answered {
                connection: index,
                batch,
            });
        }
    }

    /// Whether the window of some node is full. Then nothing more is decoded.
    pub fn is_full(&self) -> bool {
        let full = |connection: &NodeConnection| {
            connection.commands >= self.window.commands || connection.bytes >= self.window.bytes
        };
        self.nodes.iter().any(full)
    }

    /// The next event of any connection. Only to be awaited while something is in flight.
    pub async fn event(&mut self) -> Option<ConnectionEvent> {
        if let Some(event) = self.returned.pop_front() {
            return Some(event);
        }
        self.events.recv().await
    }

    /// An event that has arrived already.
    pub fn try_event(&mut self) -> Option<ConnectionEvent> {
        let returned = self.returned.pop_front();
        returned.or_else(|| self.events.try_recv().ok())
    }

    /// Subtracts what an event answers from what is in flight.
    pub fn settle(&mut self, event: &ConnectionEvent) {
        match event {
            ConnectionEvent::Answered { connection, batch } => {
                if let Some(connection) = self.nodes.get_mut(*connection) {
                    connection.commands = connection.commands.saturating_sub(batch.commands());
                    connection.bytes = connection.bytes.saturating_sub(batch.bytes.len());
                }
            }
            ConnectionEvent::Closed { connection, .. } => {
                if let Some(connection) = self.nodes.get_mut(*connection) {
                    connection.queue = None;
                }
            }
        }
    }

    /// Takes a batch back for another use.
    pub fn recycle(&mut self, batch: CommandBatch) {
        if batch.bytes.capacity() <= KEPT_BYTES {
            self.spare.push(batch);
        }
    }
}

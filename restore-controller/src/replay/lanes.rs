//! The connections to the owners of the slots: which slot goes where, how much is under way, what comes back.

use super::{
    chunk::{Bounced, Chunk},
    lane::{self, Report},
    owners::SlotMap,
    verdict::{Pause, Verdict},
};
use common::cluster::{
    slots::{SLOT_COUNT, Slot},
    topology::NodeId,
};
use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
};
use tokio::{sync::mpsc, task::JoinSet};

/// Bytes of commands that make a chunk worth sending.
pub const CHUNK_BYTES: usize = 32 * 1024;
/// A chunk that has grown far beyond the usual size gives its memory back instead of going round again.
const KEPT_BYTES: usize = 4 * CHUNK_BYTES;
/// Chunks a connection's queue holds. A full queue sends the chunk back to its sender.
const QUEUE: usize = 1024;
/// Reports under way from all connections together.
const REPORTS: usize = 1024;

/// How much may be under way to one node.
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
pub struct Lanes {
    nodes: Vec<Lane>,
    /// Lane of each slot.
    slots: Vec<usize>,
    /// Every node of the target.
    members: Arc<BTreeSet<NodeId>>,
    window: Window,
    spare: Vec<Chunk>,
    /// Chunks that did not even reach their connection.
    returned: VecDeque<Report>,
    tasks: JoinSet<()>,
    sender: mpsc::Sender<Report>,
    reports: mpsc::Receiver<Report>,
}

struct Lane {
    address: SocketAddr,
    /// `None` while there is no connection; the next chunk opens one.
    queue: Option<mpsc::Sender<Chunk>>,
    filling: Chunk,
    commands: usize,
    bytes: usize,
}

impl Lanes {
    /// Knows the owners; connects to one when it has something for it.
    pub fn new(map: &SlotMap, window: Window) -> Self {
        let (sender, reports) = mpsc::channel(REPORTS);
        let mut lanes = Self {
            nodes: Vec::new(),
            // A slot without a known owner is sent to the first node, which knows better or says why not.
            slots: vec![0; usize::from(SLOT_COUNT)],
            members: Arc::clone(&map.members),
            window,
            spare: Vec::new(),
            returned: VecDeque::new(),
            tasks: JoinSet::new(),
            sender,
            reports,
        };
        lanes.set_map(map);
        lanes
    }

    /// Takes a new slot map. Slots that nobody owns stay where they were.
    pub fn set_map(&mut self, map: &SlotMap) {
        self.members = Arc::clone(&map.members);
        for owner in &map.owners {
            for range in owner.slots.ranges() {
                for slot in range.slots() {
                    self.set_owner(slot, owner.address);
                }
            }
        }
    }

    /// Every node of the target.
    pub fn members(&self) -> &Arc<BTreeSet<NodeId>> {
        &self.members
    }

    /// One slot has a new owner.
    pub fn set_owner(&mut self, slot: Slot, address: SocketAddr) {
        let lane = self.lane_to(address);
        if let Some(entry) = self.slots.get_mut(slot.index()) {
            *entry = lane;
        }
    }

    fn lane_to(&mut self, address: SocketAddr) -> usize {
        let known = self.nodes.iter().position(|lane| lane.address == address);
        known.unwrap_or_else(|| {
            self.nodes.push(Lane {
                address,
                queue: None,
                filling: Chunk::default(),
                commands: 0,
                bytes: 0,
            });
            self.nodes.len() - 1
        })
    }

    /// Where the connection leads.
    pub fn address(&self, lane: usize) -> Option<SocketAddr> {
        self.nodes.get(lane).map(|lane| lane.address)
    }

    /// Every node seen so far.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|lane| lane.address).collect()
    }

    /// The chunk that is being filled for the owner of `slot`. A chunk holds commands of one block only.
    pub fn filling(&mut self, slot: Slot, block: u64) -> Option<&mut Chunk> {
        let index = *self.slots.get(slot.index())?;
        let filling = &self.nodes.get(index)?.filling;
        if filling.block != block && filling.commands() > 0 {
            self.send(index);
        }
        let filling = &mut self.nodes.get_mut(index)?.filling;
        filling.block = block;
        Some(filling)
    }

    /// Sends every chunk that holds at least `minimum` bytes.
    pub fn flush(&mut self, minimum: usize) {
        for index in 0..self.nodes.len() {
            let filling = self.nodes.get(index).map(|lane| &lane.filling);
            if filling.is_some_and(|chunk| chunk.commands() > 0 && chunk.bytes.len() >= minimum) {
                self.send(index);
            }
        }
    }

    /// Sends one command to a node that does not own its slot yet.
    pub fn ask(&mut self, address: SocketAddr, command: &Bounced) {
        let index = self.lane_to(address);
        self.dispatch(index, Chunk::of_bounced(command, true));
    }

    fn send(&mut self, index: usize) {
        let mut next = self.spare.pop().unwrap_or_default();
        next.reset(0);
        if let Some(lane) = self.nodes.get_mut(index) {
            let chunk = std::mem::replace(&mut lane.filling, next);
            self.dispatch(index, chunk);
        }
    }

    fn dispatch(&mut self, index: usize, chunk: Chunk) {
        let Some(lane) = self.nodes.get_mut(index) else {
            return;
        };
        lane.commands += chunk.commands();
        lane.bytes += chunk.bytes.len();
        let queue = lane.queue.get_or_insert_with(|| {
            let (queue, receiver) = mpsc::channel(QUEUE);
            let members = Arc::clone(&self.members);
            let task = lane::run(index, lane.address, members, receiver, self.sender.clone());
            self.tasks.spawn(task);
            queue
        });
        if let Err(refused) = queue.try_send(chunk) {
            let mut chunk = refused.into_inner();
            chunk.bounce_rest(&Verdict::Wait(Pause::Disconnected));
            self.returned
                .push_back(Report::Answered { lane: index, chunk });
        }
    }

    /// Whether some node has as much under way as it may. Then nothing more is decoded.
    pub fn is_full(&self) -> bool {
        let full =
            |lane: &Lane| lane.commands >= self.window.commands || lane.bytes >= self.window.bytes;
        self.nodes.iter().any(full)
    }

    /// The next report of any connection. Only to be awaited while something is under way.
    pub async fn report(&mut self) -> Option<Report> {
        if let Some(report) = self.returned.pop_front() {
            return Some(report);
        }
        self.reports.recv().await
    }

    /// A report that is there already.
    pub fn try_report(&mut self) -> Option<Report> {
        let returned = self.returned.pop_front();
        returned.or_else(|| self.reports.try_recv().ok())
    }

    /// Keeps the books of a report.
    pub fn settle(&mut self, report: &Report) {
        match report {
            Report::Answered { lane, chunk } => {
                if let Some(lane) = self.nodes.get_mut(*lane) {
                    lane.commands = lane.commands.saturating_sub(chunk.commands());
                    lane.bytes = lane.bytes.saturating_sub(chunk.bytes.len());
                }
            }
            Report::Closed { lane, .. } => {
                if let Some(lane) = self.nodes.get_mut(*lane) {
                    lane.queue = None;
                }
            }
        }
    }

    /// Takes a chunk back for another use.
    pub fn recycle(&mut self, chunk: Chunk) {
        if chunk.bytes.capacity() <= KEPT_BYTES {
            self.spare.push(chunk);
        }
    }
}

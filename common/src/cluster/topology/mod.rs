//! What the nodes say about the cluster: `CLUSTER NODES` and `CLUSTER INFO` as values.
//!
//! Wire formats: the command reference of `CLUSTER NODES`, and `clusterGenNodeDescription` in the engine's `cluster.c`
//! (`cluster_legacy.c` from 7.4). Every node has a view of its own: a decision reads all of them.

use super::{
    shared_lines::SharedLines,
    slots::{Slot, SlotError, SlotSet},
};
use crds::{CLIENT_PORT, TLS_PORT};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

/// Identity of a node: 40 lower case hexadecimal digits on the wire. Addresses change, this does not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId([u8; 20]);

impl NodeId {
    /// The id made of these bytes.
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// The first eight digits, for messages.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(8);
        text
    }
}

impl FromStr for NodeId {
    type Err = TopologyError;

    fn from_str(text: &str) -> Result<Self, TopologyError> {
        let wrong = || TopologyError::NodeId(excerpt(text));
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(wrong()),
        };
        let mut id = [0; 20];
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != id.len() || !rest.is_empty() {
            return Err(wrong());
        }
        for (byte, [high, low]) in id.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Ok(Self(id))
    }
}

impl TryFrom<String> for NodeId {
    type Error = TopologyError;

    fn try_from(text: String) -> Result<Self, TopologyError> {
        text.parse()
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// Where a node listens. Two are the same whichever of its ports for clients they name, the one in the clear or the encrypted one: which of them
/// servers name to each other depends on how far they encrypt.
#[derive(Clone, Copy, Debug)]
pub struct NodeAddress {
    /// IP address.
    pub ip: IpAddr,
    /// Port for clients.
    pub port: u16,
    /// Port of the cluster bus.
    pub bus_port: u16,
}

impl NodeAddress {
    /// An address whose bus port is the client port plus 10000, as servers choose it by themselves.
    pub fn new(ip: IpAddr, port: u16) -> Self {
        Self {
            ip,
            port,
            bus_port: port.wrapping_add(10000),
        }
    }

    /// Where clients connect.
    pub fn client(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }

    fn identity(&self) -> (IpAddr, u16, u16) {
        (self.ip, in_the_clear(self.port), self.bus_port)
    }
}

/// The port for clients in the clear of a server that has this one.
fn in_the_clear(port: u16) -> u16 {
    if port == TLS_PORT { CLIENT_PORT } else { port }
}

impl PartialEq for NodeAddress {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for NodeAddress {}

impl Hash for NodeAddress {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl PartialOrd for NodeAddress {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for NodeAddress {
    fn cmp(&self, other: &Self) -> Ordering {
        self.identity().cmp(&other.identity())
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.client())
    }
}

/// One flag of a node in a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Flag {
    /// The node whose view this is.
    Myself = 1,
    /// A primary (`master` on the wire).
    Primary = 2,
    /// A replica (`slave` on the wire).
    Replica = 4,
    /// Failed: the majority says so.
    Fail = 8,
    /// Possibly failed: this node alone says so (`fail?` on the wire).
    PFail = 16,
    /// Met, but not yet known by its own id.
    Handshake = 32,
    /// No known address.
    NoAddr = 64,
    /// A replica that does not stand for election.
    NoFailover = 128,
}

/// The flags of a node in a view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    /// Whether the flag is set.
    pub fn has(self, flag: Flag) -> bool {
        self.0 & flag as u8 != 0
    }

    /// These flags and one more.
    #[must_use]
    pub fn with(self, flag: Flag) -> Self {
        Self(self.0 | flag as u8)
    }

    /// Flags this version does not know are skipped: they never concern identity or role.
    fn parse(text: &str) -> Self {
        text.split(',')
            .fold(Self::default(), |flags, word| match word {
                "myself" => flags.with(Flag::Myself),
                "master" => flags.with(Flag::Primary),
                "slave" => flags.with(Flag::Replica),
                "fail" => flags.with(Flag::Fail),
                "fail?" => flags.with(Flag::PFail),
                "handshake" => flags.with(Flag::Handshake),
                "noaddr" => flags.with(Flag::NoAddr),
                "nofailover" => flags.with(Flag::NoFailover),
                _ => flags,
            })
    }
}

/// Which way an open slot's keys go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenSlotKind {
    /// The node gives the slot away.
    Migrating,
    /// The node receives the slot.
    Importing,
}

/// A slot that is being moved; only the node concerned shows it, in its own view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenSlot {
    /// The slot that is open.
    pub slot: Slot,
    /// Whether the slot leaves this node or comes to it.
    pub kind: OpenSlotKind,
    /// The other node.
    pub peer: NodeId,
}

/// One node in a view: a line of `CLUSTER NODES`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNode {
    /// Identity. In a handshake it is a random one that will be replaced.
    pub id: NodeId,
    /// Address, if one is known.
    pub address: Option<NodeAddress>,
    /// Host name that the node announces.
    pub hostname: Option<String>,
    /// Flags.
    pub flags: Flags,
    /// The primary of a replica.
    pub primary: Option<NodeId>,
    /// Configuration epoch; that of the primary for a replica.
    pub config_epoch: u64,
    /// Whether the bus link is connected.
    pub linked: bool,
    /// Slots of a primary; a replica has none.
    pub slots: SlotSet,
    /// Slots being moved, only on the line of the node itself.
    pub open_slots: Vec<OpenSlot>,
}

impl ClusterNode {
    /// Whether the view says primary.
    pub fn is_primary(&self) -> bool {
        self.flags.has(Flag::Primary)
    }

    /// Whether the view says replica.
    pub fn is_replica(&self) -> bool {
        self.flags.has(Flag::Replica)
    }

    /// Whether the view says failed or possibly failed.
    pub fn is_failing(&self) -> bool {
        self.flags.has(Flag::Fail) || self.flags.has(Flag::PFail)
    }

    /// The node, and when it was last heard of (`pong-recv`, milliseconds since 1970; 0: never).
    fn parse(line: &str) -> Result<(Self, Option<Timestamp>), TopologyError> {
        let wrong = |field| TopologyError::Line {
            field,
            line: excerpt(line),
        };
        let mut fields = line.split_ascii_whitespace();
        let mut next = |name| fields.next().ok_or(wrong(name));
        let id: NodeId = next("id")?.parse()?;
        let endpoint = next("address")?;
        let flags = Flags::parse(next("flags")?);
        let primary = match next("primary")? {
            "-" => None,
            id => Some(id.parse()?),
        };
        let (_ping_sent, heard) = (next("ping-sent")?, next("pong-recv")?);
        let config_epoch = number(next("config-epoch")?).ok_or(wrong("config-epoch"))?;
        let linked = next("link-state")? == "connected";
        let (address, hostname) = parse_endpoint(endpoint).ok_or(wrong("address"))?;
        let mut node = Self {
            id,
            address: address.filter(|_| !flags.has(Flag::NoAddr)),
            hostname,
            flags,
            primary,
            config_epoch,
            linked,
            slots: SlotSet::default(),
            open_slots: Vec::new(),
        };
        for field in fields {
            match field.strip_prefix('[') {
                Some(open) => node
                    .open_slots
                    .push(parse_open_slot(open).ok_or(wrong("open slot"))?),
                None => node.slots.insert_range(field.parse()?),
            }
        }
        let heard = heard.parse().ok().filter(|time| *time != 0);
        Ok((
            node,
            heard.and_then(|time| Timestamp::from_millisecond(time).ok()),
        ))
    }
}

/// The lines of several views.
pub type SharedNodes = SharedLines<NodeId, ClusterNode>;

/// One node's view of all nodes: its answer to `CLUSTER NODES`. In the order of the ids, so that a node is found without reading all lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodesView {
    nodes: Vec<Arc<ClusterNode>>,
    myself: usize,
    /// Of the nodes that are not reached only: of the others it differs from view to view and from look to look.
    heard: Vec<(NodeId, Timestamp)>,
}

impl NodesView {
    /// The view in an answer to `CLUSTER NODES`.
    pub fn parse(text: &str) -> Result<Self, TopologyError> {
        Self::read(text, Arc::new)
    }

    /// The same, where other nodes of the cluster are asked as well: lines that are equal are kept once.
    pub fn parse_sharing(text: &str, lines: &SharedNodes) -> Result<Self, TopologyError> {
        Self::read(text, |line| lines.share(line.id, line))
    }

    fn read(
        text: &str,
        keep: impl Fn(ClusterNode) -> Arc<ClusterNode>,
    ) -> Result<Self, TopologyError> {
        let (mut nodes, mut heard) = (Vec::new(), Vec::new());
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (node, time) = ClusterNode::parse(line)?;
            if node.is_failing() || !node.linked {
                heard.extend(time.map(|time| (node.id, time)));
            }
            nodes.push(keep(node));
        }
        Self::of_shared(nodes, heard)
    }

    /// The view made of these nodes, of which exactly one is flagged `Myself`.
    pub fn of(nodes: Vec<ClusterNode>) -> Result<Self, TopologyError> {
        Self::of_shared(nodes.into_iter().map(Arc::new).collect(), Vec::new())
    }

    fn of_shared(
        mut nodes: Vec<Arc<ClusterNode>>,
        heard: Vec<(NodeId, Timestamp)>,
    ) -> Result<Self, TopologyError> {
        nodes.sort_by_key(|node| node.id);
        let mut own = nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.flags.has(Flag::Myself));
        match (own.next(), own.next()) {
            (Some((myself, _)), None) => Ok(Self {
                nodes,
                myself,
                heard,
            }),
            _ => Err(TopologyError::Myself),
        }
    }

    /// The node whose view this is.
    #[allow(clippy::indexing_slicing)] // `of_shared` has found the index in this very list
    pub fn myself(&self) -> &ClusterNode {
        &self.nodes[self.myself]
    }

    /// All nodes, itself included, in the order of their ids.
    pub fn nodes(&self) -> &[Arc<ClusterNode>] {
        &self.nodes
    }

    /// All other nodes.
    pub fn others(&self) -> impl Iterator<Item = &ClusterNode> {
        self.nodes
            .iter()
            .map(Arc::as_ref)
            .filter(|node| !node.flags.has(Flag::Myself))
    }

    /// The same view, in which a node that is not reached was last heard of at this time.
    #[must_use]
    pub fn with_heard(mut self, id: NodeId, time: Timestamp) -> Self {
        self.heard.retain(|(node, _)| *node != id);
        self.heard.push((id, time));
        self
    }

    /// When it last heard of a node that it does not reach now, by its own clock. A server that is started says so of the nodes in its file
    /// (`clusterLoadConfig` in the engine's `cluster.c`), whether they live or not.
    pub fn last_heard(&self, id: NodeId) -> Option<Timestamp> {
        let mut heard = self.heard.iter();
        heard.find(|(node, _)| *node == id).map(|(_, time)| *time)
    }

    /// The node with this id, unless it is only a handshake.
    pub fn get(&self, id: NodeId) -> Option<&ClusterNode> {
        let place = self.nodes.binary_search_by_key(&id, |node| node.id).ok()?;
        let node = self.nodes.get(place)?;
        (!node.flags.has(Flag::Handshake)).then_some(node.as_ref())
    }
}

/// An answer to `CLUSTER INFO`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterInfo {
    /// `cluster_state:ok`: the node serves.
    pub ok: bool,
    /// Slots that have a primary.
    pub slots_assigned: u32,
    /// Slots whose primary is neither failed nor possibly failed.
    pub slots_ok: u32,
    /// Nodes known, itself included.
    pub known_nodes: u32,
    /// Primaries that own slots.
    pub size: u32,
    /// The newest epoch seen.
    pub current_epoch: u64,
    /// The node's own configuration epoch.
    pub my_epoch: u64,
}

impl ClusterInfo {
    /// The value in an answer to `CLUSTER INFO`; lines that are missing count as zero.
    pub fn parse(text: &str) -> Self {
        let mut info = Self::default();
        for (name, value) in text.lines().filter_map(|line| line.trim().split_once(':')) {
            let count = || value.parse().unwrap_or_default();
            match name {
                "cluster_state" => info.ok = value == "ok",
                "cluster_slots_assigned" => info.slots_assigned = count(),
                "cluster_slots_ok" => info.slots_ok = count(),
                "cluster_known_nodes" => info.known_nodes = count(),
                "cluster_size" => info.size = count(),
                "cluster_current_epoch" => info.current_epoch = number(value).unwrap_or_default(),
                "cluster_my_epoch" => info.my_epoch = number(value).unwrap_or_default(),
                _ => {}
            }
        }
        info
    }
}

/// Why an answer about the topology could not be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// Not a node id.
    #[error("\"{0}\" is not a node id (40 lower case hexadecimal digits)")]
    NodeId(String),
    /// A line of CLUSTER NODES has a field that is missing or wrong.
    #[error("CLUSTER NODES: the field {field} is missing or wrong in \"{line}\"")]
    Line {
        /// Name of the field.
        field: &'static str,
        /// The line, shortened.
        line: String,
    },
    /// A slot or a range of slots is wrong.
    #[error("CLUSTER NODES: {0}")]
    Slot(#[from] SlotError),
    /// None or several lines are flagged `myself`.
    #[error("CLUSTER NODES: not exactly one line is flagged myself")]
    Myself,
}

/// Enough of a foreign text to recognise it in a message.
fn excerpt(text: &str) -> String {
    text.chars().take(160).collect()
}

/// Epochs; servers have printed -1 for "none".
fn number(text: &str) -> Option<u64> {
    match text {
        "-1" => Some(0),
        _ => text.parse().ok(),
    }
}

/// `ip:port[@bus port][,host name[,name=value…]]`, where the ip may be empty or a bare IPv6 address.
fn parse_endpoint(text: &str) -> Option<(Option<NodeAddress>, Option<String>)> {
    let mut parts = text.split(',');
    let endpoint = parts.next()?;
    let hostname = parts
        .next()
        .filter(|name| !name.is_empty() && !name.contains('='))
        .map(str::to_owned);
    let (address, bus_port) = match endpoint.split_once('@') {
        Some((address, bus_port)) => (address, Some(bus_port.parse().ok()?)),
        None => (endpoint, None),
    };
    let (ip, port) = address.rsplit_once(':')?;
    let port = port.parse().ok()?;
    if ip.is_empty() || port == 0 {
        return Some((None, hostname));
    }
    let mut address = NodeAddress::new(ip.parse().ok()?, port);
    if let Some(bus_port) = bus_port {
        address.bus_port = bus_port;
    }
    Some((Some(address), hostname))
}

/// `slot->-id]` or `slot-<-id]`.
fn parse_open_slot(text: &str) -> Option<OpenSlot> {
    let text = text.strip_suffix(']')?;
    let (kind, (slot, peer)) = match text.split_once("->-") {
        Some(parts) => (OpenSlotKind::Migrating, parts),
        None => (OpenSlotKind::Importing, text.split_once("-<-")?),
    };
    Some(OpenSlot {
        slot: slot.parse().ok()?,
        kind,
        peer: peer.parse().ok()?,
    })
}

#[cfg(test)]
mod tests;

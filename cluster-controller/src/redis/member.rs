//! The members of a cluster and what each of them says.

use super::users::ReportedUsers;
use common::cluster::{
    info::{PersistenceInfo, ReplicationInfo, ServerInfo},
    slots::SlotSet,
    topology::{ClusterInfo, ClusterNode, NodeAddress, NodeId, NodesView, OpenSlot, OpenSlotKind},
};
use crds::{LostSlots, Takeover};
use k8s_openapi::jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

/// What a server does that answers `BUSY`, and what ends it. A script that has written cannot be ended without losing data.
pub const BUSY: &str = "busy running a script or function (BUSY): redis-cli script kill or function kill ends one that has \
                        not written yet, and busy-reply-threshold says when others get an answer again";

/// Node ids of a cluster, each with the pod that it was last seen in.
pub type KnownNodes = BTreeMap<NodeId, String>;

/// What a cluster is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // independent facts
pub struct Wanted {
    /// Shards.
    pub shards: usize,
    /// Replicas of each primary.
    pub replicas_per_shard: usize,
    /// Whether data outlives a process. Where it does, nothing is ever created instead of a node that may return.
    pub persistent: bool,
    /// Whether the cluster has served every slot before. It cannot be observed any more once every node has lost its data.
    pub formed_before: bool,
    /// The node timeout the servers are configured with.
    pub node_timeout: Duration,
    /// How long a member may be missing before the others form the cluster without it.
    pub patience: Duration,
    /// What may be done about losses that the servers cannot repair themselves.
    pub recovery: Recovery,
    /// Whether primaries may be handed over now: not while an operation needs the roles to stay, nor soon after a hand-over that failed.
    pub may_hand_over: bool,
    /// Whether they may be handed over only to be spread: not before pods that are to be replaced.
    pub may_spread: bool,
    /// What the pods of a new cluster bring that have not answered yet.
    pub absent: AbsentPods,
    /// The node ids recorded in the status. Empty: nothing is recorded yet.
    pub known: KnownNodes,
}

/// What pods of a new cluster bring that have not answered yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AbsentPods {
    /// That is not known: they are waited for, but not for ever.
    #[default]
    Unknown,
    /// No data: they are not waited for.
    Blank,
    /// Volumes of an earlier cluster: they are waited for.
    Kept,
}

/// How long a member may be missing before the others form the cluster without it.
const PATIENCE: Duration = Duration::from_secs(30);

impl Wanted {
    /// A cluster of which nothing has been seen and for which nothing else is asked: so many shards, with so many replicas each.
    pub fn new(
        (shards, replicas_per_shard): (usize, usize),
        persistent: bool,
        node_timeout: Duration,
    ) -> Self {
        Self {
            shards,
            replicas_per_shard,
            persistent,
            formed_before: false,
            node_timeout,
            patience: PATIENCE,
            recovery: Recovery::default(),
            may_hand_over: true,
            may_spread: true,
            absent: AbsentPods::Unknown,
            known: KnownNodes::new(),
        }
    }

    /// Nodes of a shard.
    pub fn nodes_per_shard(&self) -> usize {
        1 + self.replicas_per_shard
    }

    /// Nodes of the cluster.
    pub fn nodes(&self) -> usize {
        self.shards * self.nodes_per_shard()
    }
}

/// What may be done about losses that the servers cannot repair themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// When a replica takes over without a majority of the primaries.
    pub takeover: Takeover,
    /// How long the lost primaries are waited for before.
    pub after: Duration,
    /// The takeovers that a user has asked for and that have not been done yet.
    pub requested: TakeoverRequest,
    /// What becomes of slots of which no copy is left although the cluster has volumes.
    pub lost_slots: LostSlots,
}

impl Default for Recovery {
    fn default() -> Self {
        Self {
            takeover: Takeover::default(),
            after: Duration::from_secs(30),
            requested: TakeoverRequest::default(),
            lost_slots: LostSlots::default(),
        }
    }
}

/// The shards whose replicas a user wants to take over, whatever may still run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TakeoverRequest {
    /// None.
    #[default]
    None,
    /// These.
    Shards(BTreeSet<usize>),
    /// All.
    All,
}

impl TakeoverRequest {
    /// What an annotation asks for: `all`, or the numbers of shards with commas between them; what follows an `@` only makes it another
    /// request. Whatever else it says asks for nothing.
    pub fn parse(text: &str) -> Self {
        let shards = text.split('@').next().unwrap_or_default().trim();
        if shards == "all" {
            return Self::All;
        }
        let numbers: Result<BTreeSet<usize>, _> = shards
            .split(',')
            .map(|number| number.trim().parse())
            .collect();
        match numbers {
            Ok(numbers) if !numbers.is_empty() => Self::Shards(numbers),
            Ok(_) | Err(_) => Self::None,
        }
    }

    /// Whether it names the shard.
    pub fn names(&self, shard: usize) -> bool {
        match self {
            Self::None => false,
            Self::Shards(shards) => shards.contains(&shard),
            Self::All => true,
        }
    }
}

/// What is known of a process that ran in a pod and does not answer: whether it can still acknowledge writes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProcessEvidence {
    /// It has ended; how that is known.
    Ended(String),
    /// It may still run.
    MayRun {
        /// What is known of it.
        why: String,
        /// What ends the doubt.
        cure: String,
    },
}

/// The zone of the Kubernetes node that a pod runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ZoneLabel {
    /// Not read yet: no primary is handed over for the sake of its place.
    #[default]
    Unread,
    /// It has none, or it may not be read.
    Absent,
    /// Its name.
    Named(String),
}

/// A node that the cluster is to have or still has: a pod, or a process in a test. Its role is whatever its server reports.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // independent facts
pub struct ExpectedNode {
    /// Name of the pod.
    pub pod: String,
    /// The shard it belongs to, from 0.
    pub shard: usize,
    /// Its number within the shard. It orders, and says nothing about the role.
    pub ordinal: usize,
    /// Whether the spec asks for it. A node that it does not ask for leaves: it keeps what it has until others have it.
    pub wanted: bool,
    /// Whether there is a pod.
    pub exists: bool,
    /// Whether the pod has a volume. The spec does not say it: one may have been made for another spec.
    pub has_volume: bool,
    /// The uid of the pod.
    pub pod_uid: Option<String>,
    /// Where it listens, if it has an address now.
    pub address: Option<NodeAddress>,
    /// Whether the address is sure to be the pod's: it is not while the pod's Kubernetes node is not Ready.
    pub address_is_current: bool,
    /// The name that it announces to clients. None: it is not to announce one.
    pub hostname: Option<Hostname>,
    /// Whether it tells clients addresses or names, as the server calls it. None: as it is.
    pub endpoint_type: Option<String>,
    /// What its start script lets the server say of itself. None: not asked for.
    pub proof: Option<String>,
    /// Name of the Kubernetes node that the pod runs on.
    pub kubernetes_node: Option<String>,
    /// The zone of that Kubernetes node.
    pub zone: ZoneLabel,
    /// Whether that Kubernetes node is known to be cordoned. It is read only when a primary is to be handed over to it.
    pub cordoned: bool,
    /// Whether the pod is being deleted.
    pub terminating: bool,
    /// Whether the pod has found its Kubernetes node, and its container has yet to be created there.
    pub is_being_created: bool,
    /// Start of the outage, not before the last start of the container. None while Kubernetes reports the pod as ready.
    pub down_since: Option<Timestamp>,
    /// When its container was last started, whether that runs or not. None: never in this pod.
    pub last_started: Option<Timestamp>,
    /// The node ids that were last seen in this pod and do not answer now, with what is known of their processes.
    pub former: BTreeMap<NodeId, ProcessEvidence>,
    /// When those of the pod's node ids that lack something now, or do not answer, were last seen with all that was written. None: that
    /// was not seen.
    pub current_until: BTreeMap<NodeId, Timestamp>,
    /// Since when none has had a sign of life of those of the pod's node ids that do not answer: they have written nothing since, as far
    /// as was seen.
    pub unresponsive_since: BTreeMap<NodeId, Timestamp>,
    /// By which settings those of the pod's node ids that do not answer refused writes when they were last asked.
    pub refusals: BTreeMap<NodeId, WriteRefusal>,
    /// Whether its server was elected a moment ago, so that it would not win another election.
    pub elected_lately: bool,
    /// Why its server, which is loading, is not through with it; with the cure. None: it has not taken long yet.
    pub why_loading: Option<String>,
}

impl ExpectedNode {
    /// A wanted node whose pod exists, and of which no more is known: it may have data on a volume.
    pub fn new(pod: String, shard: usize, ordinal: usize) -> Self {
        Self {
            pod,
            shard,
            ordinal,
            wanted: true,
            exists: true,
            has_volume: true,
            address: None,
            address_is_current: true,
            hostname: None,
            endpoint_type: None,
            proof: None,
            kubernetes_node: None,
            zone: ZoneLabel::Unread,
            cordoned: false,
            elected_lately: false,
            why_loading: None,
            terminating: false,
            is_being_created: false,
            down_since: None,
            last_started: None,
            former: BTreeMap::new(),
            current_until: BTreeMap::new(),
            unresponsive_since: BTreeMap::new(),
            refusals: BTreeMap::new(),
            pod_uid: None,
        }
    }
}

/// The name that a node is to announce to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hostname {
    /// That of its pod in the Kubernetes cluster, or of its load balancer.
    pub name: String,
    /// Whether it takes the place of another name that the node announces.
    pub replaces: bool,
}

/// A setting that decides what a node tells clients of where nodes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientSetting {
    /// Its name.
    Hostname,
    /// Whether clients are given addresses or names of nodes (`getPreferredEndpoint` in `cluster.c`).
    EndpointType,
}

impl ClientSetting {
    /// As the server calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hostname => "cluster-announce-hostname",
            Self::EndpointType => "cluster-preferred-endpoint-type",
        }
    }
}

/// An expected node and what its server reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The expected node.
    pub expected: ExpectedNode,
    /// The answer.
    pub answer: Answer,
}

/// What a node said. No answer is an answer, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is nothing to ask; in words.
    Absent(String),
    /// It did not answer; in words.
    Unresponsive(String),
    /// It is loading its data.
    Loading,
    /// It runs a script, a function or a module command, and answers nothing else until that ends (`BUSY`). It is alive.
    Busy,
    /// The server at the address belongs to another cluster.
    Foreign(ForeignNode),
    /// It answered.
    Report(Box<Report>),
}

/// What a server does that is loading, and why it is not through with it where that takes long.
pub fn loading(why: Option<&str>) -> String {
    match why {
        Some(why) => format!("loading its data {why}"),
        None => "loading its data".to_owned(),
    }
}

/// A server at an expected address that is not this cluster's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignNode {
    /// Its node id.
    pub id: NodeId,
    /// Other nodes in its table.
    pub known_nodes: usize,
}

impl fmt::Display for ForeignNode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "its address is answered by node {} of another cluster",
            self.id
        )
    }
}

/// Everything a node says about itself and about the others, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// `CLUSTER NODES`.
    pub view: NodesView,
    /// `CLUSTER INFO`.
    pub cluster: ClusterInfo,
    /// Which server it is.
    pub server: ServerInfo,
    /// Its part in replication.
    pub replication: ReplicationInfo,
    /// Keys that it holds.
    pub keys: u64,
    /// The node timeout it runs with.
    pub node_timeout: Duration,
    /// Whether it can write to its disk.
    pub persistence: PersistenceInfo,
    /// When it refuses writes.
    pub refusal: WriteRefusal,
    /// Namespace, name and uid of the pod that it was started in.
    pub proof: String,
    /// Whether replicas may copy it. One that was started without a role of its own lets none.
    pub feeds: bool,
    /// Its users.
    pub users: ReportedUsers,
    /// Slots that no node claims and of which it has keys. None: it was not asked, as it is while every slot is claimed.
    pub unserved: Option<SlotSet>,
    /// Keys that it has of slots which others serve, as far as it was asked.
    pub strays: u64,
    /// Whether slots may be on their way to it that are in no table, as far as it was asked.
    pub imports: bool,
    /// The settings that it was asked for, as it reports them; those that it does not know are missing.
    pub settings: BTreeMap<String, String>,
    /// Bytes of memory in use.
    pub used_memory: u64,
}

/// The settings by which a server refuses writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteRefusal {
    /// `min-replicas-to-write`: with fewer linked replicas a primary refuses writes. 0: it never does.
    pub min_replicas: u64,
    /// `min-replicas-max-lag`: a replica that has been away for longer does not count.
    pub max_lag: Duration,
    /// Whether `save` makes snapshots, so that a failed one makes the server refuse writes.
    pub snapshots: bool,
}

/// The offset that a replica reports before its first copy, at most: 0 on Redis. Valkey keeps what a blank primary would have continued
/// with when that becomes a replica, the stream's first byte: 1 (seen with 8.1.1 and 9.1.2).
const NOTHING_COPIED: u64 = 1;

impl Report {
    /// The node's own line.
    pub fn own(&self) -> &ClusterNode {
        self.view.myself()
    }

    /// Its id.
    pub fn id(&self) -> NodeId {
        self.own().id
    }

    /// Whether it is a primary without keys and slots: nothing is lost by giving it any role.
    pub fn is_blank(&self) -> bool {
        self.own().is_primary() && self.own().slots.is_empty() && self.keys == 0
    }

    /// Whether it is a primary that its first slots are moving to: it may have keys of them already.
    pub fn gets_first_slots(&self) -> bool {
        let mut open = self.open_slots().iter();
        let expects = open.any(|slot| slot.kind == OpenSlotKind::Importing);
        self.own().slots.is_empty() && expects
    }

    /// Slots that it is giving away or getting. Replicas of Valkey 8 have the marks of their primary, and one that was away keeps those that were
    /// taken off meanwhile: they mean nothing before it is a primary, and nothing closes them.
    pub fn open_slots(&self) -> &[OpenSlot] {
        let own = self.own();
        if own.is_primary() {
            &own.open_slots
        } else {
            &[]
        }
    }

    /// Whether it knows no other node.
    pub fn is_alone(&self) -> bool {
        self.view.nodes().len() == 1
    }

    /// Whether a replica has copied anything at all: it has been linked to its primary since it was started, or it has read data from
    /// its volume. An empty replica that has never been linked looks like the copy of an empty shard.
    pub fn has_copied(&self) -> bool {
        let link = self.replication.upstream.as_ref();
        let linked = link.is_some_and(|link| link.unlinked_seconds().is_some());
        linked || self.keys > 0 || self.replication.offset > NOTHING_COPIED
    }
}

impl Member {
    /// The report, if it answered.
    pub fn report(&self) -> Option<&Report> {
        match &self.answer {
            Answer::Report(report) => Some(report),
            Answer::Absent(_)
            | Answer::Unresponsive(_)
            | Answer::Foreign(_)
            | Answer::Loading
            | Answer::Busy => None,
        }
    }

    /// Whether it is rewriting the file on its volume: until then its process may come back with less than it has.
    pub fn rewrites_its_file(&self) -> bool {
        let report = self.report();
        self.expected.has_volume && report.is_some_and(|report| report.persistence.is_rewriting)
    }

    /// Its pod, and why it gave no report.
    pub fn explained(&self) -> (String, String) {
        let why = match &self.answer {
            Answer::Report(_) => "answers".to_owned(),
            Answer::Loading => loading(self.expected.why_loading.as_deref()),
            Answer::Busy => BUSY.to_owned(),
            Answer::Foreign(foreign) => foreign.to_string(),
            Answer::Absent(why) | Answer::Unresponsive(why) => why.clone(),
        };
        (self.expected.pod.clone(), why)
    }
}

//! The members of a cluster and what each of them says.

use common::cluster::{
    info::{ReplicationInfo, ServerInfo},
    topology::{ClusterInfo, ClusterNode, NodeAddress, NodeId, NodesView},
};
use k8s_openapi::jiff::Timestamp;
use std::{collections::BTreeMap, fmt, time::Duration};

/// Node ids of a cluster, each with the pod that it was last seen in.
pub type KnownNodes = BTreeMap<NodeId, String>;

/// What a cluster is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// How long a member may be missing before the others form the cluster without it, and how long a majority may be
    /// missing before replicas take over without it.
    pub patience: Duration,
    /// The node ids recorded in the status. Empty: nothing is recorded yet.
    pub known: KnownNodes,
}

impl Wanted {
    /// Nodes of a shard.
    pub fn nodes_per_shard(&self) -> usize {
        1 + self.replicas_per_shard
    }

    /// Nodes of the cluster.
    pub fn nodes(&self) -> usize {
        self.shards * self.nodes_per_shard()
    }
}

/// A node that the cluster is to have: a pod, or a process in a test. Its role is whatever its server reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedNode {
    /// Name of the pod.
    pub pod: String,
    /// The shard it belongs to, from 0.
    pub shard: usize,
    /// Its number within the shard. It orders, and says nothing about the role.
    pub ordinal: usize,
    /// Where it listens, if it has an address now.
    pub address: Option<NodeAddress>,
    /// Whether the address is sure to be the pod's: it is not while the pod's Kubernetes node is not Ready.
    pub address_is_current: bool,
    /// What its start script lets the server say of itself. None: not asked for.
    pub proof: Option<String>,
    /// Name of the Kubernetes node that the pod runs on.
    pub kubernetes_node: Option<String>,
    /// Whether the pod is being deleted.
    pub terminating: bool,
    /// Start of the outage, not before the last start of the container. None while Kubernetes reports the pod as ready.
    pub down_since: Option<Timestamp>,
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
    /// The server at the address belongs to another cluster.
    Foreign(ForeignNode),
    /// It answered.
    Report(Box<Report>),
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
    /// Namespace, name and uid of the pod that it was started in.
    pub proof: String,
}

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

    /// Whether it knows no other node.
    pub fn is_alone(&self) -> bool {
        self.view.nodes().len() == 1
    }

    /// How much of its shard's history it has: what a replica has applied.
    pub fn progress(&self) -> (u64, u64) {
        (self.replication.offset, self.keys)
    }
}

impl Member {
    /// The report, if it answered.
    pub fn report(&self) -> Option<&Report> {
        match &self.answer {
            Answer::Report(report) => Some(report),
            Answer::Absent(_) | Answer::Unresponsive(_) | Answer::Foreign(_) | Answer::Loading => {
                None
            }
        }
    }

    /// Its pod, and why it gave no report.
    pub fn explained(&self) -> (String, String) {
        let why = match &self.answer {
            Answer::Report(_) => "answers".to_owned(),
            Answer::Loading => "loading its data".to_owned(),
            Answer::Foreign(foreign) => foreign.to_string(),
            Answer::Absent(why) | Answer::Unresponsive(why) => why.clone(),
        };
        (self.expected.pod.clone(), why)
    }
}

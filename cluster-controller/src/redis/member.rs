//! The members of a cluster and what each of them says.

use common::cluster::{
    info::{ReplicationInfo, ServerInfo},
    topology::{ClusterInfo, ClusterNode, NodeAddress, NodeId, NodesView},
};
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

/// What a cluster is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Shards.
    pub shards: usize,
    /// Replicas of each primary.
    pub replicas_per_shard: usize,
    /// Whether data outlives a process. Where it does, nothing is ever created in the place of a node that may return.
    pub persistent: bool,
    /// Whether the cluster has served every slot before. Nobody can see this any more once every node has lost its data.
    pub formed_before: bool,
    /// The node timeout the servers are configured with.
    pub node_timeout: Duration,
    /// How long a member may be missing before the others form the cluster without it, and how long a majority may be
    /// missing before replicas take over without it.
    pub patience: Duration,
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

/// One place of the cluster: a pod, or a process in a test. Its role is whatever its node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the pod.
    pub pod: String,
    /// The shard it belongs to, from 0.
    pub shard: usize,
    /// Its number within the shard. It orders, and says nothing about the role.
    pub ordinal: usize,
    /// Where it listens, if it has an address now.
    pub address: Option<NodeAddress>,
    /// The machine it runs on.
    pub machine: Option<String>,
    /// Whether it is on its way out.
    pub leaving: bool,
    /// Since when it has been waited for in vain: later than its last start. None: nobody but the silence says that it is down.
    pub down_since: Option<Timestamp>,
}

/// A place and what its node said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The place.
    pub place: Place,
    /// The answer.
    pub answer: Answer,
}

/// What a node said. No answer is an answer, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is nothing to ask; in words.
    Absent(String),
    /// It did not answer; in words.
    Silent(String),
    /// It is loading its data.
    Loading,
    /// It answered.
    Report(Box<Report>),
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
    /// Keys it holds.
    pub keys: u64,
    /// The node timeout it runs with.
    pub node_timeout: Duration,
}

impl Report {
    /// The node by its own word.
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
            Answer::Absent(_) | Answer::Silent(_) | Answer::Loading => None,
        }
    }

    /// Its pod, and why it gave no report.
    pub fn explained(&self) -> String {
        let pod = &self.place.pod;
        match &self.answer {
            Answer::Report(_) => pod.clone(),
            Answer::Loading => format!("{pod} (it is loading its data)"),
            Answer::Absent(why) | Answer::Silent(why) => format!("{pod} ({why})"),
        }
    }
}

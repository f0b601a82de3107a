//! What is waited for, in words: what is the matter, why nothing is done about it, and what ends it.

use super::Doubt;
use crate::redis::member::{BUSY, ForeignNode};
use common::{
    cluster::topology::{NodeAddress, NodeId},
    sentence::{grouped, names},
};
use crds::ANNOTATION_TAKEOVER;
use std::{fmt, time::Duration};

/// Why nothing is done although something is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blocker {
    /// The cluster is not formed before its nodes are there.
    WaitingForNodes {
        /// Pods that gave no report, each with the cause.
        pods: Vec<(String, String)>,
        /// Pods that do not exist yet.
        absent: usize,
    },
    /// No node that is left has the data of these slots, and they are not created empty behind the user's back.
    SlotsLost {
        /// Ranges, for example `0-5460`, separated by commas.
        slots: String,
        /// Slots in these ranges.
        count: usize,
        /// Pods of living primaries that have keys of them: an older copy, or the only one.
        holders: Vec<String>,
    },
    /// No node claims these slots although the shard that they belong to has its data: they were taken from it by hand.
    SlotsUnassigned {
        /// As short text: the first ranges.
        slots: String,
        /// Number of these slots.
        count: usize,
        /// The pod of the shard's primary.
        pod: String,
    },
    /// No node claims these slots, and several primaries have keys of them.
    SlotsContested {
        /// As short text: the first ranges.
        slots: String,
        /// Number of these slots.
        count: usize,
        /// Pods of the primaries that have keys of them.
        pods: Vec<String>,
    },
    /// A primary has keys but no slots: it is left alone.
    KeysWithoutSlots {
        /// Name of the primary's pod.
        pod: String,
        /// Whether every slot has a primary, so that the keys return to those of their slots.
        returning: bool,
    },
    /// The server at a pod's address belongs to another cluster: it gets no command.
    ForeignNode {
        /// Name of the pod at whose address the server answers.
        pod: String,
        /// What that server reports of itself.
        foreign: ForeignNode,
    },
    /// A living node belongs to the cluster and to none of its pods.
    NodeWithoutPod {
        /// The node id, by which the other nodes list it.
        id: NodeId,
        /// Its address. None: no member reaches it.
        address: Option<NodeAddress>,
        /// Slots that it serves.
        slots: usize,
    },
    /// A primary is down; its replicas take over by themselves, or it returns.
    PrimaryDown {
        /// Index of the shard, from 0.
        shard: usize,
        /// Node id of the primary that is down.
        id: NodeId,
        /// A pod of the shard that is loading its data, and what of it takes so long.
        loading: Option<String>,
    },
    /// A primary is busy with a script: it is alive, and nothing is done against it.
    ScriptRunning {
        /// Name of the pod whose server runs it.
        pod: String,
    },
    /// A replica waits to take over without a majority, since a lost primary may still acknowledge writes.
    Unfenced {
        /// Index of the shard that has no primary.
        shard: usize,
        /// The replica, and how far it is behind.
        replica: String,
        /// The lost primary.
        doubt: Doubt,
    },
    /// A replica waits to take over without a majority until a user asks for it.
    TakeoverManual {
        /// Index of the shard that has no primary.
        shard: usize,
        /// The replica, and how far it is behind.
        replica: String,
    },
    /// Slots are to be created again, empty, and a lost primary may still acknowledge writes to them.
    RecreationUnfenced {
        /// As short text: the first ranges.
        slots: String,
        /// The lost primary.
        doubt: Doubt,
    },
    /// A primary is down that may come back with its data, and its replica lacks too much of it, or may.
    OldCopy {
        /// Index of the shard, from 0.
        shard: usize,
        /// Node id of the primary that is down.
        id: NodeId,
        /// The replica's pod.
        pod: String,
        /// The primary went on without the replica for longer. None: for how long was not seen.
        older_than: Option<Duration>,
    },
    /// A primary is down, and its replica may never have been a copy.
    EmptyCopy {
        /// Index of the shard, from 0.
        shard: usize,
        /// Node id of the primary that is down.
        id: NodeId,
        /// The replica's pod.
        pod: String,
    },
}

impl Blocker {
    /// Whether a user has to know of it before anything else: it is the reason why the cluster is not Ready.
    pub fn is_named(&self) -> bool {
        let cause = matches!(
            self,
            Self::ScriptRunning { .. } | Self::Unfenced { .. } | Self::RecreationUnfenced { .. }
        );
        cause || !self.clears_itself()
    }

    /// Whether waiting alone may end it. The others end with something that a person does.
    pub fn clears_itself(&self) -> bool {
        match self {
            Self::WaitingForNodes { .. }
            | Self::PrimaryDown { .. }
            | Self::ScriptRunning { .. }
            | Self::Unfenced { .. }
            | Self::KeysWithoutSlots {
                returning: true, ..
            }
            | Self::RecreationUnfenced { .. } => true,
            Self::SlotsLost { .. }
            | Self::SlotsUnassigned { .. }
            | Self::SlotsContested { .. }
            | Self::TakeoverManual { .. }
            | Self::KeysWithoutSlots {
                returning: false, ..
            }
            | Self::ForeignNode { .. }
            | Self::NodeWithoutPod { .. }
            | Self::OldCopy { .. }
            | Self::EmptyCopy { .. } => false,
        }
    }

    /// In words: a sentence for each cause.
    pub fn sentences(&self) -> Vec<String> {
        let Self::WaitingForNodes { pods, absent } = self else {
            return vec![self.to_string()];
        };
        let causes = pods.iter().map(|(pod, why)| (pod.as_str(), why.clone()));
        let mut sentences = grouped(causes);
        if *absent > 0 {
            sentences.push(format!("pods yet to be created: {absent}"));
        }
        if let Some(first) = sentences.first_mut() {
            first.insert_str(0, "waiting for nodes: ");
        }
        sentences
    }
}

fn cure_of_lost_slots(holders: &[String]) -> String {
    if holders.is_empty() {
        return "restore a backup into a new cluster, or set spec.recovery.lostSlots: RecreateEmpty to serve them empty"
            .to_owned();
    }
    format!(
        "keys of them are left in {}, perhaps not all: spec.recovery.lostSlots: RecreateEmpty serves those, and the rest \
         empty; or restore a backup into a new cluster",
        names("pod", holders)
    )
}

impl fmt::Display for Blocker {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WaitingForNodes { .. } => write!(out, "{}", self.sentences().join("; ")),
            Self::SlotsLost {
                slots,
                count,
                holders,
            } => write!(
                out,
                "{count} slots ({slots}) are lost: every node that served them is gone together with its volume; {}",
                cure_of_lost_slots(holders)
            ),
            Self::SlotsUnassigned { slots, count, pod } => write!(
                out,
                "{count} slots ({slots}) belong to no node although {pod} has the data of their shard; nothing is given out \
                 in its place. Assign them: redis-cli cluster addslotsrange in {pod}, or redis-cli --cluster fix"
            ),
            Self::SlotsContested { slots, count, pods } => write!(
                out,
                "{count} slots ({slots}) belong to no node, and {} have keys of them; none is preferred. To gather the keys in one: \
                 redis-cli --cluster fix",
                names("pod", pods)
            ),
            Self::KeysWithoutSlots {
                pod,
                returning: true,
            } => write!(
                out,
                "{pod} is a primary with keys but without slots: they return to the primaries of their slots"
            ),
            Self::KeysWithoutSlots { pod, .. } => write!(
                out,
                "{pod} is a primary with keys but without slots: it is left alone; if the keys are of no use, \
                 delete its volume and its pod"
            ),
            Self::ForeignNode { pod, foreign } => write!(
                out,
                "pod {pod}: {foreign}; it gets no command. If the pod's Kubernetes node is gone, delete that node; \
                 if the pod has the volume of another cluster, bring its own one back"
            ),
            Self::NodeWithoutPod {
                id,
                address: None,
                slots,
            } => write!(
                out,
                "node {} with {slots} slots was never seen in a pod of this cluster, and no node reaches it; its slots \
                 are kept for it. If it is gone for good, run redis-cli cluster forget {id} on every node",
                id.short()
            ),
            Self::NodeWithoutPod {
                id,
                address: Some(address),
                slots,
            } => write!(
                out,
                "node {} at {address} serves {slots} slots and belongs to no pod of this cluster; it keeps them. Move \
                 its slots to the cluster's nodes and remove it: redis-cli --cluster del-node {address} {id}",
                id.short()
            ),
            Self::PrimaryDown {
                shard,
                id,
                loading: Some(pod),
            } => write!(
                out,
                "the primary of shard {shard} ({}) does not answer; waiting for {pod}",
                id.short()
            ),
            Self::PrimaryDown {
                shard,
                id,
                loading: None,
            } => write!(
                out,
                "the primary of shard {shard} ({}) is down; waiting for the election of a replica or for its return",
                id.short()
            ),
            Self::ScriptRunning { pod } => write!(out, "pod {pod}: {BUSY}"),
            Self::Unfenced {
                shard,
                replica,
                doubt: Doubt { node, why, cure },
            } => write!(
                out,
                "shard {shard}: {replica} takes over once {node} has surely ended: {why}; {cure}. To accept lost writes: \
                 annotate {ANNOTATION_TAKEOVER}={shard}"
            ),
            Self::TakeoverManual { shard, replica } => write!(
                out,
                "shard {shard}: no majority of the primaries is left, and spec.recovery.takeover is Manual. To let {replica} \
                 take over: kubectl annotate --overwrite rediscluster NAME {ANNOTATION_TAKEOVER}={shard}@$(date +%s)"
            ),
            Self::RecreationUnfenced {
                slots,
                doubt: Doubt { node, why, cure },
            } => write!(
                out,
                "the slots {slots} are created again, empty, once {node} has surely ended: {why}; {cure}"
            ),
            Self::OldCopy {
                shard,
                id,
                pod,
                older_than,
            } => {
                let age = match older_than {
                    Some(time) => format!("may lack more than its last {} s", time.as_secs()),
                    None => "has a copy of unknown age".to_owned(),
                };
                write!(
                    out,
                    "the primary of shard {shard} ({}) is down, and {pod} {age}: bring the primary's pod back with its volume. \
                     To accept lost writes: annotate {ANNOTATION_TAKEOVER}={shard}",
                    id.short()
                )
            }
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

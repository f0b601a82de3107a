//! Whether the cluster is healthy: every node is asked, since `cluster_state:ok` from one of them is true too early.

use super::{
    member::{Answer, BUSY, ForeignNode, Member, loading},
    survey::{Live, Survey},
};
use common::cluster::{
    info::UpstreamLink,
    slots::SLOT_COUNT,
    topology::{ClusterNode, Flag, NodeId},
    version::ServerVersion,
};
use crds::BUS_PORT;
use std::fmt;

/// A replica that is further behind is not handed over to only for a better place: the clients would wait for it. Bytes of the stream of
/// writes; the offsets are not read at one moment.
pub const CAUGHT_UP: u64 = 1 << 20;
/// The same where the primary's pod goes: the servers themselves let the clients wait for the rest, at most 5 s.
pub const NEARLY_CAUGHT_UP: u64 = 64 << 20;

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// A pod does not exist yet, or has no address.
    Absent {
        /// Name of the expected pod.
        pod: String,
        /// What Kubernetes says of it, with the cure.
        why: String,
    },
    /// A node does not answer.
    Unresponsive {
        /// Name of the node's pod.
        pod: String,
        /// What happened instead.
        why: String,
    },
    /// A node is loading its data.
    Loading {
        /// Name of the node's pod.
        pod: String,
        /// Why it is not through with it. None: it has not taken long yet.
        why: Option<String>,
    },
    /// A node runs a script, and answers nothing else until that ends.
    Busy {
        /// The pod whose server answers BUSY.
        pod: String,
    },
    /// A node cannot write to its disk, and refuses the writes of clients.
    DiskRefusesWrites {
        /// The pod whose server cannot write.
        pod: String,
        /// What it could not write.
        what: &'static str,
    },
    /// The server at a pod's address belongs to another cluster.
    Foreign {
        /// Name of the pod at whose address the server answers.
        pod: String,
        /// What that server reports of itself.
        foreign: ForeignNode,
    },
    /// Slots without a primary that is alive.
    Uncovered {
        /// Slots, of 16384.
        count: usize,
    },
    /// A shard without a primary that is alive.
    NoPrimary {
        /// Index of the shard, from 0.
        shard: usize,
    },
    /// A node says that the cluster is down.
    NotServing {
        /// Name of the node's pod.
        pod: String,
    },
    /// A node counts fewer slots as served than there are.
    DoubtsSlots {
        /// Name of the node's pod.
        pod: String,
        /// Slots it counts as served.
        ok: u32,
    },
    /// A node knows more or fewer nodes than there are.
    Acquaintance {
        /// Name of the node's pod.
        pod: String,
        /// Nodes it knows.
        known: usize,
        /// Nodes there are.
        wanted: usize,
        /// Nodes that it was introduced to and that have not answered it yet.
        handshakes: usize,
    },
    /// A node has lost another one, or knows an old address.
    Unlinked {
        /// Name of the node's pod.
        pod: String,
        /// Nodes it does not reach.
        count: usize,
    },
    /// A node of a shard is neither its primary nor a replica of it.
    NotReplicating {
        /// Name of the node's pod.
        pod: String,
    },
    /// A replica's link to its primary is down.
    ReplicaUnlinked {
        /// Name of the replica's pod.
        pod: String,
    },
    /// A replica is not linked, and runs a server that may not read what its primary sends.
    OlderThanPrimary {
        /// Name of the replica's pod.
        pod: String,
        /// What it runs.
        server: String,
        /// The pod of its primary.
        primary: String,
        /// What the primary runs.
        copied: String,
    },
    /// A pod that the spec does not ask for any more.
    Leaving {
        /// Name of the pod, which is still there.
        pod: String,
    },
    /// A shard of the spec has no slots yet.
    NoSlots {
        /// Index of the shard, as in the names of its pods.
        shard: usize,
    },
    /// A slot is being moved.
    OpenSlots {
        /// The pod that says so.
        pod: String,
        /// Open slots of this node.
        count: usize,
    },
}

impl Problem {
    /// The pod that it is about, if it is one.
    pub fn pod(&self) -> Option<&str> {
        match self {
            Self::Absent { pod, .. }
            | Self::Unresponsive { pod, .. }
            | Self::Loading { pod, .. }
            | Self::Busy { pod }
            | Self::DiskRefusesWrites { pod, .. }
            | Self::Foreign { pod, .. }
            | Self::NotServing { pod }
            | Self::DoubtsSlots { pod, .. }
            | Self::Acquaintance { pod, .. }
            | Self::Unlinked { pod, .. }
            | Self::NotReplicating { pod }
            | Self::ReplicaUnlinked { pod }
            | Self::OlderThanPrimary { pod, .. }
            | Self::Leaving { pod }
            | Self::OpenSlots { pod, .. } => Some(pod),
            Self::Uncovered { .. } | Self::NoPrimary { .. } | Self::NoSlots { .. } => None,
        }
    }
}

/// Without the pod's name: pods with the same cause are named together.
impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent { why, .. } => write!(out, "{why}"),
            Self::Unresponsive { why, .. } => write!(out, "does not answer ({why})"),
            Self::Loading { why, .. } => out.write_str(&loading(why.as_deref())),
            Self::Busy { .. } => out.write_str(BUSY),
            Self::DiskRefusesWrites { what, .. } => write!(
                out,
                "cannot write its {what}, and refuses writes (MISCONF); make room on its volume, and see kubectl logs"
            ),
            Self::Foreign { foreign, .. } => write!(out, "{foreign}"),
            Self::Uncovered { count } => write!(out, "{count} slots have no living primary"),
            Self::NoPrimary { shard } => write!(out, "shard {shard} has no living primary"),
            Self::NotServing { .. } => write!(out, "reports cluster_state:fail"),
            Self::DoubtsSlots { ok, .. } => {
                write!(out, "counts {ok} of {SLOT_COUNT} slots as served")
            }
            Self::Acquaintance {
                known,
                wanted,
                handshakes: 0,
                ..
            } => write!(out, "knows {known} nodes of {wanted}"),
            Self::Acquaintance {
                known,
                wanted,
                handshakes,
                ..
            } => write!(
                out,
                "knows {known} nodes of {wanted}, and waits for {handshakes} to answer on the cluster bus; if that lasts, let the pods reach \
                 each other on port {BUS_PORT}"
            ),
            Self::Unlinked { count, .. } => write!(out, "does not reach {count} nodes"),
            Self::NotReplicating { .. } => write!(out, "does not replicate its shard's primary"),
            Self::ReplicaUnlinked { .. } => write!(out, "is not linked to its primary"),
            Self::OlderThanPrimary {
                server,
                primary,
                copied,
                ..
            } => write!(
                out,
                "is not linked to its primary {primary}: it runs {server}, which may not read a copy of {copied}; set spec.version or \
                 spec.image back"
            ),
            Self::Leaving { .. } => write!(out, "is leaving the cluster"),
            Self::NoSlots { shard } => write!(out, "shard {shard} has no slots yet"),
            Self::OpenSlots { count, .. } => write!(out, "has {count} open slots"),
        }
    }
}

/// A node in its shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardNode {
    /// Index of the member.
    pub index: usize,
    /// Name of the pod.
    pub pod: String,
    /// The node id, which outlives pod and address.
    pub id: NodeId,
    /// Whether it serves: a primary always, a replica while it is linked to the primary.
    pub linked: bool,
}

/// A shard as its nodes describe it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shard {
    /// The primary of its slots.
    pub primary: Option<ShardNode>,
    /// Its replicas, by ordinal.
    pub replicas: Vec<ShardNode>,
    /// Slots of the primary.
    pub slot_ranges: Vec<String>,
    /// Whether there is a primary and all wanted replicas are linked to it.
    pub ready: bool,
}

/// How the cluster is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assessment {
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// One for each wanted shard, in the order of the StatefulSets.
    pub shards: Vec<Shard>,
    /// Slots with a primary, alive or not.
    pub slots_assigned: usize,
    /// Slots with a primary that is alive.
    pub slots_ok: usize,
    /// Primaries that are alive, and primaries in all.
    pub quorum: (usize, usize),
}

impl Assessment {
    /// Whether nothing is wrong.
    pub fn is_healthy(&self) -> bool {
        self.problems.is_empty()
    }

    /// Whether the majority of the primaries is alive, so that replicas can be elected.
    pub fn has_quorum(&self) -> bool {
        self.quorum.0 * 2 > self.quorum.1
    }
}

/// Compares what every node says with what is wanted.
pub fn assess(survey: &Survey<'_>) -> Assessment {
    let shards: Vec<Shard> = (0..survey.shards())
        .map(|shard| describe(survey, shard))
        .collect();
    let slots_ok = shards_slots(survey);
    let all = usize::from(SLOT_COUNT);
    let mut problems = missing(survey.members);
    if slots_ok < all {
        problems.push(Problem::Uncovered {
            count: all - slots_ok,
        });
    }
    for (shard, view) in shards.iter().enumerate() {
        if view.primary.is_none() && shard < survey.wanted.shards {
            problems.push(Problem::NoPrimary { shard });
        } else if view.slot_ranges.is_empty() && shard < survey.wanted.shards {
            problems.push(Problem::NoSlots { shard });
        }
    }
    for one in &survey.live {
        problems.extend(own_problems(survey, *one));
    }
    Assessment {
        problems,
        shards,
        slots_assigned: all - survey.free.len(),
        slots_ok,
        quorum: survey.quorum(),
    }
}

/// Nodes of the spec that give no report, and pods that are to leave.
fn missing(members: &[Member]) -> Vec<Problem> {
    let leaving = members.iter().filter(|member| !member.expected.wanted);
    let leaving = leaving.map(|member| Problem::Leaving {
        pod: member.expected.pod.clone(),
    });
    let wanted = members.iter().filter(|member| member.expected.wanted);
    wanted
        .filter_map(|member| {
            let pod = member.expected.pod.clone();
            match &member.answer {
                Answer::Absent(why) => Some(Problem::Absent {
                    pod,
                    why: why.clone(),
                }),
                Answer::Unresponsive(why) => Some(Problem::Unresponsive {
                    pod,
                    why: why.clone(),
                }),
                Answer::Loading => Some(Problem::Loading {
                    pod,
                    why: member.expected.why_loading.clone(),
                }),
                Answer::Busy => Some(Problem::Busy { pod }),
                Answer::Foreign(foreign) => Some(Problem::Foreign {
                    pod,
                    foreign: foreign.clone(),
                }),
                Answer::Report(_) => None,
            }
        })
        .chain(leaving)
        .collect()
}

/// Slots whose newest claim is that of a living node.
fn shards_slots(survey: &Survey<'_>) -> usize {
    let gone: usize = survey
        .missing
        .values()
        .filter(|missing_node| missing_node.is_lost())
        .map(|missing_node| missing_node.slots.len())
        .sum();
    usize::from(SLOT_COUNT) - survey.free.len() - gone
}

fn describe(survey: &Survey<'_>, shard: usize) -> Shard {
    let primary = survey.primary_of(shard);
    let node = |one: Live<'_>, linked| ShardNode {
        index: one.index,
        pod: one.pod().to_owned(),
        id: one.report.id(),
        linked,
    };
    let replicas: Vec<ShardNode> = survey
        .live_in(shard)
        .filter(|one| one.report.own().is_replica())
        .map(|one| node(one, primary.is_some_and(|primary| is_linked(one, primary))))
        .collect();
    let linked = replicas.iter().filter(|replica| replica.linked).count();
    Shard {
        slot_ranges: primary.map_or_else(Vec::new, |primary| {
            let ranges = primary.report.own().slots.ranges();
            ranges.iter().map(ToString::to_string).collect()
        }),
        ready: primary.is_some_and(|primary| !primary.report.own().slots.is_empty())
            && linked >= survey.wanted.replicas_per_shard,
        primary: primary.map(|primary| node(primary, true)),
        replicas,
    }
}

/// Whether the replica follows the primary, and both ends say so.
pub fn is_linked(replica: Live<'_>, primary: Live<'_>) -> bool {
    replica.report.own().primary == Some(primary.report.id())
        && replica
            .report
            .replication
            .upstream
            .as_ref()
            .is_some_and(|link| link.up)
}

/// Whether a replica is linked to the primary, lacks no more than so many bytes, and would come back with the rest.
pub fn can_take_over(replica: Live<'_>, primary: Live<'_>, lag: u64) -> bool {
    let (copy, original) = (&replica.report.replication, &primary.report.replication);
    replica.report.own().primary == Some(primary.report.id())
        && copy.upstream.as_ref().is_some_and(UpstreamLink::follows)
        && copy.id == original.id
        && copy.offset.saturating_add(lag) >= original.offset
        && !replica.member.rewrites_its_file()
}

/// Whether a server may be unable to load what its primary sends: it drops what it has at each attempt, and tries again for ever
/// (`readSyncBulkPayload` in the engine's `replication.c`). Valkey reads what Redis writes, and not the other way round.
pub fn is_older_than_primary(replica: Live<'_>, primary: Live<'_>) -> bool {
    let [own, other] = [replica, primary].map(|one| ServerVersion::of(&one.report.server));
    own.zip(other)
        .is_some_and(|(own, other)| own.is_older_series_than(&other) || own.family < other.family)
}

/// Why a replica is not linked, as far as the versions of both say.
fn unlinked(replica: Live<'_>, primary: Live<'_>) -> Problem {
    let pod = replica.pod().to_owned();
    let (server, copied) = (&replica.report.server, &primary.report.server);
    if !is_older_than_primary(replica, primary) {
        return Problem::ReplicaUnlinked { pod };
    }
    Problem::OlderThanPrimary {
        pod,
        server: server.to_string(),
        primary: primary.pod().to_owned(),
        copied: copied.to_string(),
    }
}

fn own_problems(survey: &Survey<'_>, one: Live<'_>) -> Vec<Problem> {
    let pod = || one.pod().to_owned();
    let mut problems = Vec::new();
    let info = &one.report.cluster;
    if !info.ok {
        problems.push(Problem::NotServing { pod: pod() });
    }
    if info.slots_ok != u32::from(SLOT_COUNT) {
        problems.push(Problem::DoubtsSlots {
            pod: pod(),
            ok: info.slots_ok,
        });
    }
    let persistence = one.report.persistence;
    if persistence.append_failed {
        problems.push(Problem::DiskRefusesWrites {
            pod: pod(),
            what: "append-only file",
        });
    } else if persistence.snapshot_failed && one.report.refusal.snapshots {
        problems.push(Problem::DiskRefusesWrites {
            pod: pod(),
            what: "snapshot",
        });
    }
    let in_handshake = |node: &ClusterNode| node.flags.has(Flag::Handshake);
    let all = one.report.view.nodes();
    let handshakes = all.iter().filter(|node| in_handshake(node)).count();
    let known = all.len() - handshakes;
    if known != survey.size() {
        problems.push(Problem::Acquaintance {
            pod: pod(),
            known,
            wanted: survey.size(),
            handshakes,
        });
    }
    let lost = one.report.view.others().filter(|node| {
        let moved = survey
            .by_id(node.id)
            .is_some_and(|other| node.address != other.member.expected.address);
        !in_handshake(node) && (!node.linked || node.is_failing() || moved)
    });
    let count = lost.count();
    if count > 0 {
        problems.push(Problem::Unlinked { pod: pod(), count });
    }
    let count = one.report.open_slots().len();
    if count > 0 {
        problems.push(Problem::OpenSlots { pod: pod(), count });
    }
    if let Some(primary) = survey.primary_of(one.shard())
        && primary.index != one.index
    {
        if one.report.own().primary != Some(primary.report.id()) {
            problems.push(Problem::NotReplicating { pod: pod() });
        } else if !is_linked(one, primary) {
            problems.push(unlinked(one, primary));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::plan::tests::formed;
    use common::cluster::{
        slots::SlotSet,
        topology::{Flags, NodesView},
    };
    use k8s_openapi::jiff::Timestamp;

    /// A node in a handshake is none of the cluster's yet. One that does not answer is named with the likely cause.
    #[test]
    fn handshakes_are_named_where_nodes_are_missing() {
        let world = formed(3, 1, true);
        let members = world.members(Timestamp::UNIX_EPOCH);
        let problems = |forgets: bool| {
            let mut members = members.clone();
            let Answer::Report(report) = &mut members[0].answer else {
                panic!("no report")
            };
            let nodes = report.view.nodes().iter();
            let mut nodes: Vec<ClusterNode> = nodes.map(|node| (**node).clone()).collect();
            if forgets {
                let other = nodes.iter().position(|node| !node.flags.has(Flag::Myself));
                nodes.remove(other.unwrap());
            }
            let meets = ClusterNode {
                id: NodeId::from_bytes([9; 20]),
                flags: Flags::default().with(Flag::Primary).with(Flag::Handshake),
                linked: false,
                slots: SlotSet::default(),
                ..nodes[0].clone()
            };
            nodes.push(meets);
            report.view = NodesView::of(nodes).unwrap();
            let found = assess(&Survey::of(&world.wanted, &members)).problems;
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(problems(false), [""; 0]);
        let found = problems(true);
        let words = "knows 5 nodes of 6, and waits for 1 to answer on the cluster bus";
        assert!(
            found.iter().any(|problem| problem.contains(words)),
            "{found:?}"
        );
    }
}

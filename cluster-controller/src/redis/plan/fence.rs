//! Whether the primaries that are lost can still acknowledge writes.
//!
//! Without a majority no election decides who serves. A replica that takes over while the old primary lives with a majority on its side
//! of a cut network makes two histories, and when it is repaired the writes of one of them are dropped. So each lost primary has to be unable to
//! acknowledge writes. What counts as proof:
//!
//! * its process has ended, as Kubernetes knows ([`ProcessEvidence::Ended`]: `crate::fencing` says which facts these are);
//! * it refuses writes because of `min-replicas-to-write`: fewer replicas than that can be on its side, and the others have been
//!   without a link for longer than `min-replicas-max-lag` (checked before each write, `checkGoodReplicasStatus` in `replication.c`);
//! * it is in a minority together with all other doubtful primaries, and with those that only other nodes reach: a primary that has not
//!   reached a majority of them for a node timeout refuses writes (`clusterUpdateState` in `cluster.c`).
//!
//! What remains: a network that lets packets through in one direction only.

use crate::redis::{
    member::ProcessEvidence,
    survey::{Live, MissingNode, Survey},
};
use common::cluster::topology::NodeId;
use std::time::Duration;

/// The primary counts its good replicas once a second (`refreshGoodSlavesCount` in `replication.c`).
const RECOUNT: Duration = Duration::from_secs(2);

/// A lost primary that may still acknowledge writes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Doubt {
    /// Its pod, or the node where it was never seen in one.
    pub node: String,
    /// What is known of it.
    pub why: String,
    /// What ends the doubt.
    pub cure: String,
}

/// The first doubt about the lost primaries; none: not one of them can acknowledge writes.
pub fn doubt(survey: &Survey<'_>) -> Option<Doubt> {
    let mut doubts: Vec<(&MissingNode, Doubt)> = Vec::new();
    for (id, missing_node) in survey.lost_primaries() {
        if let Some(doubt) = doubt_about(survey, id, missing_node) {
            doubts.push((missing_node, doubt));
        }
    }
    let (_, all) = survey.quorum();
    // One that others reach and this process does not may reach the doubtful ones as well.
    let owners = survey.missing.values().filter(|one| !one.slots.is_empty());
    let between = owners.filter(|one| !one.is_lost()).count();
    let is_minority = (doubts.len() + between) * 2 <= all;
    let timed_out = |(missing_node, _): &(&MissingNode, Doubt)| has_timed_out(survey, missing_node);
    if is_minority && doubts.iter().all(timed_out) {
        return None;
    }
    doubts.into_iter().next().map(|(_, doubt)| doubt)
}

fn doubt_about(survey: &Survey<'_>, id: NodeId, missing_node: &MissingNode) -> Option<Doubt> {
    if refuses_writes(survey, id, missing_node) {
        return None;
    }
    let unknown = || Doubt {
        node: format!("node {}", id.short()),
        why: "it was never seen in a pod of this cluster".to_owned(),
        cure: "stop its server".to_owned(),
    };
    let Some(home) = survey.home(missing_node) else {
        return Some(unknown());
    };
    let pod = home.expected.pod.clone();
    match home.expected.former.get(&id) {
        Some(ProcessEvidence::Ended(_)) => None,
        Some(ProcessEvidence::MayRun { why, cure }) => Some(Doubt {
            node: pod,
            why: why.clone(),
            cure: cure.clone(),
        }),
        None => Some(Doubt {
            node: pod,
            ..unknown()
        }),
    }
}

/// Whether it has been without a majority for a node timeout, if the doubtful ones are no majority.
fn has_timed_out(survey: &Survey<'_>, missing_node: &MissingNode) -> bool {
    let limit = survey.wanted.node_timeout * 2;
    missing_node.failing_by_all
        || unlinked_for(survey, missing_node).is_some_and(|since| since > limit)
}

/// How long all its replicas that answered have been without a link to it.
fn unlinked_for(survey: &Survey<'_>, missing_node: &MissingNode) -> Option<Duration> {
    let links = replicas(survey, missing_node).map(|one| {
        let link = one.report.replication.upstream.as_ref()?;
        Some(Duration::from_secs(link.down_seconds?))
    });
    links.min().flatten()
}

fn replicas<'a>(
    survey: &'a Survey<'_>,
    missing_node: &'a MissingNode,
) -> impl Iterator<Item = Live<'a>> {
    let indexes = missing_node.replicas.iter();
    indexes.filter_map(|index| survey.by_index(*index))
}

/// Whether `min-replicas-to-write` keeps it from acknowledging writes. It has to have been in force on the primary itself when that was last
/// asked, and still be on its replicas: what is set while the primary is away does not reach it.
fn refuses_writes(survey: &Survey<'_>, id: NodeId, missing_node: &MissingNode) -> bool {
    let here: Vec<Live<'_>> = replicas(survey, missing_node).collect();
    let own = survey.home(missing_node);
    let Some(own) = own.and_then(|home| home.expected.refusals.get(&id)) else {
        return false;
    };
    let settings = || {
        let settings = here.iter().map(|one| one.report.refusal);
        settings.chain([*own])
    };
    let needed = settings().map(|one| one.min_replicas).min();
    let max_lag = settings().map(|one| one.max_lag);
    let (shortest, longest) = (max_lag.clone().min(), max_lag.max());
    let (Some(needed), Some(shortest), Some(longest)) = (needed, shortest, longest) else {
        return false;
    };
    // No need to read all tables.
    if needed == 0 {
        return false;
    }
    // Replicas that any node knows and that did not answer may be on its side.
    let mut away: Vec<NodeId> = survey
        .live
        .iter()
        .flat_map(|one| one.report.view.nodes())
        .filter(|node| node.primary == Some(id))
        .map(|node| node.id)
        .filter(|replica| !here.iter().any(|one| one.report.id() == *replica))
        .collect();
    away.sort_unstable();
    away.dedup();
    // A limit of 0 switches the check off.
    !shortest.is_zero()
        && needed > away.len() as u64
        && unlinked_for(survey, missing_node).is_some_and(|since| since >= longest + RECOUNT)
}

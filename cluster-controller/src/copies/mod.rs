//! How long nodes may have missed writes: until when each had everything that was written, and since when lost ones have written nothing. How
//! much a replica lacks cannot be read from the replica once it has been started again, and its primary may be gone by then.
//!
//! It is kept in memory as long as the nodes are looked at, and in the status once a node lacks something or gives no sign of life.

use crate::{
    fencing::{LastSeen, LastSeenNodes},
    redis::{
        identity::KnownNodes,
        member::{ExpectedNode, Member, Report},
        survey::Survey,
    },
};
use common::cluster::{info::UpstreamLink, topology::NodeId};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};

/// After a longer pause (another replica has led meanwhile) a node that gives no sign of life may have been there in between.
const GAP: SignedDuration = SignedDuration::from_mins(2);
/// A server that is started says that it heard of the others just then: what it heard of them later than this is true.
const STARTING: SignedDuration = SignedDuration::from_secs(10);

/// The nodes of all clusters.
#[derive(Debug, Default)]
pub struct CopyTracker {
    clusters: Mutex<HashMap<(String, String), Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    looked: Timestamp,
    current: HashMap<NodeId, Timestamp>,
    unresponsive: HashMap<NodeId, Timestamp>,
}

/// What the looks at a cluster say of the nodes that lack something now.
#[derive(Debug, Default)]
pub struct CopyTimes {
    until: BTreeMap<NodeId, Timestamp>,
    unresponsive: BTreeMap<NodeId, Timestamp>,
}

impl CopyTracker {
    /// Takes in a look at a cluster.
    pub fn note(
        &self,
        (namespace, name): (&str, &str),
        survey: &Survey<'_>,
        recorded: &LastSeenNodes,
        now: Timestamp,
    ) -> CopyTimes {
        let key = (namespace.to_owned(), name.to_owned());
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = clusters.entry(key).or_default();
        let known = &survey.wanted.known;
        seen.current.retain(|id, _| known.contains_key(id));
        let current = current(survey, now);
        for (id, time) in &current {
            let last = seen.current.entry(*id).or_insert(*time);
            *last = (*last).max(*time);
        }
        seen.note_unresponsive(survey, recorded, now);
        seen.looked = now;
        let lacking = known.keys().filter(|id| !current.contains_key(id));
        let until = |id: &NodeId| {
            let recorded = recorded.get(id).and_then(|last| last.current_until);
            let last = seen.current.get(id).copied().max(recorded)?;
            // The clock of another controller may be ahead.
            Some((*id, last.min(now)))
        };
        CopyTimes {
            until: lacking.filter_map(until).collect(),
            unresponsive: seen
                .unresponsive
                .iter()
                .map(|(id, time)| (*id, *time))
                .collect(),
        }
    }

    /// The cluster is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.remove(&(namespace.to_owned(), name.to_owned()));
    }
}

impl Seen {
    /// A node is unresponsive from the first look at which it neither answers nor is heard of by others.
    fn note_unresponsive(&mut self, survey: &Survey<'_>, recorded: &LastSeenNodes, now: Timestamp) {
        let is_first = now.duration_since(self.looked) > GAP || now < self.looked;
        let members = survey.members.iter().map(|one| &one.expected);
        let homes: HashMap<&str, &ExpectedNode> =
            members.map(|one| (one.pod.as_str(), one)).collect();
        let before = std::mem::take(&mut self.unresponsive);
        for (id, pod) in &survey.wanted.known {
            let missing = survey.missing.get(id);
            if survey.by_id(*id).is_some() || missing.is_some_and(|one| !one.is_lost()) {
                continue;
            }
            let home = homes.get(pod.as_str()).copied();
            let mut since = before.get(id).copied();
            if is_first {
                let last = recorded.get(id);
                let recorded = last.and_then(|last| last.unresponsive_since);
                since = since.or(recorded);
                since = since.filter(|since| !may_have_run(home, last, *since));
            }
            let heard = last_heard(survey, *id, now);
            if since.is_none() && survey.live.is_empty() && !is_down(home) {
                // Where no node answers, the network between them and this process is the likely cause.
                continue;
            }
            // It may have ended long before the first look.
            let begun = heard.filter(|_| is_first).unwrap_or(now);
            let since = since.unwrap_or(begun);
            let since = heard.map_or(since, |heard| heard.max(since));
            self.unresponsive.insert(*id, whole_seconds(since));
        }
    }
}

/// Whether a server may have run since then in the pod that a node was last seen in, or in a later one of that name.
fn may_have_run(home: Option<&ExpectedNode>, last: Option<&LastSeen>, time: Timestamp) -> bool {
    let started = home.and_then(|home| home.last_started);
    let uids = home.and_then(|home| home.pod_uid.as_ref());
    let uids = uids.zip(last.and_then(|last| last.pod_uid.as_ref()));
    started.is_some_and(|started| started > time) || uids.is_some_and(|(now, then)| now != then)
}

/// Whether Kubernetes says, too, that the pod does not serve.
fn is_down(home: Option<&ExpectedNode>) -> bool {
    home.is_none_or(|home| !home.exists || home.down_since.is_some())
}

/// As the API server keeps it.
fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

impl CopyTimes {
    /// Tells it the members, each of the node ids that were last seen in its pod.
    pub fn mark(&self, members: &mut [Member], known: &KnownNodes) {
        for Member { expected, .. } in members {
            let of_pod = |times: &BTreeMap<NodeId, Timestamp>| {
                let times = times
                    .iter()
                    .filter(|(id, _)| known.get(id) == Some(&expected.pod));
                times.map(|(id, time)| (*id, *time)).collect()
            };
            (expected.current_until, expected.unresponsive_since) =
                (of_pod(&self.until), of_pod(&self.unresponsive));
        }
    }
}

/// The nodes that have everything that was written, and until when they surely had: the primaries whose claim to their slots is the newest,
/// and the replicas that are linked to one of them. Without a majority nothing is written; and a server that has just been started may
/// believe that it is a primary, since it has not heard yet who took over.
fn current(survey: &Survey<'_>, now: Timestamp) -> HashMap<NodeId, Timestamp> {
    if !survey.has_quorum() {
        return HashMap::new();
    }
    let owns = |id: NodeId| survey.owned_by(id).is_some();
    let reports = survey.live.iter().map(|one| one.report);
    let current = reports.filter_map(|report| {
        let own = report.own();
        let until = match own.primary {
            Some(primary) if owns(primary) => linked(report)?.current_until(now)?,
            None if owns(own.id) => now,
            Some(_) | None => return None,
        };
        Some((own.id, whole_seconds(until)))
    });
    current.collect()
}

fn linked(report: &Report) -> Option<&UpstreamLink> {
    let link = report.replication.upstream.as_ref();
    link.filter(|link| link.follows())
}

/// When the others last heard of a node that they do not reach, as far as they were there.
fn last_heard(survey: &Survey<'_>, id: NodeId, now: Timestamp) -> Option<Timestamp> {
    let reports = survey.live.iter().map(|one| one.report);
    let heard = reports.filter_map(|report| {
        let heard = report.view.last_heard(id)?;
        let up = i64::try_from(report.server.uptime_seconds).ok()?;
        let started = now.checked_sub(SignedDuration::from_secs(up)).ok()?;
        (heard > started + STARTING).then_some(heard)
    });
    heard.max()
}

#[cfg(test)]
mod tests;

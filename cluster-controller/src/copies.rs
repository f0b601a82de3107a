//! When each node was last seen with all that was written: as a primary that answers, or as a replica that is linked to its primary. How much a
//! replica lacks cannot be read from the replica once it has been started again, and its primary may be gone by then.
//!
//! It is kept in memory as long as the nodes are looked at, and in the status once a node lacks something.

use crate::{
    fencing::LastSeenNodes,
    redis::{
        identity::KnownNodes,
        member::{Member, Report},
    },
};
use common::cluster::topology::NodeId;
use k8s_openapi::jiff::Timestamp;
use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// After a longer pause (another replica has led meanwhile) what is remembered says nothing any more.
const GAP: Duration = Duration::from_mins(2);

/// The nodes of all clusters.
#[derive(Debug, Default)]
pub struct CopyTracker {
    clusters: Mutex<HashMap<(String, String), Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    looked: Timestamp,
    current: HashMap<NodeId, Timestamp>,
}

impl CopyTracker {
    /// Takes in a look at a cluster, and tells the members until when those of their node ids that lack something now had everything.
    pub fn note(
        &self,
        (namespace, name): (&str, &str),
        members: &mut [Member],
        known: &KnownNodes,
        recorded: &LastSeenNodes,
        now: Timestamp,
    ) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = clusters.entry(key).or_default();
        if now.duration_since(seen.looked).unsigned_abs() > GAP {
            seen.current.clear();
        }
        seen.looked = now;
        seen.current.retain(|id, _| known.contains_key(id));
        let reports = members.iter().filter_map(Member::report);
        let current: HashSet<NodeId> = reports
            .filter(|report| report.has_everything())
            .map(Report::id)
            .collect();
        seen.current.extend(current.iter().map(|id| (*id, now)));
        for Member { expected, .. } in members {
            let ids = known.iter().filter(|(_, pod)| **pod == expected.pod);
            let lacking = ids.map(|(id, _)| *id).filter(|id| !current.contains(id));
            let until = |id: NodeId| {
                let recorded = || recorded.get(&id)?.current_until;
                Some((id, seen.current.get(&id).copied().or_else(recorded)?))
            };
            expected.current_until = lacking.filter_map(until).collect();
        }
    }

    /// The cluster is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.remove(&(namespace.to_owned(), name.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fencing::LastSeen,
        redis::{
            member::Answer,
            plan::{simulation::World, tests::formed},
        },
    };

    const PLACE: (&str, &str) = ("team", "shop");

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A cluster, with the pods of a primary and of its replica.
    fn pair() -> (World, KnownNodes, usize, usize) {
        let mut world = formed(3, 1, true);
        let known = crate::redis::identity::known_nodes(&world.wanted, &world.members(at(0)));
        world.wanted.known.clone_from(&known);
        let (primary, replica) = if world.owns(0) { (0, 1) } else { (1, 0) };
        (world, known, primary, replica)
    }

    fn unlink(member: &mut Member) {
        let Answer::Report(report) = &mut member.answer else {
            panic!("no report")
        };
        report.replication.upstream.as_mut().unwrap().up = false;
    }

    fn until(members: &[Member], index: usize) -> Option<Timestamp> {
        members[index]
            .expected
            .current_until
            .values()
            .next()
            .copied()
    }

    #[test]
    fn the_last_look_with_everything_is_remembered() {
        let (world, known, primary, replica) = pair();
        let tracker = CopyTracker::default();
        let recorded = LastSeenNodes::new();
        let look = |second: i64, change: &dyn Fn(&mut [Member])| {
            let mut members = world.members(at(second));
            change(&mut members);
            tracker.note(PLACE, &mut members, &known, &recorded, at(second));
            (until(&members, primary), until(&members, replica))
        };
        let unresponsive = |members: &mut [Member]| {
            for index in [primary, replica] {
                members[index].answer = Answer::Unresponsive("down".into());
            }
        };
        assert_eq!(look(0, &|_| ()), (None, None));
        assert_eq!(
            look(30, &|members| unlink(&mut members[replica])),
            (None, Some(at(0)))
        );
        assert_eq!(look(60, &unresponsive), (Some(at(30)), Some(at(0))));
        assert_eq!(look(90, &unresponsive), (Some(at(30)), Some(at(0))));
        assert_eq!(look(120, &|_| ()), (None, None));
        // No look for long: what happened meanwhile is not known.
        assert_eq!(look(600, &unresponsive), (None, None));
    }

    /// What another controller recorded when the node began to lack something.
    #[test]
    fn a_new_controller_reads_the_record() {
        let (world, known, _, replica) = pair();
        let mut members = world.members(at(500));
        let id = members[replica].report().unwrap().id();
        let seen = LastSeen {
            current_until: Some(at(100)),
            ..LastSeen::default()
        };
        let recorded = LastSeenNodes::from([(id, seen)]);
        let tracker = CopyTracker::default();
        unlink(&mut members[replica]);
        tracker.note(PLACE, &mut members, &known, &recorded, at(500));
        assert_eq!(until(&members, replica), Some(at(100)));
    }
}

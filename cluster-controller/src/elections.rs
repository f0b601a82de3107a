//! Which servers have been elected lately: memory that may be lost.
//!
//! A server remembers its last election, also the one that it won (`failover_auth_time` in `clusterHandleSlaveFailover` of the engine's
//! `cluster.c`; Valkey 9 begins another one). Asked to take over again within two node timeouts, it takes the votes of then for those of now,
//! and claims slots with an old epoch; within four it does not stand, and its primary accepts no write for the five seconds of the attempt.

use crate::redis::member::Member;
use common::cluster::topology::NodeId;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Node timeouts for which a server remembers an election.
const TIMEOUTS: u32 = 4;
/// The least that four of them count for: the engine takes no timeout of an election for less than 2 s, and tries again after two.
const LEAST: Duration = Duration::from_secs(4);

/// The primaries of all clusters, as they were seen.
#[derive(Debug, Default)]
pub struct ElectionTracker {
    clusters: Mutex<HashMap<(String, String), Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Nodes that were primaries when they last answered.
    primaries: HashSet<NodeId>,
    /// The first look at which a node was one: it was elected before. Kept as long as a server remembers it.
    elected: HashMap<NodeId, Timestamp>,
}

impl ElectionTracker {
    /// Takes in a look at a cluster, and marks the nodes that were elected lately.
    pub fn note(
        &self,
        (namespace, name): (&str, &str),
        members: &mut [Member],
        node_timeout: Duration,
        now: Timestamp,
    ) {
        let remembered = LEAST.max(node_timeout * TIMEOUTS);
        let remembered = SignedDuration::try_from(remembered).unwrap_or(SignedDuration::MAX);
        let key = (namespace.to_owned(), name.to_owned());
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let Seen { primaries, elected } = clusters.entry(key).or_default();
        elected.retain(|_, since| now.duration_since(*since) <= remembered);
        for member in members {
            let Some(report) = member.report() else {
                continue;
            };
            let (id, own) = (report.id(), report.own());
            if !own.is_primary() || own.slots.is_empty() {
                primaries.remove(&id);
            } else if primaries.insert(id) {
                elected.insert(id, now);
            }
            member.expected.elected_lately = elected.contains_key(&id);
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
    use crate::redis::plan::{simulation::World, tests::formed};

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn look(tracker: &ElectionTracker, world: &World, second: i64) -> Vec<bool> {
        let now = Timestamp::from_second(second).unwrap();
        let mut members = world.members(now);
        tracker.note(("team", "shop"), &mut members, TIMEOUT, now);
        let lately = members.iter().map(|one| one.expected.elected_lately);
        lately.collect()
    }

    #[test]
    fn a_primary_counts_as_elected_when_it_is_first_seen() {
        let (tracker, mut world) = (ElectionTracker::default(), formed(3, 1, true));
        look(&tracker, &world, 0);
        assert!(!look(&tracker, &world, 100).contains(&true));
        assert!(world.owns(0) && !world.owns(1));
        world.hand_over(1, 0);
        assert_eq!(look(&tracker, &world, 101)[..2], [false, true]);
        // Back again: the one of before is the one that was not elected lately, until it is.
        assert_eq!(look(&tracker, &world, 105)[..2], [false, true]);
        (0..5).for_each(|_| world.tick());
        world.hand_over(0, 1);
        assert_eq!(look(&tracker, &world, 106)[..2], [true, true]);
        assert_eq!(look(&tracker, &world, 121)[..2], [true, true]);
        assert_eq!(look(&tracker, &world, 122)[..2], [true, false]);
        assert_eq!(look(&tracker, &world, 127)[..2], [false, false]);
    }
}

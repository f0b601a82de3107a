//! Since when this process has had no answer from a node: a clock beside what Kubernetes says of the pod. A pod that does not
//! exist says nothing at all, and one that has been unready for hours may have answered until a moment ago.
//!
//! It is kept in memory only. After a restart the waiting starts again, which costs time and nothing else.

use crate::redis::member::{Answer, Member};
use k8s_openapi::jiff::Timestamp;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// After a longer pause (another replica has led meanwhile) what is remembered says nothing any more.
const GAP: Duration = Duration::from_mins(2);

/// The silent nodes of all clusters.
#[derive(Debug, Default)]
pub struct UnresponsiveTracker {
    clusters: Mutex<HashMap<(String, String), Silent>>,
}

#[derive(Debug, Default)]
struct Silent {
    looked: Timestamp,
    since: HashMap<String, Timestamp>,
}

impl UnresponsiveTracker {
    /// Takes in a look at a cluster, and corrects since when the silent members are down: `exists` says whether there is a pod.
    pub fn note(
        &self,
        (namespace, name): (&str, &str),
        members: &mut [Member],
        exists: impl Fn(&str) -> bool,
        now: Timestamp,
    ) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = clusters.entry(key).or_default();
        if now.duration_since(silent.looked).unsigned_abs() > GAP {
            silent.since.clear();
        }
        silent.looked = now;
        for Member { expected, answer } in members {
            match answer {
                Answer::Report(_) | Answer::Loading => {
                    silent.since.remove(&expected.pod);
                }
                Answer::Absent(_) | Answer::Unresponsive(_) | Answer::Foreign(_) => {
                    let first = *silent.since.entry(expected.pod.clone()).or_insert(now);
                    expected.down_since = if exists(&expected.pod) {
                        expected.down_since.map(|since| since.max(first))
                    } else {
                        Some(first)
                    };
                }
            }
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
    use crate::redis::member::ExpectedNode;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// What comes out for a node, looked at again and again.
    fn down_since(looks: &[(i64, Answer, Option<i64>)], exists: bool) -> Option<Timestamp> {
        let unresponsive = UnresponsiveTracker::default();
        let mut last = None;
        for (second, answer, kubernetes) in looks {
            let expected = ExpectedNode {
                pod: "shop-0-0".into(),
                shard: 0,
                ordinal: 0,
                address: None,
                address_is_current: true,
                proof: None,
                kubernetes_node: None,
                terminating: false,
                down_since: kubernetes.map(at),
            };
            let mut members = [Member {
                expected,
                answer: answer.clone(),
            }];
            unresponsive.note(("team", "shop"), &mut members, |_| exists, at(*second));
            last = members[0].expected.down_since;
        }
        last
    }

    #[test]
    fn the_later_clock_counts() {
        let silent = || Answer::Unresponsive("no route".into());
        let loading = Answer::Loading;
        // Unready for long, silent for a moment.
        let looks = [(1000, silent(), Some(10)), (1030, silent(), Some(10))];
        assert_eq!(down_since(&looks, true), Some(at(1000)));
        // It has been heard of in between.
        let looks = [
            (1000, silent(), Some(10)),
            (1010, loading, Some(10)),
            (1020, silent(), Some(10)),
        ];
        assert_eq!(down_since(&looks, true), Some(at(1020)));
        // Ready according to Kubernetes: no second witness.
        assert_eq!(down_since(&[(1000, silent(), None)], true), None);
        // Started again a moment ago.
        let looks = [(1000, silent(), Some(10)), (1030, silent(), Some(1029))];
        assert_eq!(down_since(&looks, true), Some(at(1029)));
    }

    #[test]
    fn a_missing_pod_is_waited_for_by_our_own_clock() {
        let absent = || Answer::Absent("there is no such pod".into());
        let looks = [(1000, absent(), None), (1040, absent(), None)];
        assert_eq!(down_since(&looks, false), Some(at(1000)));
        // No reconcile for a long time.
        let looks = [(1000, absent(), None), (9000, absent(), None)];
        assert_eq!(down_since(&looks, false), Some(at(9000)));
    }
}

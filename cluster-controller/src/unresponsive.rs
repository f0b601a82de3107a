//! Since when this process has had no answer from a node: a clock beside what Kubernetes says of the pod. A pod that does not
//! exist says nothing at all, and one that has been unready for hours may have answered until a moment ago.
//!
//! It is kept in memory only. After a restart the waiting starts again, which costs time and nothing else.

use crate::redis::{
    identity::KnownNodes,
    member::{Answer, Member},
};
use k8s_openapi::jiff::Timestamp;
use std::{
    collections::{BTreeMap, HashMap},
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
    /// Pods that do not exist, or of which an earlier one was looked for.
    gone: BTreeMap<String, Timestamp>,
    /// Whether the last look was left without consequences.
    passed_over: bool,
}

impl UnresponsiveTracker {
    /// Takes in a look at a cluster, and corrects since when the silent members are down: `exists` says whether there is a pod.
    ///
    /// Whether the look is to be left without consequences: a node has missed a single answer while its kubelet reports it as ready and
    /// every other node that answered is linked to it. That happens once in a row at most.
    pub fn note(
        &self,
        (namespace, name): (&str, &str),
        members: &mut [Member],
        exists: impl Fn(&str) -> bool,
        known: &KnownNodes,
        now: Timestamp,
    ) -> bool {
        let key = (namespace.to_owned(), name.to_owned());
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = clusters.entry(key).or_default();
        let is_first = now.duration_since(silent.looked).unsigned_abs() > GAP;
        if is_first {
            silent.since.clear();
            silent.gone.clear();
        }
        silent.looked = now;
        silent.gone.retain(|pod, _| !exists(pod));
        let missed = members.iter().any(|member| {
            let pod = &member.expected.pod;
            !silent.since.contains_key(pod)
                && exists(pod)
                && missed_an_answer(member, members, known)
        });
        silent.passed_over = missed && !is_first && !silent.passed_over;
        for Member { expected, answer } in members.iter_mut() {
            if !exists(&expected.pod) {
                silent.gone.entry(expected.pod.clone()).or_insert(now);
            }
            match answer {
                Answer::Report(_) | Answer::Loading | Answer::Busy => {
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
        silent.passed_over
    }

    /// Since when pods that do not exist have been seen missing, by name.
    pub fn gone_since(&self, (namespace, name): (&str, &str)) -> BTreeMap<String, Timestamp> {
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = clusters.get(&(namespace.to_owned(), name.to_owned()));
        silent.map(|silent| silent.gone.clone()).unwrap_or_default()
    }

    /// The cluster is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.remove(&(namespace.to_owned(), name.to_owned()));
    }
}

/// Whether a node that did not answer is alive all the same: its kubelet reports it as ready, and every other node that answered is linked
/// to it. Where no node answered, the network between them and this process is the likely cause.
fn missed_an_answer(member: &Member, members: &[Member], known: &KnownNodes) -> bool {
    let expected = &member.expected;
    let silent = matches!(member.answer, Answer::Unresponsive(_));
    let reported_ready =
        expected.down_since.is_none() && expected.address_is_current && !expected.terminating;
    if !silent || !reported_ready {
        return false;
    }
    let ids = known.iter().filter(|(_, pod)| **pod == expected.pod);
    let reports = || members.iter().filter_map(Member::report);
    ids.map(|(id, _)| id).any(|id| {
        reports().all(|report| {
            let node = report.view.get(*id);
            node.is_none_or(|node| node.linked && !node.is_failing())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::member::{ExpectedNode, ZoneLabel};
    use common::cluster::topology::NodeId;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// What comes out for a node, looked at again and again.
    fn down_since(looks: &[(i64, Answer, Option<i64>)], exists: bool) -> Option<Timestamp> {
        let unresponsive = UnresponsiveTracker::default();
        let mut last = None;
        for (second, answer, kubernetes) in looks {
            let expected = ExpectedNode {
                down_since: kubernetes.map(at),
                zone: ZoneLabel::Absent,
                ..ExpectedNode::new("shop-0-0".into(), 0, 0)
            };
            let mut members = [Member {
                expected,
                answer: answer.clone(),
            }];
            let known = KnownNodes::new();
            unresponsive.note(
                ("team", "shop"),
                &mut members,
                |_| exists,
                &known,
                at(*second),
            );
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

    fn silent_member() -> Member {
        Member {
            expected: ExpectedNode {
                zone: ZoneLabel::Absent,
                ..ExpectedNode::new("shop-0-0".into(), 0, 0)
            },
            answer: Answer::Unresponsive("no answer in time".into()),
        }
    }

    /// Which looks are left without consequences.
    fn passed_over(looks: &[(i64, Member)], known: &KnownNodes) -> Vec<bool> {
        let tracker = UnresponsiveTracker::default();
        let looks = looks.iter().map(|(second, member)| {
            let mut members = [member.clone()];
            tracker.note(("team", "shop"), &mut members, |_| true, known, at(*second))
        });
        looks.collect()
    }

    #[test]
    fn a_single_missed_answer_is_no_outage() {
        let known = KnownNodes::from([(NodeId::from_bytes([1; 20]), "shop-0-0".into())]);
        let answering = Member {
            answer: Answer::Loading,
            ..silent_member()
        };
        let silent = silent_member();
        let looks = [
            (1000, answering.clone()),
            (1001, silent.clone()),
            (1002, silent.clone()),
            (1003, answering.clone()),
            (1004, silent.clone()),
        ];
        let found = passed_over(&looks, &known);
        assert_eq!(found, [false, true, false, false, true]);
        // Nothing is known of before, the kubelet says that it is not ready, or it is being deleted.
        assert_eq!(passed_over(&[(1000, silent.clone())], &known), [false]);
        let mut unready = silent.clone();
        unready.expected.down_since = Some(at(1000));
        let mut leaving = silent.clone();
        leaving.expected.terminating = true;
        for other in [unready, leaving] {
            let looks = [(1000, answering.clone()), (1001, other)];
            assert_eq!(passed_over(&looks, &known), [false, false]);
        }
        // A node that was never part of the cluster is missed by none.
        let looks = [(1000, answering), (1001, silent)];
        assert_eq!(passed_over(&looks, &KnownNodes::new()), [false, false]);
    }
}

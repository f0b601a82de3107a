//! What servers answered when their settings were changed: memory that may be lost. Without it a setting is set once more.

use super::answer::{LiveOutcome, LiveResult};
use common::cluster::topology::NodeId;
use k8s_openapi::jiff::Timestamp;
use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The answer to a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// The value that was to be set.
    pub value: String,
    /// What came of it.
    pub result: LiveResult,
    /// When.
    pub at: Timestamp,
}

/// Answers of a node by the name of the setting.
pub type NodeAnswers = HashMap<String, Remembered>;
/// Answers of a cluster.
pub type ClusterAnswers = HashMap<NodeId, NodeAnswers>;

#[derive(Debug, Default)]
struct Tracked {
    answers: ClusterAnswers,
    restart_due: bool,
}

/// Answers of all clusters. Bounded by the nodes that the clusters have and the settings that they want.
#[derive(Debug, Default)]
pub struct SettingsTracker {
    clusters: Mutex<HashMap<(String, String), Tracked>>,
}

impl SettingsTracker {
    fn clusters(&self) -> MutexGuard<'_, HashMap<(String, String), Tracked>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the nodes of a cluster have answered.
    pub fn answers(&self, (namespace, name): (&str, &str)) -> ClusterAnswers {
        let clusters = self.clusters();
        let tracked = clusters.get(&(namespace.to_owned(), name.to_owned()));
        tracked
            .map(|tracked| tracked.answers.clone())
            .unwrap_or_default()
    }

    /// Remembers answers.
    pub fn note(&self, (namespace, name): (&str, &str), outcomes: &[LiveOutcome], at: Timestamp) {
        let mut clusters = self.clusters();
        let place = (namespace.to_owned(), name.to_owned());
        let tracked = clusters.entry(place).or_default();
        for outcome in outcomes {
            let answers = tracked.answers.entry(outcome.change.node).or_default();
            let remembered = Remembered {
                value: outcome.change.value.clone(),
                result: outcome.result.clone(),
                at,
            };
            answers.insert(outcome.change.name.clone(), remembered);
        }
    }

    /// Forgets nodes that are gone and settings that are not wanted any more; remembers whether pods wait for a restart.
    pub fn keep(
        &self,
        (namespace, name): (&str, &str),
        nodes: &HashSet<NodeId>,
        is_wanted: impl Fn(&str) -> bool,
        restart_due: bool,
    ) {
        let mut clusters = self.clusters();
        let place = (namespace.to_owned(), name.to_owned());
        let tracked = clusters.entry(place).or_default();
        tracked.restart_due = restart_due;
        tracked.answers.retain(|node, answers| {
            answers.retain(|name, _| is_wanted(name));
            nodes.contains(node) && !answers.is_empty()
        });
    }

    /// Whether pods waited for a restart in the last reconcile.
    pub fn restart_due(&self, (namespace, name): (&str, &str)) -> bool {
        let clusters = self.clusters();
        let tracked = clusters.get(&(namespace.to_owned(), name.to_owned()));
        tracked.is_some_and(|tracked| tracked.restart_due)
    }

    /// The cluster is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.clusters()
            .remove(&(namespace.to_owned(), name.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::answer::LiveChange;

    const PLACE: (&str, &str) = ("team", "shop");

    fn node(letter: char) -> NodeId {
        letter.to_string().repeat(40).parse().unwrap()
    }

    fn outcome(node: NodeId, name: &str) -> LiveOutcome {
        LiveOutcome {
            change: LiveChange {
                member: 0,
                pod: "shop-0-0".into(),
                node,
                name: name.into(),
                value: "1gb".into(),
                was: None,
                drifted: false,
            },
            result: LiveResult::Reads("1073741824".into()),
        }
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let tracker = SettingsTracker::default();
        let (a, b) = (node('a'), node('b'));
        let outcomes = [outcome(a, "maxmemory"), outcome(a, "hz"), outcome(b, "hz")];
        tracker.note(PLACE, &outcomes, Timestamp::UNIX_EPOCH);
        assert_eq!(tracker.answers(PLACE).len(), 2);
        assert!(tracker.answers(("team", "other")).is_empty());
        tracker.keep(PLACE, &HashSet::from([a]), |name| name == "hz", true);
        let answers = tracker.answers(PLACE);
        assert_eq!((answers.len(), answers[&a].len()), (1, 1));
        assert!(tracker.restart_due(PLACE));
        tracker.forget(PLACE.0, PLACE.1);
        assert!(tracker.answers(PLACE).is_empty() && !tracker.restart_due(PLACE));
    }
}

//! Why a StatefulSet has not created a pod: the newest FailedCreate Event of its controller, which is the only place that says it.
//!
//! Nothing is read while all pods exist. The API server has no index of Events: it reads all those of a namespace for each list, and with a
//! thousand of them that takes it a tenth of a second. One answer serves every cluster of its namespace for a while.

use crate::pods::Pods;
use common::kubernetes::call::{self, ApiError};
use k8s_openapi::{
    api::core::v1::Event,
    jiff::{SignedDuration, Timestamp},
};
use kube::{Api, Client, api::ListParams};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A pod that has been missing for less is being created.
const PATIENCE: SignedDuration = SignedDuration::from_secs(5);
/// How long an answer is good for.
const FRESH: SignedDuration = SignedDuration::from_secs(15);
/// An Event that is older than this when a pod is first seen to be missing says nothing about that pod. The StatefulSet controller tries
/// again after a quarter of an hour at most, so that a controller that starts finds the newest one.
const OLDEST: SignedDuration = SignedDuration::from_mins(17);
/// Events of a namespace that are looked at.
const MOST_EVENTS: u32 = 500;

/// A cluster by namespace and name.
type Key = (String, String);

/// What is known of the sets whose pods are missing.
pub struct PodEvents {
    client: Client,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Since when pods of sets are missing, by cluster and set.
    missing: HashMap<Key, HashMap<String, Timestamp>>,
    /// By namespace.
    answers: HashMap<String, AnsweredEvents>,
}

/// What the API server has answered last for a namespace.
#[derive(Debug, Default)]
struct AnsweredEvents {
    /// When it was asked.
    at: Timestamp,
    /// Why sets miss pods.
    why: HashMap<String, Explanation>,
}

/// Why a set misses a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Explanation {
    /// When it was said.
    at: Timestamp,
    words: String,
}

impl PodEvents {
    /// Nothing is known.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            known: Mutex::default(),
        }
    }

    /// Why pods of a cluster are missing, by pod; of those that `names` lists and `pods` lacks.
    pub async fn why_missing(
        &self,
        (namespace, cluster): (&str, &str),
        names: impl Iterator<Item = String>,
        pods: &Pods,
    ) -> BTreeMap<String, String> {
        let absent: Vec<String> = names.filter(|name| !pods.contains_key(name)).collect();
        let sets: BTreeSet<&str> = absent.iter().map(|pod| set_of(pod)).collect();
        let key = (namespace.to_owned(), cluster.to_owned());
        if self.is_due(&key, &sets, Timestamp::now()) {
            match self.read(namespace).await {
                Ok(why) => self.note(namespace, why),
                Err(error) => tracing::debug!(%error, "Events of StatefulSets were not read"),
            }
        }
        let known = self.lock();
        let why = |pod: &String| known.why(&key, set_of(pod));
        absent
            .iter()
            .filter_map(|pod| Some((pod.clone(), why(pod)?)))
            .collect()
    }

    /// The cluster is gone.
    pub fn forget(&self, namespace: &str, cluster: &str) {
        let key = (namespace.to_owned(), cluster.to_owned());
        self.lock().forget(&key);
    }

    /// Takes note of the sets with missing pods; returns whether the Events of the namespace are to be read now.
    fn is_due(&self, key: &Key, sets: &BTreeSet<&str>, now: Timestamp) -> bool {
        let mut known = self.lock();
        if sets.is_empty() {
            known.forget(key);
            return false;
        }
        let missing = known.missing.entry(key.clone()).or_default();
        missing.retain(|set, _| sets.contains(set.as_str()));
        for set in sets {
            missing.entry((*set).to_owned()).or_insert(now);
        }
        let passed = |since: Timestamp| now.duration_since(since);
        let is_late = missing.values().any(|since| passed(*since) >= PATIENCE);
        let answer = known.answers.get(&key.0);
        if !is_late || answer.is_some_and(|answer| passed(answer.at) < FRESH) {
            return false;
        }
        // Noted before the answer, so that a failure is not repeated at once, and others do not ask meanwhile.
        let answer = known.answers.entry(key.0.clone());
        answer.or_default().at = now;
        true
    }

    fn note(&self, namespace: &str, why: HashMap<String, Explanation>) {
        if let Some(answer) = self.lock().answers.get_mut(namespace) {
            answer.why = why;
        }
    }

    async fn read(&self, namespace: &str) -> Result<HashMap<String, Explanation>, ApiError> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let selector = "involvedObject.kind=StatefulSet,reason=FailedCreate";
        let parameters = ListParams::default().fields(selector).limit(MOST_EVENTS);
        let what = format!("list the Events of StatefulSets in {namespace}");
        let events = call::read(what, api.list(&parameters)).await?;
        Ok(explained(&events.items))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn why(&self, key: &Key, set: &str) -> Option<String> {
        let since = self.missing.get(key)?.get(set)?;
        let explanation = self.answers.get(&key.0)?.why.get(set)?;
        (explanation.at >= *since - OLDEST).then(|| explanation.words.clone())
    }

    /// No pods of this cluster are missing; an answer goes with the last cluster of its namespace.
    fn forget(&mut self, key: &Key) {
        self.missing.remove(key);
        if !self.missing.keys().any(|other| other.0 == key.0) {
            self.answers.remove(&key.0);
        }
    }
}

/// The newest Event of each set, in words.
fn explained(events: &[Event]) -> HashMap<String, Explanation> {
    let mut newest: HashMap<String, Explanation> = HashMap::new();
    for event in events {
        let set = event.involved_object.name.as_ref();
        let (Some(set), Some(at), Some(message)) = (set, time(event), &event.message) else {
            continue;
        };
        if newest.get(set).is_none_or(|known| known.at < at) {
            let words = explain(message);
            newest.insert(set.clone(), Explanation { at, words });
        }
    }
    newest
}

/// When an Event happened last.
fn time(event: &Event) -> Option<Timestamp> {
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    let only = event.event_time.as_ref().map(|time| time.0);
    let created = event.metadata.creation_timestamp.as_ref();
    last.or(only).or_else(|| created.map(|time| time.0))
}

fn set_of(pod: &str) -> &str {
    pod.rsplit_once('-').map_or(pod, |(set, _)| set)
}

/// `create Pod shop-0-0 in StatefulSet shop-0 failed error: pods "shop-0-0" is forbidden: exceeded quota: …` without what differs from
/// pod to pod, so that the same cause reads the same.
fn explain(message: &str) -> String {
    let cause = message
        .split_once("failed error: ")
        .map_or(message, |(_, cause)| cause);
    let cause = cause
        .split_once("is forbidden: ")
        .map_or(cause, |(_, cause)| cause);
    let cure = if cause.starts_with("exceeded quota") {
        "; raise the ResourceQuota or ask for less"
    } else {
        ""
    };
    format!("Kubernetes does not create it: {cause}{cure}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::{
        api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp,
    };

    fn event(set: &str, second: i64, message: &str) -> Event {
        Event {
            involved_object: ObjectReference {
                name: Some(set.to_owned()),
                ..ObjectReference::default()
            },
            last_timestamp: Some(Time(Timestamp::from_second(second).unwrap())),
            message: Some(message.to_owned()),
            ..Event::default()
        }
    }

    #[test]
    fn a_quota_is_quoted_with_its_cure() {
        // As written by kube-controller-manager.
        let refused = r#"create Pod shop-0-1 in StatefulSet shop-0 failed error: pods "shop-0-1" is forbidden: exceeded quota: small, requested: pods=1, used: pods=2, limited: pods=2"#;
        let events = [
            event("shop-0", 5, "older"),
            event("shop-0", 9, refused),
            event("shop-0", 7, "old"),
            event("shop-1", 10, "no node"),
        ];
        let why = explained(&events);
        assert_eq!(
            why["shop-0"].words,
            "Kubernetes does not create it: exceeded quota: small, requested: pods=1, used: pods=2, limited: pods=2; \
             raise the ResourceQuota or ask for less"
        );
        assert_eq!(
            why["shop-1"].words,
            "Kubernetes does not create it: no node"
        );
        assert!(explained(&[]).is_empty());
    }

    #[tokio::test]
    async fn a_namespace_is_read_after_a_while_and_then_seldom() {
        // Another test may have installed it.
        let _ = common::runtime::client::install_crypto_provider();
        let config = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
        let events = PodEvents::new(Client::try_from(config).unwrap());
        let key = |cluster: &str| ("shop".to_owned(), cluster.to_owned());
        let sets = BTreeSet::from(["demo-0", "demo-1"]);
        let begun = Timestamp::from_second(10_000).unwrap();
        let due = |cluster, after| events.is_due(&key(cluster), &sets, begun + after);
        assert!(!due("demo", SignedDuration::ZERO) && !due("other", SignedDuration::ZERO));
        assert!(due("demo", PATIENCE));
        assert!(!due("other", PATIENCE), "the answer serves both");
        assert!(!due("demo", PATIENCE + FRESH / 2));
        assert!(due("other", PATIENCE + FRESH));
        let old = begun - OLDEST - PATIENCE;
        for (at, counts) in [(old, false), (begun, true)] {
            let words = "no room".to_owned();
            let why = HashMap::from([("demo-1".to_owned(), Explanation { at, words })]);
            events.note("shop", why);
            let found = events.lock().why(&key("demo"), "demo-1");
            assert_eq!(found.is_some(), counts, "{found:?}");
        }
        assert!(!events.is_due(&key("demo"), &BTreeSet::new(), begun));
        assert!(!events.lock().answers.is_empty());
        events.forget("shop", "other");
        assert!(events.lock().answers.is_empty() && events.lock().missing.is_empty());
    }
}

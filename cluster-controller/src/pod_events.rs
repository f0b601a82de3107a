//! Why a StatefulSet has not created a pod, or a pod gets no volumes: the newest FailedCreate or FailedMount Event, which is the only place that
//! says it.
//!
//! Nothing is read while all pods exist and start. The API server has no index of Events: it reads all those of a namespace for each list, and with a
//! thousand of them that takes it a tenth of a second. One answer serves every cluster of its namespace for a while.

use crate::pods::{Pods, start::is_being_created};
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
/// A container that has been waiting for less is being created: its kubelet may have many to create.
const MOUNT_PATIENCE: SignedDuration = SignedDuration::from_secs(20);
/// How long an answer is good for.
const FRESH: SignedDuration = SignedDuration::from_secs(15);
/// An Event that is older than this when a pod is first seen to be missing says nothing about that pod. The StatefulSet controller tries
/// again after a quarter of an hour at most, so that a controller that starts finds the newest one.
const OLDEST: SignedDuration = SignedDuration::from_mins(17);
/// Events of a namespace that are looked at.
const MOST_EVENTS: u32 = 500;

/// A cluster by namespace and name.
type Key = (String, String);

/// What an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Subject {
    /// A StatefulSet that misses a pod.
    Set(String),
    /// A pod whose container has yet to be created.
    Pod(String),
}

impl Subject {
    /// None: the pod has its container.
    fn of(name: &str, pods: &Pods) -> Option<Self> {
        match pods.get(name) {
            None => Some(Self::Set(set_of(name).to_owned())),
            Some(pod) => is_being_created(pod).then(|| Self::Pod(name.to_owned())),
        }
    }

    fn patience(&self) -> SignedDuration {
        match self {
            Self::Set(_) => PATIENCE,
            Self::Pod(_) => MOUNT_PATIENCE,
        }
    }
}

/// What is known of the sets whose pods are missing, and of pods that get no container.
pub struct PodEvents {
    client: Client,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Since when they lack something, by cluster.
    missing: HashMap<Key, HashMap<Subject, Timestamp>>,
    /// By namespace.
    answers: HashMap<String, AnsweredEvents>,
}

/// What the API server has answered last for a namespace.
#[derive(Debug, Default)]
struct AnsweredEvents {
    /// When it was asked.
    at: Timestamp,
    /// The newest Event about each.
    why: HashMap<Subject, Explanation>,
}

/// Why something is missing.
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

    /// Why pods of a cluster are missing or have no container, by pod; of those that `names` lists.
    pub async fn why_missing(
        &self,
        (namespace, cluster): (&str, &str),
        names: impl Iterator<Item = String>,
        pods: &Pods,
    ) -> BTreeMap<String, String> {
        let absent = names.filter_map(|name| Some((Subject::of(&name, pods)?, name)));
        let absent: Vec<(Subject, String)> = absent.collect();
        let subjects: BTreeSet<&Subject> = absent.iter().map(|(subject, _)| subject).collect();
        let key = (namespace.to_owned(), cluster.to_owned());
        if self.is_due(&key, &subjects, Timestamp::now()) {
            match self.read(namespace).await {
                Ok(why) => self.note(namespace, why),
                Err(error) => tracing::debug!(%error, "Events of StatefulSets were not read"),
            }
        }
        let known = self.lock();
        absent
            .into_iter()
            .filter_map(|(subject, pod)| Some((pod, known.why(&key, &subject)?)))
            .collect()
    }

    /// The cluster is gone.
    pub fn forget(&self, namespace: &str, cluster: &str) {
        let key = (namespace.to_owned(), cluster.to_owned());
        self.lock().forget(&key);
    }

    /// Takes note of what lacks something; returns whether the Events of the namespace are to be read now.
    fn is_due(&self, key: &Key, subjects: &BTreeSet<&Subject>, now: Timestamp) -> bool {
        let mut known = self.lock();
        if subjects.is_empty() {
            known.forget(key);
            return false;
        }
        let missing = known.missing.entry(key.clone()).or_default();
        missing.retain(|subject, _| subjects.contains(subject));
        for subject in subjects {
            missing.entry((*subject).clone()).or_insert(now);
        }
        let passed = |since: Timestamp| now.duration_since(since);
        let mut missing = missing.iter();
        let is_late = missing.any(|(subject, since)| passed(*since) >= subject.patience());
        let answer = known.answers.get(&key.0);
        if !is_late || answer.is_some_and(|answer| passed(answer.at) < FRESH) {
            return false;
        }
        // Noted before the answer, so that a failure is not repeated at once, and others do not ask meanwhile.
        let answer = known.answers.entry(key.0.clone());
        answer.or_default().at = now;
        true
    }

    fn note(&self, namespace: &str, why: HashMap<Subject, Explanation>) {
        if let Some(answer) = self.lock().answers.get_mut(namespace) {
            answer.why = why;
        }
    }

    async fn read(&self, namespace: &str) -> Result<HashMap<Subject, Explanation>, ApiError> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let list = async |kind: &str, reason: &str| {
            let selector = format!("involvedObject.kind={kind},reason={reason}");
            let parameters = ListParams::default().fields(&selector).limit(MOST_EVENTS);
            let what = format!("list the Events of kind {kind} in {namespace}");
            call::read(what, api.list(&parameters)).await
        };
        let (created, mounted) = tokio::try_join!(
            list("StatefulSet", "FailedCreate"),
            list("Pod", "FailedMount")
        )?;
        let mut why = explained(&created.items, Subject::Set, not_created);
        why.extend(explained(&mounted.items, Subject::Pod, not_mounted));
        Ok(why)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn why(&self, key: &Key, subject: &Subject) -> Option<String> {
        let since = self.missing.get(key)?.get(subject)?;
        let explanation = self.answers.get(&key.0)?.why.get(subject)?;
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

/// The newest Event about each, in words.
fn explained(
    events: &[Event],
    subject: fn(String) -> Subject,
    words: fn(&str) -> String,
) -> HashMap<Subject, Explanation> {
    let mut newest: HashMap<Subject, Explanation> = HashMap::new();
    for event in events {
        let name = event.involved_object.name.clone();
        let (Some(name), Some(at), Some(message)) = (name, time(event), &event.message) else {
            continue;
        };
        let subject = subject(name);
        if newest.get(&subject).is_none_or(|known| known.at < at) {
            let words = words(message);
            newest.insert(subject, Explanation { at, words });
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
fn not_created(message: &str) -> String {
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

/// `MountVolume.SetUp failed for volume "more" : configmap "absent" not found` without its beginning.
fn not_mounted(message: &str) -> String {
    let cause = message.strip_prefix("MountVolume.SetUp failed for ");
    let cause = cause.unwrap_or(message).replacen(" : ", ": ", 1);
    format!("Kubernetes does not mount a volume of it: {cause}")
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
        let why = explained(&events, Subject::Set, not_created);
        let set = |name: &str| Subject::Set(name.to_owned());
        assert_eq!(
            why[&set("shop-0")].words,
            "Kubernetes does not create it: exceeded quota: small, requested: pods=1, used: pods=2, limited: pods=2; \
             raise the ResourceQuota or ask for less"
        );
        assert_eq!(
            why[&set("shop-1")].words,
            "Kubernetes does not create it: no node"
        );
        assert!(explained(&[], Subject::Set, not_created).is_empty());
    }

    #[test]
    fn a_missing_config_map_is_named() {
        // As written by kubelet.
        let message =
            r#"MountVolume.SetUp failed for volume "more" : configmap "absent" not found"#;
        let why = explained(&[event("shop-0-1", 5, message)], Subject::Pod, not_mounted);
        assert_eq!(
            why[&Subject::Pod("shop-0-1".into())].words,
            r#"Kubernetes does not mount a volume of it: volume "more": configmap "absent" not found"#
        );
        let pod = |state: &str| {
            let states = serde_json::json!({"waiting": {"reason": state}});
            let pod = serde_json::json!({"spec": {"nodeName": "n1", "containers": []}, "status": {"containerStatuses": [
                {"name": crds::CONTAINER, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": states}]}});
            let pod = serde_json::from_value(pod).unwrap();
            Pods::from([("shop-0-1".to_owned(), std::sync::Arc::new(pod))])
        };
        let subject = |state: &str| Subject::of("shop-0-1", &pod(state));
        assert_eq!(
            subject("ContainerCreating"),
            Some(Subject::Pod("shop-0-1".into()))
        );
        assert_eq!(subject("ImagePullBackOff"), None);
        assert_eq!(
            Subject::of("shop-0-1", &Pods::default()),
            Some(Subject::Set("shop-0".into()))
        );
    }

    #[tokio::test]
    async fn a_namespace_is_read_after_a_while_and_then_seldom() {
        // Another test may have installed it.
        let _ = common::runtime::client::install_crypto_provider();
        let config = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
        let events = PodEvents::new(Client::try_from(config).unwrap());
        let key = |cluster: &str| ("shop".to_owned(), cluster.to_owned());
        let [first, second] = ["demo-0", "demo-1"].map(|name| Subject::Set(name.to_owned()));
        let sets = BTreeSet::from([&first, &second]);
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
            let why = HashMap::from([(second.clone(), Explanation { at, words })]);
            events.note("shop", why);
            let found = events.lock().why(&key("demo"), &second);
            assert_eq!(found.is_some(), counts, "{found:?}");
        }
        assert!(!events.is_due(&key("demo"), &BTreeSet::new(), begun));
        assert!(!events.lock().answers.is_empty());
        events.forget("shop", "other");
        assert!(events.lock().answers.is_empty() && events.lock().missing.is_empty());
    }
}

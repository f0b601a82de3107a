//! Why a StatefulSet has not created a pod: the newest FailedCreate Event of its controller, which is the only place that says it.
//!
//! Nothing is read while all pods exist; a set whose pod is missing is read after a few seconds, and then seldom.

use crate::pods::Pods;
use common::kubernetes::call::{self, ApiError};
use k8s_openapi::api::core::v1::Event;
use kube::{Api, Client, api::ListParams};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A pod that has been missing for less is being created.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long an answer is good for.
const FRESH: Duration = Duration::from_secs(15);
/// Sets read in one reconcile at most: they mostly have the same reason.
const MOST_READS: usize = 3;
/// Events of one set that are looked at.
const MOST_EVENTS: u32 = 50;

/// A cluster by namespace and name.
type Key = (String, String);

/// What is known of the sets whose pods are missing.
pub struct PodEvents {
    client: Client,
    missing: Mutex<HashMap<Key, HashMap<String, Missing>>>,
}

#[derive(Clone, Debug)]
struct Missing {
    since: Instant,
    read: Option<Instant>,
    why: Option<String>,
}

impl Missing {
    fn is_due(&self, now: Instant) -> bool {
        match self.read {
            None => now.saturating_duration_since(self.since) >= PATIENCE,
            Some(read) => now.saturating_duration_since(read) >= FRESH,
        }
    }
}

impl PodEvents {
    /// Nothing is known.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            missing: Mutex::default(),
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
        for set in self.due(&key, &sets, Instant::now()) {
            match self.read(namespace, &set).await {
                Ok(why) => self.note(&key, &set, why),
                Err(error) => tracing::debug!(%error, "the Events of a StatefulSet were not read"),
            }
        }
        let known = self.lock();
        let of_cluster = known.get(&key);
        let why = |pod: &String| of_cluster?.get(set_of(pod))?.why.clone();
        absent
            .iter()
            .filter_map(|pod| Some((pod.clone(), why(pod)?)))
            .collect()
    }

    /// The cluster is gone.
    pub fn forget(&self, namespace: &str, cluster: &str) {
        let key = (namespace.to_owned(), cluster.to_owned());
        self.lock().remove(&key);
    }

    /// Takes note of the sets with missing pods; returns those to be read now.
    fn due(&self, key: &Key, sets: &BTreeSet<&str>, now: Instant) -> Vec<String> {
        let mut missing = self.lock();
        if sets.is_empty() {
            missing.remove(key);
            return Vec::new();
        }
        let known = missing.entry(key.clone()).or_default();
        known.retain(|set, _| sets.contains(set.as_str()));
        for set in sets {
            known.entry((*set).to_owned()).or_insert(Missing {
                since: now,
                read: None,
                why: None,
            });
        }
        let mut due: Vec<String> = known
            .iter()
            .filter(|(_, missing)| missing.is_due(now))
            .map(|(set, _)| set.clone())
            .collect();
        due.sort_unstable();
        due.truncate(MOST_READS);
        // Noted before the answer, so that a failure is not repeated at once.
        for set in &due {
            if let Some(missing) = known.get_mut(set) {
                missing.read = Some(now);
            }
        }
        due
    }

    fn note(&self, key: &Key, set: &str, why: Option<String>) {
        let mut missing = self.lock();
        if let Some(missing) = missing.get_mut(key).and_then(|sets| sets.get_mut(set)) {
            missing.why = why;
        }
    }

    async fn read(&self, namespace: &str, set: &str) -> Result<Option<String>, ApiError> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let selector = format!(
            "involvedObject.kind=StatefulSet,involvedObject.name={set},reason=FailedCreate"
        );
        let parameters = ListParams::default().fields(&selector).limit(MOST_EVENTS);
        let what = format!("list the Events of StatefulSet {namespace}/{set}");
        let events = call::read(what, api.list(&parameters)).await?;
        Ok(newest(&events.items).map(explain))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, HashMap<String, Missing>>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn set_of(pod: &str) -> &str {
    pod.rsplit_once('-').map_or(pod, |(set, _)| set)
}

fn newest(events: &[Event]) -> Option<&str> {
    let at = |event: &Event| {
        let last = event.last_timestamp.as_ref().map(|time| time.0);
        last.or_else(|| event.event_time.as_ref().map(|time| time.0))
            .or_else(|| {
                event
                    .metadata
                    .creation_timestamp
                    .as_ref()
                    .map(|time| time.0)
            })
    };
    let newest = events.iter().max_by_key(|event| at(event))?;
    newest.message.as_deref()
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
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    fn event(second: i64, message: &str) -> Event {
        Event {
            last_timestamp: Some(Time(Timestamp::from_second(second).unwrap())),
            message: Some(message.to_owned()),
            ..Event::default()
        }
    }

    #[test]
    fn a_quota_is_quoted_with_its_cure() {
        // As written by kube-controller-manager.
        let refused = r#"create Pod shop-0-1 in StatefulSet shop-0 failed error: pods "shop-0-1" is forbidden: exceeded quota: small, requested: pods=1, used: pods=2, limited: pods=2"#;
        let events = [event(5, "older"), event(9, refused), event(7, "old")];
        assert_eq!(
            newest(&events).map(explain).unwrap(),
            "Kubernetes does not create it: exceeded quota: small, requested: pods=1, used: pods=2, limited: pods=2; \
             raise the ResourceQuota or ask for less"
        );
        assert_eq!(newest(&[]), None);
    }

    #[tokio::test]
    async fn a_set_is_read_after_a_while_and_then_seldom() {
        // Another test may have installed it.
        let _ = common::runtime::client::install_crypto_provider();
        let config = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
        let events = PodEvents::new(Client::try_from(config).unwrap());
        let key = ("shop".to_owned(), "demo".to_owned());
        let sets = BTreeSet::from(["demo-0", "demo-1", "demo-2", "demo-3"]);
        let begun = Instant::now();
        let due = |after: Duration| events.due(&key, &sets, begun + after);
        assert!(due(Duration::ZERO).is_empty());
        assert_eq!(due(PATIENCE), ["demo-0", "demo-1", "demo-2"]);
        assert_eq!(due(PATIENCE), ["demo-3"]);
        assert!(due(PATIENCE + FRESH / 2).is_empty());
        assert_eq!(due(PATIENCE + FRESH).len(), 3);
        assert!(events.due(&key, &BTreeSet::new(), begun).is_empty());
        assert!(events.lock().is_empty());
    }
}

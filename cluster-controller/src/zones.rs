//! The zones of Kubernetes nodes, each read by its name and kept for a while: a label of a node hardly ever changes.
//!
//! A read and no watch: only the nodes that pods run on are needed, and an installation for one namespace may not read any. There no
//! zone is known, and the Kubernetes nodes alone decide where primaries are.

use crate::redis::member::ZoneLabel;
use common::kubernetes::call::{self, ApiError};
use crds::LABEL_ZONE;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, ResourceExt};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long an answer is good for. One that cannot be read again then is kept.
const FRESH: Duration = Duration::from_mins(10);
/// How soon to read again what could not be read.
const RETRY: Duration = Duration::from_secs(30);
/// Longest time that a reconcile waits for all its reads.
const PATIENCE: Duration = Duration::from_secs(2);
/// Nodes read at the same time.
const CONCURRENCY: usize = 8;
/// Nodes read in one reconcile at most.
const MOST_READS: usize = 32;

/// The zones of Kubernetes nodes.
pub struct KubernetesZones {
    client: Client,
    cache: Mutex<ZoneCache>,
}

impl KubernetesZones {
    /// Nothing is known.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            cache: Mutex::default(),
        }
    }

    /// The zones of these nodes. Some may be unread afterwards, and are read by a later call.
    pub async fn labels(&self, names: &BTreeSet<String>) -> BTreeMap<String, ZoneLabel> {
        let due = self.cache().due(names, Instant::now());
        if !due.is_empty() {
            let reads = stream::iter(due)
                .map(async |name| {
                    let answer = self.read(&name).await;
                    self.cache().take_in(name, answer, Instant::now());
                })
                .buffer_unordered(CONCURRENCY)
                .count();
            if tokio::time::timeout(PATIENCE, reads).await.is_err() {
                self.cache().postpone(Instant::now());
            }
        }
        let cache = self.cache();
        let label = |name: &String| (name.clone(), cache.label(name));
        names.iter().map(label).collect()
    }

    fn cache(&self) -> MutexGuard<'_, ZoneCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, name: &str) -> Result<Option<String>, ApiError> {
        let api: Api<Node> = Api::all(self.client.clone());
        let node = call::read_optional(format!("get Node {name}"), api.get(name)).await?;
        Ok(node.and_then(|node| node.labels().get(LABEL_ZONE).cloned()))
    }
}

/// What was read, and when to read again.
#[derive(Default)]
struct ZoneCache {
    known: HashMap<String, ReadZone>,
    /// Whether the right to read nodes was missing at the last read.
    forbidden: bool,
    not_before: Option<Instant>,
}

struct ReadZone {
    zone: Option<String>,
    at: Instant,
    /// When it was last asked for: what is not needed any more is dropped.
    used: Instant,
}

impl ZoneCache {
    /// The nodes to read now.
    fn due(&mut self, names: &BTreeSet<String>, now: Instant) -> Vec<String> {
        let since = |at: Instant| now.saturating_duration_since(at);
        for name in names {
            if let Some(one) = self.known.get_mut(name) {
                one.used = now;
            }
        }
        self.known.retain(|_, one| since(one.used) < 2 * FRESH);
        if self.not_before.is_some_and(|time| now < time) {
            return Vec::new();
        }
        let is_fresh = |name: &String| {
            let known = self.known.get(name);
            known.is_some_and(|one| since(one.at) < FRESH)
        };
        let mut due: Vec<&String> = names.iter().filter(|name| !is_fresh(name)).collect();
        // Unread ones first: of very many, some are old again before the last one is read.
        due.sort_by_key(|name| self.known.get(*name).map(|one| one.at));
        due.into_iter().take(MOST_READS).cloned().collect()
    }

    fn take_in(&mut self, name: String, answer: Result<Option<String>, ApiError>, now: Instant) {
        match answer {
            Ok(zone) => {
                self.forbidden = false;
                let (at, used) = (now, now);
                self.known.insert(name, ReadZone { zone, at, used });
            }
            Err(ApiError::Forbidden { .. }) => {
                self.forbidden = true;
                self.not_before = Some(now + FRESH);
            }
            Err(error) => {
                tracing::debug!(%error, "the zone of a Kubernetes node was not read");
                self.postpone(now);
            }
        }
    }

    fn postpone(&mut self, now: Instant) {
        self.not_before = Some(now + RETRY);
    }

    fn label(&self, name: &str) -> ZoneLabel {
        match self.known.get(name) {
            Some(one) => one.zone.clone().map_or(ZoneLabel::Absent, ZoneLabel::Named),
            None if self.forbidden => ZoneLabel::Absent,
            None => ZoneLabel::Unread,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn unavailable() -> ApiError {
        ApiError::Unavailable {
            what: "get Node a".into(),
            message: "no route".into(),
        }
    }

    fn forbidden() -> ApiError {
        ApiError::Forbidden {
            what: "get Node a".into(),
            message: "nodes".into(),
        }
    }

    #[test]
    fn a_zone_is_read_once_in_a_while() {
        let (mut cache, start) = (ZoneCache::default(), Instant::now());
        let both = names(&["a", "b"]);
        assert_eq!(cache.due(&both, start), ["a", "b"]);
        cache.take_in("a".into(), Ok(Some("north".into())), start);
        cache.take_in("b".into(), Ok(None), start);
        assert_eq!(cache.label("a"), ZoneLabel::Named("north".into()));
        assert_eq!(cache.label("b"), ZoneLabel::Absent);
        assert_eq!(cache.label("c"), ZoneLabel::Unread);
        assert!(cache.due(&both, start + FRESH / 2).is_empty());
        assert_eq!(cache.due(&both, start + FRESH), ["a", "b"]);
    }

    #[test]
    fn unread_zones_come_before_old_ones() {
        let (mut cache, start) = (ZoneCache::default(), Instant::now());
        let many: BTreeSet<String> = (0..100).map(|number| format!("{number:03}")).collect();
        for name in many.iter().take(80).rev() {
            cache.take_in(name.clone(), Ok(None), start);
        }
        cache.take_in("000".into(), Ok(None), start + RETRY);
        let due = cache.due(&many, start + RETRY + FRESH);
        let (unread, old) = due.split_at(20);
        assert!(unread.iter().all(|name| name.as_str() >= "080"), "{due:?}");
        assert!(!old.contains(&"000".to_owned()), "{due:?}");
        assert_eq!(due.len(), MOST_READS);
    }

    /// Otherwise a primary would be handed over for want of a zone, and back once it is known again.
    #[test]
    fn what_cannot_be_read_again_is_kept() {
        let (mut cache, start) = (ZoneCache::default(), Instant::now());
        let both = names(&["a", "b"]);
        cache.take_in("a".into(), Ok(Some("north".into())), start);
        let later = start + FRESH;
        assert_eq!(cache.due(&both, later), ["b", "a"]);
        cache.take_in("a".into(), Err(unavailable()), later);
        assert!(cache.due(&both, later + RETRY / 2).is_empty());
        assert_eq!(cache.label("a"), ZoneLabel::Named("north".into()));
        assert_eq!(cache.label("b"), ZoneLabel::Unread);
        assert_eq!(cache.due(&both, later + RETRY), ["b", "a"]);
    }

    #[test]
    fn without_the_right_no_zone_is_known() {
        let (mut cache, start) = (ZoneCache::default(), Instant::now());
        let one = names(&["a"]);
        cache.take_in("a".into(), Err(forbidden()), start);
        assert_eq!(cache.label("a"), ZoneLabel::Absent);
        assert!(cache.due(&one, start + FRESH / 2).is_empty());
        // The right was given later.
        assert_eq!(cache.due(&one, start + FRESH), ["a"]);
        cache.take_in("a".into(), Ok(Some("north".into())), start + FRESH);
        assert_eq!(cache.label("a"), ZoneLabel::Named("north".into()));
        assert_eq!(cache.label("b"), ZoneLabel::Unread);
    }

    #[test]
    fn the_cache_holds_what_is_in_use() {
        let (mut cache, start) = (ZoneCache::default(), Instant::now());
        let many: BTreeSet<String> = (0..100).map(|number| format!("{number:03}")).collect();
        assert_eq!(cache.due(&many, start).len(), MOST_READS);
        for name in &many {
            cache.take_in(name.clone(), Ok(None), start);
        }
        let one = names(&["000"]);
        cache.due(&one, start + FRESH);
        assert_eq!(cache.known.len(), 100);
        cache.due(&one, start + 2 * FRESH);
        assert_eq!(cache.known.len(), 1);
    }
}

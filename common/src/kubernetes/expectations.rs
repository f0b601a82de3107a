//! Read-your-writes over caches: what this process wrote and the cache has not shown yet.
//!
//! A watch cache lags behind our own writes. A decision on a cache that does not show the last write yet creates twice or deletes
//! the wrong thing. So every write leaves the resourceVersion the server answered with, and before a decision
//! the cache is asked whether it has caught up. resourceVersions of one kind are decimal numbers that only grow
//! (KEP-5504); where they are not comparable the cache counts as current. After a restart the table is empty, which is
//! right: a fresh list is newer than every write of the process before.

use kube::{
    Resource, ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};
use std::{
    cmp::Ordering,
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// After this time a write the cache never showed is no longer waited for: the object may have come and gone unseen.
pub const EXPIRY: Duration = Duration::from_secs(30);

/// The reconciled object that writes are kept together for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OwnerKey {
    /// Namespace of the owner.
    pub namespace: String,
    /// Name of the owner.
    pub name: String,
    /// Uid of the owner: one created again under the same name starts empty.
    pub uid: String,
}

impl OwnerKey {
    /// The key of an object.
    pub fn of<K: Resource>(object: &K) -> Self {
        Self {
            namespace: object.meta().namespace.clone().unwrap_or_default(),
            name: object.meta().name.clone().unwrap_or_default(),
            uid: object.meta().uid.clone().unwrap_or_default(),
        }
    }
}

/// Whether a cache has caught up with our own write of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Decide on the cache.
    Current,
    /// Wait and look again after this time.
    Behind(Duration),
    /// Waited for too long: read the object live before deciding. Reported once for each write.
    Unknown,
}

/// What the cache shows of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
}

#[derive(Clone, Debug)]
enum Write {
    Wrote { version: String },
    Deleted { uid: String },
}

#[derive(Clone, Debug)]
struct Pending {
    write: Write,
    since: Instant,
}

type Table = HashMap<OwnerKey, HashMap<(String, String), Pending>>;

/// The writes of this process that caches have not shown yet, by owner. One instance in each controller.
#[derive(Debug, Default)]
pub struct Expectations {
    table: Mutex<Table>,
}

impl Expectations {
    /// Nothing is waited for.
    pub fn new() -> Self {
        Self::default()
    }

    /// The server answered a write with this object.
    pub fn wrote<K: Resource<DynamicType = ()>>(&self, owner: &OwnerKey, object: &K) {
        let Some(version) = object.meta().resource_version.clone() else {
            return;
        };
        self.insert::<K>(owner, object.name_any(), Write::Wrote { version });
    }

    /// The server accepted the deletion of this object.
    pub fn deleted<K: Resource<DynamicType = ()>>(&self, owner: &OwnerKey, name: &str, uid: &str) {
        self.insert::<K>(
            owner,
            name.to_string(),
            Write::Deleted {
                uid: uid.to_string(),
            },
        );
    }

    /// Whether the store shows what was written for this owner to the object of kind `K` and this name (in the owner's namespace).
    pub fn check<K>(
        &self,
        owner: &OwnerKey,
        name: &str,
        store: &Store<K>,
        now: Instant,
    ) -> Freshness
    where
        K: Resource<DynamicType = ()> + Clone + 'static,
    {
        let key = ObjectRef::<K>::new(name).within(&owner.namespace);
        let observed = store.get(&key);
        self.check_seen::<K>(owner, name, observed.as_deref().map(seen).as_ref(), now)
    }

    /// The same for the reconciled object itself: is the one in hand older than what our last status write returned?
    pub fn check_own<K>(&self, object: &K, now: Instant) -> Freshness
    where
        K: Resource<DynamicType = ()>,
    {
        let owner = OwnerKey::of(object);
        self.check_seen::<K>(&owner, &owner.name, Some(&seen(object)), now)
    }

    /// The owner is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.lock()
            .retain(|owner, _| owner.namespace != namespace || owner.name != name);
    }

    fn insert<K: Resource<DynamicType = ()>>(&self, owner: &OwnerKey, name: String, write: Write) {
        let pending = Pending {
            write,
            since: Instant::now(),
        };
        self.lock()
            .entry(owner.clone())
            .or_default()
            .insert((K::kind(&()).into_owned(), name), pending);
    }

    fn check_seen<K: Resource<DynamicType = ()>>(
        &self,
        owner: &OwnerKey,
        name: &str,
        seen: Option<&Seen>,
        now: Instant,
    ) -> Freshness {
        let key = (K::kind(&()).into_owned(), name.to_owned());
        let mut table = self.lock();
        let Some(pending) = table.get_mut(owner) else {
            return Freshness::Current;
        };
        let Some(entry) = pending.get(&key) else {
            return Freshness::Current;
        };
        let waited = now.saturating_duration_since(entry.since);
        let freshness = if caught_up(&entry.write, seen) {
            Freshness::Current
        } else if waited < EXPIRY {
            return Freshness::Behind(recheck_after(waited));
        } else {
            Freshness::Unknown
        };
        pending.remove(&key);
        if pending.is_empty() {
            table.remove(owner);
        }
        freshness
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn seen<K: Resource>(object: &K) -> Seen {
    Seen {
        uid: object.meta().uid.clone().unwrap_or_default(),
        resource_version: object.meta().resource_version.clone().unwrap_or_default(),
    }
}

/// About as long again as was waited already, from 100 ms to 5 s.
fn recheck_after(waited: Duration) -> Duration {
    waited.clamp(Duration::from_millis(100), Duration::from_secs(5))
}

fn caught_up(write: &Write, seen: Option<&Seen>) -> bool {
    match (write, seen) {
        (Write::Wrote { version }, Some(seen)) => {
            compare_versions(&seen.resource_version, version) != Some(Ordering::Less)
        }
        // Not in the cache: created and not shown yet, or deleted since, which the expiry resolves.
        (Write::Wrote { .. }, None) => false,
        (Write::Deleted { uid }, Some(seen)) => seen.uid != *uid,
        (Write::Deleted { .. }, None) => true,
    }
}

/// Compares two resourceVersions: decimal numbers without leading zeros, so by length, then by text. `None` when either is
/// not one.
pub fn compare_versions(a: &str, b: &str) -> Option<Ordering> {
    let decimal = |v: &str| {
        !v.is_empty() && !v.starts_with('0') && v.bytes().all(|byte| byte.is_ascii_digit())
    };
    (decimal(a) && decimal(b)).then(|| a.len().cmp(&b.len()).then_with(|| a.cmp(b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{
        api::ObjectMeta,
        runtime::{reflector, watcher::Event},
    };
    use proptest::prelude::*;

    fn owner() -> OwnerKey {
        OwnerKey {
            namespace: "shop".into(),
            name: "cache".into(),
            uid: "u".into(),
        }
    }

    fn object(name: &str, uid: &str, version: u64) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("shop".into()),
                uid: Some(uid.into()),
                resource_version: Some(version.to_string()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    #[test]
    fn a_write_is_pending_until_the_cache_shows_it() {
        let expectations = Expectations::new();
        let (store, mut writer) = reflector::store();
        let now = Instant::now();
        assert_eq!(
            expectations.check::<ConfigMap>(&owner(), "a", &store, now),
            Freshness::Current
        );
        expectations.wrote(&owner(), &object("a", "1", 100));
        writer.apply_watcher_event(&Event::Apply(object("a", "1", 99)));
        assert!(matches!(
            expectations.check(&owner(), "a", &store, now),
            Freshness::Behind(_)
        ));
        writer.apply_watcher_event(&Event::Apply(object("a", "1", 100)));
        assert_eq!(
            expectations.check(&owner(), "a", &store, now),
            Freshness::Current
        );
    }

    #[test]
    fn a_deletion_is_pending_until_the_uid_is_gone() {
        let expectations = Expectations::new();
        let (store, mut writer) = reflector::store();
        let now = Instant::now();
        writer.apply_watcher_event(&Event::Apply(object("a", "1", 5)));
        expectations.deleted::<ConfigMap>(&owner(), "a", "1");
        assert!(matches!(
            expectations.check(&owner(), "a", &store, now),
            Freshness::Behind(_)
        ));
        writer.apply_watcher_event(&Event::Apply(object("a", "2", 9)));
        assert_eq!(
            expectations.check(&owner(), "a", &store, now),
            Freshness::Current
        );
    }

    #[test]
    fn what_never_shows_expires_once() {
        let expectations = Expectations::new();
        let (store, _writer) = reflector::store::<ConfigMap>();
        expectations.wrote(&owner(), &object("a", "1", 7));
        let later = Instant::now() + EXPIRY + Duration::from_secs(1);
        assert_eq!(
            expectations.check(&owner(), "a", &store, later),
            Freshness::Unknown
        );
        assert_eq!(
            expectations.check(&owner(), "a", &store, later),
            Freshness::Current
        );
    }

    #[test]
    fn the_object_in_hand_may_be_older_than_our_write() {
        let expectations = Expectations::new();
        let old = object("cache", "u", 10);
        expectations.wrote(&OwnerKey::of(&old), &object("cache", "u", 12));
        let now = Instant::now();
        assert!(matches!(
            expectations.check_own(&old, now),
            Freshness::Behind(_)
        ));
        assert_eq!(
            expectations.check_own(&object("cache", "u", 13), now),
            Freshness::Current
        );
    }

    #[test]
    fn a_forgotten_owner_waits_for_nothing() {
        let expectations = Expectations::new();
        let (store, _writer) = reflector::store::<ConfigMap>();
        expectations.wrote(&owner(), &object("a", "1", 7));
        expectations.forget("shop", "cache");
        assert_eq!(
            expectations.check(&owner(), "a", &store, Instant::now()),
            Freshness::Current
        );
    }

    #[test]
    fn versions_that_are_no_numbers_are_not_compared() {
        for (a, b) in [("", "1"), ("01", "1"), ("1a", "1"), ("1", "-1")] {
            assert_eq!(compare_versions(a, b), None, "{a} {b}");
        }
    }

    proptest! {
        #[test]
        fn versions_compare_as_numbers(a in 1..u128::MAX, b in 1..u128::MAX) {
            prop_assert_eq!(compare_versions(&a.to_string(), &b.to_string()), Some(a.cmp(&b)));
        }

        /// Writes to a few objects, and a watch that shows a prefix of the history of each, in any interleaving across objects:
        /// current exactly when the object is not behind its last write.
        #[test]
        fn current_exactly_when_the_cache_is_not_behind(
            writes in proptest::collection::vec(0..3usize, 1..12),
            shown in proptest::collection::vec(0..13usize, 3),
        ) {
            let expectations = Expectations::new();
            let (store, mut writer) = reflector::store();
            let mut history: [Vec<u64>; 3] = Default::default();
            for (version, index) in writes.iter().enumerate() {
                let version = version as u64 + 98;
                expectations.wrote(&owner(), &object(&index.to_string(), "u", version));
                history[*index].push(version);
            }
            for (index, versions) in history.iter().enumerate() {
                let seen = shown[index].min(versions.len());
                for version in &versions[..seen] {
                    writer.apply_watcher_event(&Event::Apply(object(&index.to_string(), "u", *version)));
                }
            }
            for (index, versions) in history.iter().enumerate() {
                let behind = shown[index] < versions.len();
                let name = index.to_string();
                let freshness = expectations.check(&owner(), &name, &store, Instant::now());
                prop_assert_eq!(freshness == Freshness::Current, !behind, "{}: {:?}", name, freshness);
            }
        }
    }
}

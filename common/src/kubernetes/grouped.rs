//! A cache whose objects are found by the value of a label: a reconcile wants those of one owner, and must not walk those of all.

use super::watches::Watched;
use kube::{
    ResourceExt,
    runtime::{
        reflector::{ObjectRef, Store},
        watcher::Event,
    },
};
use std::{
    collections::{BTreeSet, HashMap},
    ops::Deref,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

/// Names of objects, by the value of the label.
type Names = HashMap<String, BTreeSet<String>>;

/// What a watch has seen of one kind. It is a [`Store`] too.
#[derive(Clone)]
pub struct Grouped<K: Watched> {
    store: Store<K>,
    groups: Groups,
}

impl<K: Watched> Deref for Grouped<K> {
    type Target = Store<K>;

    fn deref(&self) -> &Store<K> {
        &self.store
    }
}

impl<K: Watched> Grouped<K> {
    pub(super) fn new(store: Store<K>, groups: Groups) -> Self {
        Self { store, groups }
    }

    /// The objects of a namespace whose label has this value, by name.
    pub fn of(&self, namespace: &str, value: &str) -> Vec<Arc<K>> {
        let all = self.groups.lock_to_read();
        let names = all.get(namespace).and_then(|names| names.get(value));
        let objects = names.into_iter().flatten().filter_map(|name| {
            let reference = ObjectRef::<K>::new(name).within(namespace);
            self.store.get(&reference)
        });
        let label = self.groups.label;
        objects
            .filter(|object| object.labels().get(label).map(String::as_str) == Some(value))
            .collect()
    }
}

/// The names of the objects that carry a label.
#[derive(Clone)]
pub(super) struct Groups {
    label: &'static str,
    /// By namespace. It may name objects whose label has changed since: the store decides.
    all: Arc<RwLock<HashMap<String, Names>>>,
}

impl Groups {
    /// Of this label.
    pub(super) fn new(label: &'static str) -> Self {
        let all = Arc::default();
        Self { label, all }
    }

    /// An event that the store has taken over already.
    pub(super) fn see<K: Watched>(&self, store: &Store<K>, event: &Event<K>) {
        match event {
            Event::Apply(object) => self.insert(&mut self.lock_to_write(), object),
            Event::Delete(object) => self.remove(&mut self.lock_to_write(), object),
            Event::InitDone => {
                let mut all = HashMap::new();
                for object in store.state() {
                    self.insert(&mut all, object.as_ref());
                }
                *self.lock_to_write() = all;
            }
            Event::Init | Event::InitApply(_) => {}
        }
    }

    fn place<K: Watched>(&self, object: &K) -> Option<(String, String)> {
        let value = object.labels().get(self.label)?;
        Some((object.namespace()?, value.clone()))
    }

    fn insert<K: Watched>(&self, all: &mut HashMap<String, Names>, object: &K) {
        if let Some((namespace, value)) = self.place(object) {
            let names = all.entry(namespace).or_default();
            names.entry(value).or_default().insert(object.name_any());
        }
    }

    fn remove<K: Watched>(&self, all: &mut HashMap<String, Names>, object: &K) {
        let Some((namespace, value)) = self.place(object) else {
            return;
        };
        let Some(names) = all.get_mut(&namespace) else {
            return;
        };
        if let Some(group) = names.get_mut(&value) {
            group.remove(&object.name_any());
            if group.is_empty() {
                names.remove(&value);
            }
        }
        if names.is_empty() {
            all.remove(&namespace);
        }
    }

    fn lock_to_read(&self) -> RwLockReadGuard<'_, HashMap<String, Names>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_to_write(&self) -> RwLockWriteGuard<'_, HashMap<String, Names>> {
        self.all.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{api::ObjectMeta, runtime::reflector};
    use proptest::prelude::*;

    const LABEL: &str = "of";

    /// What the API server says of one of four objects, in one of two namespaces, with one of two values or without the label.
    #[derive(Debug, Clone)]
    enum Said {
        Applied(u8, u8),
        Deleted(u8, u8),
        Listed(Vec<(u8, u8)>),
    }

    fn said() -> impl Strategy<Value = Said> {
        let object = || (0..4_u8, 0..3_u8);
        prop_oneof![
            object().prop_map(|(object, value)| Said::Applied(object, value)),
            object().prop_map(|(object, value)| Said::Deleted(object, value)),
            prop::collection::vec(object(), 0..4).prop_map(Said::Listed),
        ]
    }

    fn object(index: u8, value: u8) -> ConfigMap {
        let labels = (value < 2).then(|| [(LABEL.to_owned(), format!("shop-{value}"))].into());
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(format!("map-{}", index / 2)),
                namespace: Some(format!("space-{}", index % 2)),
                labels,
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    fn events(said: Said) -> Vec<Event<ConfigMap>> {
        match said {
            Said::Applied(index, value) => vec![Event::Apply(object(index, value))],
            Said::Deleted(index, value) => vec![Event::Delete(object(index, value))],
            Said::Listed(all) => {
                let objects = all.into_iter();
                let objects = objects.map(|(index, value)| Event::InitApply(object(index, value)));
                [Event::Init]
                    .into_iter()
                    .chain(objects)
                    .chain([Event::InitDone])
                    .collect()
            }
        }
    }

    proptest! {
        #[test]
        fn a_group_is_what_a_walk_finds(history in prop::collection::vec(said(), 0..20)) {
            let (store, mut writer) = reflector::store::<ConfigMap>();
            let groups = Groups::new(LABEL);
            let grouped = Grouped::new(store.clone(), groups.clone());
            for event in history.into_iter().flat_map(events) {
                writer.apply_watcher_event(&event);
                groups.see(&store, &event);
            }
            for (namespace, value) in [("space-0", "shop-0"), ("space-0", "shop-1"), ("space-1", "shop-0"), ("space-1", "shop-1")] {
                let mut walked = store.state();
                walked.retain(|object| {
                    object.namespace().as_deref() == Some(namespace)
                        && object.labels().get(LABEL).map(String::as_str) == Some(value)
                });
                walked.sort_by_key(|object| object.name_any());
                prop_assert_eq!(grouped.of(namespace, value), walked);
            }
        }
    }

    #[test]
    fn what_is_gone_leaves_no_trace() {
        let (store, mut writer) = reflector::store::<ConfigMap>();
        let groups = Groups::new(LABEL);
        for event in [Event::Apply(object(0, 0)), Event::Delete(object(0, 0))] {
            writer.apply_watcher_event(&event);
            groups.see(&store, &event);
        }
        assert!(groups.lock_to_read().is_empty());
    }
}

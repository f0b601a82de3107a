//! Asking for a reconcile from outside the watches: a finished task, a won lease.

use kube::runtime::reflector::ObjectRef;
use std::{
    collections::HashSet,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Notify;

/// Triggers a reconcile of objects of kind `K`. Cheap to clone, never blocks, never lost; many requests for one object are one.
pub struct Trigger<K: kube::Resource<DynamicType = ()>> {
    shared: Arc<Shared<K>>,
}

struct Shared<K: kube::Resource<DynamicType = ()>> {
    waiting: Mutex<HashSet<ObjectRef<K>>>,
    notify: Notify,
}

impl<K: kube::Resource<DynamicType = ()>> Clone for Trigger<K> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<K: kube::Resource<DynamicType = ()> + Clone + 'static> Default for Trigger<K>
where
    ObjectRef<K>: Hash + Eq,
{
    fn default() -> Self {
        Self::new()
    }
}

impl<K: kube::Resource<DynamicType = ()> + Clone + 'static> Trigger<K>
where
    ObjectRef<K>: Hash + Eq,
{
    /// No object is asked for yet.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                waiting: Mutex::new(HashSet::new()),
                notify: Notify::new(),
            }),
        }
    }

    /// Asks for a reconcile of one object.
    pub fn object(&self, namespace: &str, name: &str) {
        let reference = ObjectRef::new(name).within(namespace);
        self.shared
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(reference);
        self.shared.notify.notify_one();
    }

    /// Waits for requests and takes them all.
    pub async fn next(&self) -> Vec<ObjectRef<K>> {
        loop {
            let taken: Vec<_> = self
                .shared
                .waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .drain()
                .collect();
            if !taken.is_empty() {
                return taken;
            }
            self.shared.notify.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    #[tokio::test]
    async fn requests_for_one_object_are_one_and_none_is_lost() {
        let trigger = Trigger::<ConfigMap>::new();
        trigger.object("ns", "a");
        trigger.object("ns", "a");
        trigger.object("ns", "b");
        assert_eq!(trigger.next().await.len(), 2);
        let waiting = tokio::spawn({
            let trigger = trigger.clone();
            async move { trigger.next().await }
        });
        trigger.object("ns", "c");
        assert_eq!(waiting.await.unwrap().len(), 1);
    }
}

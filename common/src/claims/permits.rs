//! How many pieces of work run at the same time, over all namespaces and in one of them: work on a slow endpoint of one tenant leaves
//! permits to the others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// Most permits at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// At the same time, over all namespaces.
    pub all: usize,
    /// Of these, at most so many in one namespace.
    pub one_namespace: usize,
}

impl Quota {
    /// As many as `streams` in one namespace, and one more that is left for others.
    pub fn streams(streams: usize) -> Self {
        Self {
            all: streams.saturating_add(1),
            one_namespace: streams,
        }
    }

    /// How many more may start in a namespace where `here` run, out of `all`.
    fn left(self, all: usize, here: usize) -> usize {
        let left = self.all.saturating_sub(all);
        left.min(self.one_namespace.saturating_sub(here))
    }
}

/// Permits by namespace. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Permits {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    quota: Quota,
    held: Mutex<HashMap<String, usize>>,
    released: Notify,
}

/// The right to run one piece of work; released when dropped.
#[derive(Debug)]
pub struct Permit {
    shared: Arc<Shared>,
    namespace: String,
}

impl Permits {
    /// All permits are free.
    pub fn new(quota: Quota) -> Self {
        Self {
            shared: Arc::new(Shared {
                quota,
                held: Mutex::default(),
                released: Notify::new(),
            }),
        }
    }

    /// How many a namespace could get now.
    pub fn left(&self, namespace: &str) -> usize {
        self.shared.left(&self.shared.lock(), namespace)
    }

    /// A permit for a namespace, if one is left.
    pub fn try_acquire(&self, namespace: &str) -> Option<Permit> {
        let mut held = self.shared.lock();
        if self.shared.left(&held, namespace) == 0 {
            return None;
        }
        *held.entry(namespace.to_owned()).or_default() += 1;
        Some(Permit {
            shared: Arc::clone(&self.shared),
            namespace: namespace.to_owned(),
        })
    }

    /// Waits for a permit.
    pub async fn acquire(&self, namespace: &str) -> Permit {
        loop {
            let mut released = std::pin::pin!(self.shared.released.notified());
            // Registered before the look: a release between the two is not missed.
            released.as_mut().enable();
            if let Some(permit) = self.try_acquire(namespace) {
                return permit;
            }
            released.await;
        }
    }
}

impl Shared {
    fn left(&self, held: &HashMap<String, usize>, namespace: &str) -> usize {
        let here = held.get(namespace).copied().unwrap_or_default();
        self.quota.left(held.values().sum(), here)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut held = self.shared.lock();
        if let Some(count) = held.get_mut(&self.namespace) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                held.remove(&self.namespace);
            }
        }
        drop(held);
        self.shared.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[test]
    fn one_namespace_leaves_a_permit_to_the_others() {
        let permits = Permits::new(Quota::streams(2));
        let of_a: Vec<_> = std::iter::from_fn(|| permits.try_acquire("a")).collect();
        assert_eq!(of_a.len(), 2);
        let of_b = permits.try_acquire("b").unwrap();
        assert_eq!((permits.left("b"), permits.left("c")), (0, 0));
        drop(of_b);
        assert_eq!((permits.left("a"), permits.left("c")), (0, 1));
        drop(of_a);
        assert_eq!(permits.left("a"), 2);
    }

    #[tokio::test]
    async fn a_waiter_gets_the_permit_that_is_released() {
        let permits = Permits::new(Quota {
            all: 2,
            one_namespace: 1,
        });
        let first = permits.acquire("a").await;
        let other = timeout(Duration::from_secs(5), permits.acquire("b")).await;
        assert!(other.is_ok(), "namespace b waits for namespace a");
        let waiting = tokio::spawn({
            let permits = permits.clone();
            async move { permits.acquire("a").await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        let second = timeout(Duration::from_secs(5), waiting).await;
        assert!(second.unwrap().is_ok());
    }

    proptest! {
        #[test]
        fn the_bounds_hold_and_no_permit_is_lost(steps in prop::collection::vec((any::<bool>(), 0..4_usize), 1..80)) {
            let quota = Quota { all: 5, one_namespace: 3 };
            let permits = Permits::new(quota);
            let mut held: Vec<(usize, Permit)> = Vec::new();
            for (acquires, namespace) in steps {
                if acquires {
                    let here = held.iter().filter(|(of, _)| *of == namespace).count();
                    let permit = permits.try_acquire(&namespace.to_string());
                    prop_assert_eq!(permit.is_some(), held.len() < quota.all && here < quota.one_namespace);
                    held.extend(permit.map(|permit| (namespace, permit)));
                } else if !held.is_empty() {
                    held.remove(namespace % held.len());
                }
            }
            drop(held);
            prop_assert_eq!(permits.left("0"), quota.one_namespace);
        }
    }
}

//! How often each object has failed in a row, and how long to wait.

use super::errors::ErrorClass;
use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Failures in a row by object. A success removes the entry.
#[derive(Debug)]
pub(super) struct Retries<T> {
    failures: Mutex<HashMap<T, (ErrorClass, u32)>>,
    /// Seeded by the operating system, so that replicas and restarts spread differently.
    random: RandomState,
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Retry {
    /// Failures of this class in a row, from 1.
    pub(super) failures: u32,
    /// When to try again.
    pub(super) delay: Duration,
}

impl<T> Default for Retries<T> {
    fn default() -> Self {
        Self {
            failures: Mutex::default(),
            random: RandomState::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> Retries<T> {
    /// Another failure. One of another class restarts the count.
    pub(super) fn failed(&self, object: &T, class: ErrorClass) -> Retry {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = failures.entry(object.clone()).or_insert((class, 0));
        if entry.0 != class {
            *entry = (class, 0);
        }
        entry.1 = entry.1.saturating_add(1);
        Retry {
            failures: entry.1,
            delay: jittered(
                class.delay(entry.1),
                self.random.hash_one((object, entry.1)),
            ),
        }
    }

    /// It went well, or the object is gone.
    pub(super) fn succeeded(&self, object: &T) {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(object);
    }
}

/// The delay lengthened by up to a quarter: objects that failed together do not come back together.
fn jittered(delay: Duration, random: u64) -> Duration {
    let thousandths = u32::try_from(random % 1000).unwrap_or_default();
    delay + delay / 4 * thousandths / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_of_many_objects_spread_over_a_quarter() {
        let retries = Retries::default();
        let delays: Vec<u128> = (0..200)
            .map(|object| retries.failed(&object, ErrorClass::Bug).delay.as_millis())
            .collect();
        let (least, most) = (delays.iter().min().unwrap(), delays.iter().max().unwrap());
        assert!(*least >= 5000 && *most <= 6250, "{delays:?}");
        assert!(most - least > 600, "{delays:?}");
    }

    #[test]
    fn each_object_and_class_counts_for_itself() {
        let retries = Retries::default();
        assert_eq!(retries.failed(&"a", ErrorClass::Transient).failures, 1);
        let second = retries.failed(&"a", ErrorClass::Transient);
        assert_eq!((second.failures, second.delay.as_secs()), (2, 2));
        assert_eq!(retries.failed(&"b", ErrorClass::Transient).failures, 1);
        assert_eq!(retries.failed(&"a", ErrorClass::Forbidden).failures, 1);
        retries.succeeded(&"a");
        assert_eq!(retries.failed(&"a", ErrorClass::Forbidden).failures, 1);
    }
}

//! How often each object has failed in a row, and how long to wait.

use super::errors::ErrorClass;
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Failures in a row by object. A success takes the entry away.
#[derive(Debug)]
pub(super) struct Retries<T> {
    failures: Mutex<HashMap<T, (ErrorClass, u32)>>,
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
        }
    }
}

impl<T: Clone + Eq + Hash> Retries<T> {
    /// Another failure. One of another class begins the count anew.
    pub(super) fn failed(&self, object: &T, class: ErrorClass) -> Retry {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = failures.entry(object.clone()).or_insert((class, 0));
        if entry.0 != class {
            *entry = (class, 0);
        }
        entry.1 = entry.1.saturating_add(1);
        Retry {
            failures: entry.1,
            delay: class.delay(entry.1),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_object_and_class_counts_for_itself() {
        let retries = Retries::default();
        assert_eq!(
            retries.failed(&"a", ErrorClass::Transient).delay.as_secs(),
            1
        );
        assert_eq!(
            retries.failed(&"a", ErrorClass::Transient).delay.as_secs(),
            2
        );
        assert_eq!(retries.failed(&"b", ErrorClass::Transient).failures, 1);
        assert_eq!(retries.failed(&"a", ErrorClass::Forbidden).failures, 1);
        retries.succeeded(&"a");
        assert_eq!(retries.failed(&"a", ErrorClass::Forbidden).failures, 1);
    }
}

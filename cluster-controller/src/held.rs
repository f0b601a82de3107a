//! The clusters whose operation Lease this process has taken: memory that may be lost, since a Lease expires by itself.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

/// Clusters by namespace and name.
#[derive(Debug, Default)]
pub struct HeldClusters {
    clusters: Mutex<HashSet<(String, String)>>,
}

impl HeldClusters {
    /// The Lease of a cluster was taken.
    pub fn insert(&self, (namespace, name): (&str, &str)) {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.insert((namespace.to_owned(), name.to_owned()));
    }

    /// It is released. Whether it was taken.
    pub fn remove(&self, (namespace, name): (&str, &str)) -> bool {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.remove(&(namespace.to_owned(), name.to_owned()))
    }
}

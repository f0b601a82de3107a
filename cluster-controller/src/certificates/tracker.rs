//! Which servers have shown which certificate in a handshake, so that each is asked once.

use super::state::FileName;
use crate::redis::member::Member;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The pod whose server has shown a certificate: name and uid.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShownBy(String, Option<String>);

impl ShownBy {
    /// The pod of a member.
    pub fn of(member: &Member) -> Self {
        let expected = &member.expected;
        Self(expected.pod.clone(), expected.pod_uid.clone())
    }
}

/// Certificates by who has shown them.
type Shown = BTreeMap<ShownBy, FileName>;

/// What was shown, of all clusters.
#[derive(Default)]
pub struct HandshakeTracker(Mutex<HashMap<(String, String), Shown>>);

impl HandshakeTracker {
    /// Whether the server of a member has shown this certificate.
    pub fn has_shown(
        &self,
        (namespace, name): (&str, &str),
        member: &Member,
        certificate: &FileName,
    ) -> bool {
        let clusters = self.lock();
        let shown = clusters.get(&(namespace.to_owned(), name.to_owned()));
        shown.and_then(|shown| shown.get(&ShownBy::of(member))) == Some(certificate)
    }

    /// Notes what servers have shown, and forgets pods that are gone.
    pub fn note(
        &self,
        (namespace, name): (&str, &str),
        shown: Vec<(ShownBy, FileName)>,
        exists: impl Fn(&ShownBy) -> bool,
    ) {
        let mut clusters = self.lock();
        let known = clusters
            .entry((namespace.to_owned(), name.to_owned()))
            .or_default();
        known.extend(shown);
        known.retain(|pod, _| exists(pod));
    }

    /// Forgets a cluster that is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), Shown>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! What this process remembers of the certificates of clusters: which servers have presented which one in a handshake, so that each is asked
//! once, and what was read last.

use super::{known::ClusterCertificates, state::FileName};
use crate::redis::member::Member;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The pod whose server has presented a certificate: name and uid.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodIdentity(String, Option<String>);

impl PodIdentity {
    /// The pod of a member.
    pub fn of(member: &Member) -> Self {
        let expected = &member.expected;
        Self(expected.pod.clone(), expected.pod_uid.clone())
    }
}

#[derive(Default)]
struct Remembered {
    presented: BTreeMap<PodIdentity, FileName>,
    encrypted_only: BTreeSet<PodIdentity>,
    last: Option<ClusterCertificates>,
}

/// What is remembered, of all clusters.
#[derive(Default)]
pub struct CertificatesTracker(Mutex<HashMap<(String, String), Remembered>>);

impl CertificatesTracker {
    /// Whether the server of a member has presented this certificate.
    pub fn has_presented(
        &self,
        (namespace, name): (&str, &str),
        member: &Member,
        certificate: &FileName,
    ) -> bool {
        let clusters = self.lock();
        let known = clusters.get(&(namespace.to_owned(), name.to_owned()));
        let presented = known.and_then(|known| known.presented.get(&PodIdentity::of(member)));
        presented == Some(certificate)
    }

    /// Notes what servers have presented, and forgets pods that are gone.
    pub fn note(
        &self,
        place: (&str, &str),
        presented: Vec<(PodIdentity, FileName)>,
        exists: impl Fn(&PodIdentity) -> bool,
    ) {
        self.with(place, |known| {
            known.presented.extend(presented);
            known.presented.retain(|pod, _| exists(pod));
        });
    }

    /// Whether the server of a member has no connection in the clear any more.
    pub fn is_encrypted_only(&self, (namespace, name): (&str, &str), member: &Member) -> bool {
        let clusters = self.lock();
        let known = clusters.get(&(namespace.to_owned(), name.to_owned()));
        known.is_some_and(|known| known.encrypted_only.contains(&PodIdentity::of(member)))
    }

    /// Notes whose connections in the clear were closed; of those that are not among `members` nothing is kept.
    pub fn note_encrypted_only(
        &self,
        place: (&str, &str),
        closed: Vec<PodIdentity>,
        members: &[Member],
    ) {
        let all: BTreeSet<PodIdentity> = members.iter().map(PodIdentity::of).collect();
        self.with(place, |known| {
            known.encrypted_only.extend(closed);
            known.encrypted_only.retain(|pod| all.contains(pod));
        });
    }

    /// Notes what was read.
    pub fn remember(&self, place: (&str, &str), certificates: &ClusterCertificates) {
        self.with(place, |known| known.last = Some(certificates.clone()));
    }

    /// What was read last of the RedisCluster with this uid.
    pub fn last(&self, (namespace, name): (&str, &str), uid: &str) -> Option<ClusterCertificates> {
        let clusters = self.lock();
        let known = clusters.get(&(namespace.to_owned(), name.to_owned()))?;
        known.last.clone().filter(|last| last.is_of(uid))
    }

    /// Forgets a cluster that is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    fn with(&self, (namespace, name): (&str, &str), change: impl FnOnce(&mut Remembered)) {
        let mut clusters = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        change(clusters.entry(key).or_default());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), Remembered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

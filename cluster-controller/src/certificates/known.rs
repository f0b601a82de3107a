//! What was read of the certificates of a cluster.

use super::{
    material::{Material, MaterialError},
    state::{CertificatesState, ServerTls},
};
use crate::pods::Mounted;
use common::cluster::transport::Transport;
use crds::{Encryption, TlsPolicy};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

/// The certificates of a cluster, as its Secrets have them.
#[derive(Clone, Debug, Default)]
pub struct ClusterCertificates {
    /// How its nodes are reached.
    pub transport: Transport,
    /// None: the cluster does not encrypt.
    pub(super) known: Option<KnownCertificates>,
}

/// Those of a cluster that encrypts, or is about to, or did.
#[derive(Clone, Debug)]
pub(super) struct KnownCertificates {
    pub(super) owner: OwnerReference,
    pub(super) state: CertificatesState,
    /// Which pods and templates have certificates.
    pub(super) mounted: Mounted,
    /// What the spec wants. None: no encryption.
    pub(super) wanted: Option<WantedCertificates>,
}

/// What the spec wants, and what its Secret has.
#[derive(Clone, Debug)]
pub(super) struct WantedCertificates {
    pub(super) policy: TlsPolicy,
    pub(super) material: Result<Material, MaterialError>,
}

/// What pods and StatefulSets show of a cluster, whatever its Secret has.
#[derive(Clone, Copy, Debug)]
pub struct CertificatesEvidence {
    /// Whether there is no pod yet, and never was a formed cluster.
    pub is_new: bool,
    /// Which pods and templates start servers with certificates.
    pub mounted: Mounted,
}

impl ClusterCertificates {
    /// Whether they are of the RedisCluster with this uid.
    pub fn is_of(&self, uid: &str) -> bool {
        self.known
            .as_ref()
            .is_some_and(|known| known.owner.uid == uid)
    }

    /// How far its servers encrypt.
    pub fn encryption(&self) -> Encryption {
        let known = self.known.as_ref();
        known.map_or(Encryption::Off, |known| known.state.encryption())
    }

    /// Settings that every server is to be asked for.
    pub fn settings(&self) -> impl Iterator<Item = String> {
        let asked = self.known.iter().flat_map(|_| ServerTls::names());
        asked.map(ToOwned::to_owned)
    }
}

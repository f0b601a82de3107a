//! What was read of the certificates of a cluster.

use super::{
    material::{Material, MaterialError},
    state::{CertificatesState, ServerFiles},
};
use common::cluster::transport::Transport;
use crds::TlsPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

/// The certificates of a cluster, as its Secrets have them.
#[derive(Clone, Debug, Default)]
pub struct ClusterCertificates {
    /// How its nodes are reached.
    pub transport: Transport,
    /// None: the cluster does not encrypt.
    pub(super) known: Option<KnownCertificates>,
}

/// Those of a cluster that encrypts.
#[derive(Clone, Debug)]
pub(super) struct KnownCertificates {
    pub(super) owner: OwnerReference,
    pub(super) policy: TlsPolicy,
    pub(super) state: CertificatesState,
    pub(super) wanted: Result<Material, MaterialError>,
}

impl ClusterCertificates {
    /// Whether they are of the RedisCluster with this uid.
    pub fn is_of(&self, uid: &str) -> bool {
        self.known
            .as_ref()
            .is_some_and(|known| known.owner.uid == uid)
    }

    /// Settings that every server is to be asked for.
    pub fn settings(&self) -> impl Iterator<Item = String> {
        let asked = self.known.iter().flat_map(|_| ServerFiles::SETTINGS);
        asked.map(ToOwned::to_owned)
    }
}

//! Where the nodes of a cluster are asked, and which ones count there.
//!
//! Seeds are addresses of pods, and an address proves nothing: Kubernetes gives the one of a pod that is gone to another pod, of another
//! cluster too. So no seed is believed, written to or counted before it has proved to be one of the nodes that are recorded as the
//! cluster's.

use super::{
    endpoint::{Endpoint, ExpectedIdentity, Login, NodeAccess},
    topology::NodeId,
    transport::Transport,
};
use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

/// Addresses at which nodes of one cluster may be, and the ids of its nodes. There is at least one of each. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seeds {
    addresses: Arc<[SocketAddr]>,
    access: NodeAccess,
}

/// Why a cluster cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSeeds {
    /// It has no address.
    #[error("no pod of the cluster has an address")]
    NoPods,
    /// Its nodes are not known.
    #[error(
        "the status of the RedisCluster lists no node yet: waiting until the cluster-controller has recorded which nodes are its own"
    )]
    NoNodes,
    /// The certificates of an encrypted cluster are missing or damaged.
    #[error(
        "the Secret with the certificates of the cluster is missing or damaged: waiting until the cluster-controller writes it again"
    )]
    NoCertificates,
    /// The name is another cluster's by now.
    #[error("the RedisCluster was deleted and another one was created under its name")]
    OtherCluster,
}

impl Seeds {
    /// Nodes with these ids, at these addresses.
    pub fn new(
        addresses: impl IntoIterator<Item = SocketAddr>,
        members: impl IntoIterator<Item = NodeId>,
    ) -> Result<Self, NoSeeds> {
        let addresses: Arc<[SocketAddr]> = addresses.into_iter().collect();
        let members: BTreeSet<NodeId> = members.into_iter().collect();
        if addresses.is_empty() {
            return Err(NoSeeds::NoPods);
        }
        if members.is_empty() {
            return Err(NoSeeds::NoNodes);
        }
        let access = NodeAccess::default().expecting(Arc::new(members));
        Ok(Self { addresses, access })
    }

    /// Logs in so.
    #[must_use]
    pub fn with_login(mut self, login: Login) -> Self {
        self.access.login = login;
        self
    }

    /// Encrypts so.
    #[must_use]
    pub fn with_transport(mut self, transport: Transport) -> Self {
        self.access.transport = transport;
        self
    }

    /// Where nodes of the cluster may be.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// How nodes of the cluster are recognized.
    pub fn access(&self) -> &NodeAccess {
        &self.access
    }

    /// Which nodes count.
    pub fn expected(&self) -> ExpectedIdentity {
        self.access.expected.clone()
    }

    /// Connections that lead to nodes of the cluster only. `timeout` bounds the connecting and each answer.
    pub fn endpoints(&self, timeout: Duration) -> Vec<Endpoint> {
        let endpoint = |address: &SocketAddr| self.access.endpoint(*address, timeout);
        self.addresses.iter().map(endpoint).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_seed_is_asked_without_an_identity() {
        let address = SocketAddr::from(([10, 0, 0, 1], 6379));
        let [ours, other] = [1, 2].map(|byte| NodeId::from_bytes([byte; 20]));
        assert_eq!(Seeds::new([], [ours]), Err(NoSeeds::NoPods));
        assert_eq!(Seeds::new([address], []), Err(NoSeeds::NoNodes));
        let seeds = Seeds::new([address], [ours]).unwrap();
        for endpoint in seeds.endpoints(Duration::from_secs(1)) {
            assert!(endpoint.expected().accepts(ours) && !endpoint.expected().accepts(other));
        }
    }
}

//! How servers and storage are reached, as Kubernetes knows it: the pods' addresses, the bucket with its Secrets.

use crate::{
    claims::jobs::JobFailure,
    cluster::{
        seeds::{NoSeeds, Seeds},
        topology::NodeId,
    },
    errors::{Classified, Recovery},
    kubernetes::{
        call::{self, ApiError},
        pods,
    },
    storage::{
        AmbientRefusal, AuthorityError, CertificateAuthority, Credentials, Location, ObjectStore,
        StorageError, StorageRules, StoreAccess, StoreIdentity, location::CredentialsError,
    },
};
use crds::{
    CLIENT_PORT, CONTAINER, LABEL_CLUSTER, LocalRef, RedisCluster, S3Location, SecretKeyRef,
};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, Client, ResourceExt, api::ListParams};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

/// Pods of a cluster by the address at which their node listens for clients.
pub type PodNames = BTreeMap<SocketAddr, String>;

/// The nodes of a cluster, as its pods and its status show them.
#[derive(Clone, Debug)]
pub struct ClusterNodes {
    /// Pods with an address. Another cluster's server may answer there.
    pub pods: PodNames,
    /// Identity of the RedisCluster.
    uid: Option<String>,
    /// The nodes that the cluster-controller has recorded as the cluster's.
    members: Vec<NodeId>,
}

impl ClusterNodes {
    /// Where to ask, and who may answer. `uid`: the RedisCluster that is meant, if that is recorded.
    pub fn seeds(&self, uid: Option<&str>) -> Result<Seeds, NoSeeds> {
        if uid.is_some_and(|uid| self.uid.as_deref() != Some(uid)) {
            return Err(NoSeeds::OtherCluster);
        }
        Seeds::new(self.pods.keys().copied(), self.members.iter().copied())
    }
}

/// Reads which pods a cluster has, and which nodes are its own. Of a RedisCluster that does not exist, none are.
pub async fn nodes(
    client: &Client,
    namespace: &str,
    cluster: &str,
) -> Result<ClusterNodes, ApiError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let what = format!("list the Pods of RedisCluster {namespace}/{cluster}");
    let labels = format!("{LABEL_CLUSTER}={cluster}");
    let parameters = ListParams::default().labels(&labels);
    let list = call::read_patiently(&what, || api.list(&parameters)).await?;
    // Read after the pods: a node is recorded before it gets any role, so whichever of these pods serves is among them.
    let api: Api<RedisCluster> = Api::namespaced(client.clone(), namespace);
    let what = format!("get RedisCluster {namespace}/{cluster}");
    let cluster = call::read_patiently(&what, || api.get_opt(cluster)).await?;
    Ok(nodes_of(&list.items, cluster.as_ref()))
}

fn nodes_of(pods: &[Pod], cluster: Option<&RedisCluster>) -> ClusterNodes {
    let address = |pod: &Pod| {
        Some((
            SocketAddr::new(pods::ip(pod)?, client_port(pod)),
            pod.name_any(),
        ))
    };
    let status = cluster.and_then(|cluster| cluster.status.as_ref());
    let known = status.iter().flat_map(|status| &status.nodes);
    ClusterNodes {
        pods: pods.iter().filter_map(address).collect(),
        uid: cluster.and_then(ResourceExt::uid),
        members: known.filter_map(|node| node.node_id.parse().ok()).collect(),
    }
}

/// The first port that the server's container declares; the usual one where it declares none.
fn client_port(pod: &Pod) -> u16 {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers
        .filter(|container| container.name == CONTAINER)
        .flat_map(|container| container.ports.iter().flatten());
    let declared = ports.next().map(|port| port.container_port);
    declared
        .and_then(|port| u16::try_from(port).ok())
        .unwrap_or(CLIENT_PORT)
}

/// Why a bucket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The Secret does not exist.
    #[error(
        "Secret {name} for bucket {bucket} does not exist in this namespace: create it with {keys}"
    )]
    NoSecret {
        /// Name of the Secret.
        name: String,
        /// Name of the bucket that asks for it.
        bucket: String,
        /// What it has to hold.
        keys: String,
    },
    /// The Secret holds no access key.
    #[error("Secret {name} for bucket {bucket}: {source}")]
    Credentials {
        /// Name of the Secret.
        name: String,
        /// Name of the bucket that asks for it.
        bucket: String,
        /// What is wrong.
        source: CredentialsError,
    },
    /// The Secret lacks the key of the certificate authority.
    #[error(
        "Secret {name} for bucket {bucket} has no key {key}: add it with the certificate authority in PEM form, or correct caSecretRef"
    )]
    NoAuthority {
        /// Name of the Secret.
        name: String,
        /// Name of the bucket that asks for it.
        bucket: String,
        /// Key in the Secret's data.
        key: String,
    },
    /// The Secret holds no certificate authority.
    #[error("key {key} of Secret {name} for bucket {bucket}: {source}")]
    Authority {
        /// Name of the Secret.
        name: String,
        /// Name of the bucket that asks for it.
        bucket: String,
        /// Key in the Secret's data.
        key: String,
        /// What is wrong.
        source: AuthorityError,
    },
    /// It names no credentials, and the operator's rules do not give it the controller's own.
    #[error("bucket {bucket} has no credentialsSecretRef: {source}")]
    Ambient {
        /// Name of the bucket without credentials.
        bucket: String,
        /// The rule that refuses the controller's own identity.
        source: AmbientRefusal,
    },
    /// The API server did not return the Secret.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The location is invalid.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl AccessError {
    /// CamelCase.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoSecret { .. } => "CredentialsNotFound",
            Self::Credentials { .. } => "CredentialsMalformed",
            Self::NoAuthority { .. } | Self::Authority { .. } => "CertificateAuthorityMalformed",
            Self::Ambient { .. } => "AmbientIdentityNotAllowed",
            Self::Api(error) => error.reason(),
            Self::Storage(error) => error.reason(),
        }
    }

    /// Whether the bucket may be opened when it is tried again.
    pub fn recovery(&self) -> Recovery {
        match self {
            // A Secret is often applied a moment after what names it.
            Self::NoSecret { .. } | Self::Api(_) => Recovery::Soon,
            Self::Credentials { .. }
            | Self::NoAuthority { .. }
            | Self::Authority { .. }
            | Self::Ambient { .. } => Recovery::Later,
            Self::Storage(error) => error.recovery(),
        }
    }
}

impl From<AccessError> for JobFailure {
    fn from(error: AccessError) -> Self {
        Self {
            reason: error.reason(),
            message: error.to_string(),
            transient: error.recovery() == Recovery::Soon,
        }
    }
}

/// Opens the buckets that objects of tenants name, within the operator's rules. Cheap to clone.
#[derive(Clone)]
pub struct Buckets {
    client: Client,
    rules: Arc<StorageRules>,
}

impl Buckets {
    /// Secrets are read with this client.
    pub fn new(client: Client, rules: StorageRules) -> Self {
        Self {
            client,
            rules: Arc::new(rules),
        }
    }

    /// Opens a bucket for an object of this namespace; sends nothing to the store.
    pub async fn open(
        &self,
        namespace: &str,
        spec: &S3Location,
    ) -> Result<ObjectStore, AccessError> {
        let location = Location::from_spec(spec).map_err(StorageError::from)?;
        let identity = match &spec.credentials_secret_ref {
            Some(reference) => {
                let credentials = self.credentials(namespace, reference, &spec.bucket);
                StoreIdentity::AccessKey(credentials.await?)
            }
            None => self.ambient(namespace, &location)?,
        };
        let authority = match &spec.ca_secret_ref {
            Some(reference) => Some(self.authority(namespace, reference, &spec.bucket).await?),
            None => None,
        };
        let access = StoreAccess {
            identity,
            addresses: self.rules.addresses(location.endpoint()),
            authority,
        };
        Ok(ObjectStore::connect(location, access).await)
    }

    fn ambient(&self, namespace: &str, location: &Location) -> Result<StoreIdentity, AccessError> {
        let checked = self.rules.check_ambient(namespace, location.endpoint());
        checked.map_err(|source| AccessError::Ambient {
            bucket: location.bucket().to_owned(),
            source,
        })?;
        Ok(StoreIdentity::Ambient)
    }

    async fn credentials(
        &self,
        namespace: &str,
        reference: &LocalRef,
        bucket: &str,
    ) -> Result<Credentials, AccessError> {
        let keys = "the keys accessKeyId and secretAccessKey";
        let data = self
            .secret(namespace, &reference.name, bucket, keys)
            .await?;
        Credentials::from_secret(&data).map_err(|source| AccessError::Credentials {
            name: reference.name.clone(),
            bucket: bucket.to_owned(),
            source,
        })
    }

    async fn authority(
        &self,
        namespace: &str,
        reference: &SecretKeyRef,
        bucket: &str,
    ) -> Result<CertificateAuthority, AccessError> {
        let SecretKeyRef { name, key } = reference.clone();
        let keys = format!("the certificate authority under the key {key}");
        let data = self.secret(namespace, &name, bucket, &keys).await?;
        let bucket = bucket.to_owned();
        let Some(pem) = data.get(&key) else {
            return Err(AccessError::NoAuthority { name, bucket, key });
        };
        CertificateAuthority::from_pem(pem).map_err(|source| AccessError::Authority {
            name,
            bucket,
            key,
            source,
        })
    }

    /// One Secret by its name: the controllers have no right to list them.
    async fn secret(
        &self,
        namespace: &str,
        name: &str,
        bucket: &str,
        keys: &str,
    ) -> Result<BTreeMap<String, Vec<u8>>, AccessError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let what = format!("get Secret {namespace}/{name}");
        let secret = call::read_patiently(&what, || api.get_opt(name)).await?;
        let secret = secret.ok_or_else(|| AccessError::NoSecret {
            name: name.to_owned(),
            bucket: bucket.to_owned(),
            keys: keys.to_owned(),
        })?;
        let data = secret.data.unwrap_or_default().into_iter();
        Ok(data.map(|(key, value)| (key, value.0)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, metadata: &Value, status: &Value) -> Pod {
        let mut pod = json!({"metadata": metadata, "status": status});
        pod["metadata"]["name"] = name.into();
        serde_json::from_value(pod).unwrap()
    }

    fn cluster(uid: &str, ids: &[NodeId]) -> RedisCluster {
        let nodes: Vec<Value> = ids
            .iter()
            .map(|id| json!({"pod": "shop-0-0", "nodeId": id.to_string()}))
            .collect();
        serde_json::from_value(json!({"metadata": {"name": "shop", "uid": uid},
            "spec": {"image": "redis", "shards": 3}, "status": {"nodes": nodes}}))
        .unwrap()
    }

    #[test]
    fn only_recorded_nodes_at_addresses_in_use_are_asked() {
        let [ours, other] = [1, 2].map(|byte| NodeId::from_bytes([byte; 20]));
        let pods = [
            pod(
                "runs",
                &json!({}),
                &json!({"phase": "Running", "podIP": "10.0.0.1"}),
            ),
            pod(
                "ended",
                &json!({}),
                &json!({"phase": "Failed", "podIP": "10.0.0.2"}),
            ),
            pod(
                "went",
                &json!({"deletionTimestamp": "2026-01-01T10:00:00Z"}),
                &json!({"phase": "Running", "podIP": "10.0.0.3"}),
            ),
        ];
        let nodes = nodes_of(&pods, Some(&cluster("uid", &[ours])));
        let seeds = nodes.seeds(None).unwrap();
        assert_eq!(seeds.addresses(), [([10, 0, 0, 1], 6379).into()]);
        assert!(seeds.expected().accepts(ours) && !seeds.expected().accepts(other));
        assert!(nodes.seeds(Some("uid")).is_ok());
        assert_eq!(nodes.seeds(Some("earlier")), Err(NoSeeds::OtherCluster));
        for nothing in [None, Some(&cluster("uid", &[]))] {
            assert_eq!(nodes_of(&pods, nothing).seeds(None), Err(NoSeeds::NoNodes));
        }
    }
}

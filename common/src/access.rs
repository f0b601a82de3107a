//! How servers and storage are reached, as Kubernetes knows it: the pods' addresses, the bucket with its Secrets.

use crate::{
    claims::jobs::JobFailure,
    cluster::{
        endpoint::Login,
        seeds::{NoSeeds, Seeds},
        topology::NodeId,
        transport::{TlsAccess, Transport},
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
    Authentication, CONTAINER, Encryption, KEY_ACCEPTED, KEY_ENCRYPTION, LABEL_CLUSTER, LocalRef,
    OwnUser, PORT_TLS, RedisCluster, S3Location, SecretKeyRef, certificates_secret_name,
};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, Client, ResourceExt, api::ListParams};
use secrecy::SecretString;
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
    login: Login,
    /// None: the cluster encrypts, and its certificates cannot be used.
    transport: Option<Transport>,
}

impl ClusterNodes {
    /// Where to ask, and who may answer. `uid`: the RedisCluster that is meant, if that is recorded.
    pub fn seeds(&self, uid: Option<&str>) -> Result<Seeds, NoSeeds> {
        if uid.is_some_and(|uid| self.uid.as_deref() != Some(uid)) {
            return Err(NoSeeds::OtherCluster);
        }
        let seeds = Seeds::new(self.pods.keys().copied(), self.members.iter().copied())?;
        let transport = self.transport.clone().ok_or(NoSeeds::NoCertificates)?;
        Ok(seeds
            .with_login(self.login.clone())
            .with_transport(transport))
    }
}

/// Reads which pods a cluster has, which nodes are its own, and how this user reaches them. Of a RedisCluster that does not exist, none
/// are.
pub async fn nodes(
    client: &Client,
    namespace: &str,
    cluster: &str,
    user: OwnUser,
) -> Result<ClusterNodes, ApiError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let what = format!("list the Pods of RedisCluster {namespace}/{cluster}");
    let labels = format!("{LABEL_CLUSTER}={cluster}");
    let parameters = ListParams::default().labels(&labels);
    let list = call::read_patiently(&what, || api.list(&parameters)).await?;
    // Read after the pods: a node is recorded before it gets any role, so whichever of these pods serves is among them.
    let api: Api<RedisCluster> = Api::namespaced(client.clone(), namespace);
    let what = format!("get RedisCluster {namespace}/{cluster}");
    let object = call::read_patiently(&what, || api.get_opt(cluster)).await?;
    let status = object.as_ref().and_then(|object| object.status.as_ref());
    let authentication = status.map(|status| status.authentication);
    let authentication = authentication.unwrap_or_default();
    let login = login(client, (namespace, cluster), user, authentication).await?;
    // While that changes, its Secret alone says how far it has come.
    let may_encrypt = object.as_ref().is_some_and(|object| {
        object.spec.tls.is_some() || status.is_some_and(|status| status.tls.is_some())
    });
    let transport = if may_encrypt {
        transport(client, (namespace, cluster), &list.items).await?
    } else {
        Some(Transport::Plain)
    };
    Ok(nodes_of(&list.items, object.as_ref(), login, transport))
}

/// None: its certificates cannot be used.
async fn transport(
    client: &Client,
    (namespace, cluster): (&str, &str),
    pods: &[Pod],
) -> Result<Option<Transport>, ApiError> {
    let secret = certificates_secret_name(cluster);
    let files = read_secret(client, namespace, &secret).await?;
    // What the spec asks for may have no certificate that can be used: then no pod has any.
    let none_encrypts = || {
        pods.iter()
            .all(|pod| declared_port(pod, PORT_TLS).is_none())
    };
    if files.is_none() && none_encrypts() {
        return Ok(Some(Transport::Plain));
    }
    let files = files.unwrap_or_default();
    if encryption(&files).is_some_and(|encryption| !encryption.is_used()) {
        return Ok(Some(Transport::Plain));
    }
    match TlsAccess::from_files(&files) {
        Ok(access) => Ok(Some(Transport::Tls(access))),
        Err(error) => {
            tracing::warn!(namespace, secret, %error, "the certificates of a cluster cannot be used");
            Ok(None)
        }
    }
}

fn encryption(files: &BTreeMap<String, Vec<u8>>) -> Option<Encryption> {
    let name = std::str::from_utf8(files.get(KEY_ENCRYPTION)?).ok()?;
    Encryption::parse(name)
}

/// How a user logs in to the servers of a cluster whose clients have to log in so far.
async fn login(
    client: &Client,
    (namespace, cluster): (&str, &str),
    user: OwnUser,
    authentication: Authentication,
) -> Result<Login, ApiError> {
    if authentication == Authentication::Off {
        return Ok(Login::None);
    }
    let secret = read_secret(client, namespace, &user.secret_name(cluster)).await?;
    Ok(login_of(secret.as_ref(), user, authentication))
}

fn login_of(
    secret: Option<&BTreeMap<String, Vec<u8>>>,
    user: OwnUser,
    authentication: Authentication,
) -> Login {
    let password = secret.and_then(|data| data.get(KEY_ACCEPTED));
    let password = password.and_then(|bytes| String::from_utf8(bytes.clone()).ok());
    // Without its Secret it is refused, which names the user.
    let password = SecretString::from(password.unwrap_or_default());
    Login::of(user, password, authentication)
}

/// One Secret by its name: the controllers have no right to list them.
async fn read_secret(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<BTreeMap<String, Vec<u8>>>, ApiError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let what = format!("get Secret {namespace}/{name}");
    let secret = call::read_patiently(&what, || api.get_opt(name)).await?;
    let bytes = |data: BTreeMap<String, k8s_openapi::ByteString>| {
        let pairs = data.into_iter().map(|(key, value)| (key, value.0));
        pairs.collect()
    };
    Ok(secret.map(|secret| bytes(secret.data.unwrap_or_default())))
}

fn nodes_of(
    pods: &[Pod],
    cluster: Option<&RedisCluster>,
    login: Login,
    transport: Option<Transport>,
) -> ClusterNodes {
    let how = transport.as_ref().unwrap_or(&Transport::Plain);
    let (usual, name) = (how.port(), how.port_name());
    let address = |pod: &Pod| {
        let port = declared_port(pod, name).unwrap_or(usual);
        Some((SocketAddr::new(pods::ip(pod)?, port), pod.name_any()))
    };
    let status = cluster.and_then(|cluster| cluster.status.as_ref());
    let known = status.iter().flat_map(|status| &status.nodes);
    ClusterNodes {
        pods: pods.iter().filter_map(address).collect(),
        uid: cluster.and_then(ResourceExt::uid),
        members: known.filter_map(|node| node.node_id.parse().ok()).collect(),
        login,
        transport,
    }
}

/// The port of this name that the server's container declares.
fn declared_port(pod: &Pod, name: &str) -> Option<u16> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers
        .filter(|container| container.name == CONTAINER)
        .flat_map(|container| container.ports.iter().flatten());
    let declared = ports.find(|port| port.name.as_deref() == Some(name))?;
    u16::try_from(declared.container_port).ok()
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

    async fn secret(
        &self,
        namespace: &str,
        name: &str,
        bucket: &str,
        keys: &str,
    ) -> Result<BTreeMap<String, Vec<u8>>, AccessError> {
        let data = read_secret(&self.client, namespace, name).await?;
        data.ok_or_else(|| AccessError::NoSecret {
            name: name.to_owned(),
            bucket: bucket.to_owned(),
            keys: keys.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::endpoint::NodeCredentials;
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
        let nodes = nodes_of(
            &pods,
            Some(&cluster("uid", &[ours])),
            Login::None,
            Some(Transport::Plain),
        );
        let seeds = nodes.seeds(None).unwrap();
        assert_eq!(seeds.addresses(), [([10, 0, 0, 1], 6379).into()]);
        assert!(seeds.expected().accepts(ours) && !seeds.expected().accepts(other));
        assert!(nodes.seeds(Some("uid")).is_ok());
        assert_eq!(nodes.seeds(Some("earlier")), Err(NoSeeds::OtherCluster));
        for nothing in [None, Some(&cluster("uid", &[]))] {
            let nodes = nodes_of(&pods, nothing, Login::None, Some(Transport::Plain));
            assert_eq!(nodes.seeds(None), Err(NoSeeds::NoNodes));
        }
    }

    #[test]
    fn a_cluster_that_requires_a_login_is_not_entered_without() {
        let secret = BTreeMap::from([(KEY_ACCEPTED.to_owned(), b"secret".to_vec())]);
        let of = |secret, how| login_of(secret, OwnUser::Backup, how);
        let known = NodeCredentials::new(OwnUser::Backup.name(), "secret".into());
        assert_eq!(of(Some(&secret), Authentication::Off), Login::None);
        for how in [Authentication::Introducing, Authentication::Withdrawing] {
            assert_eq!(of(Some(&secret), how), Login::Optional(known.clone()));
        }
        let required = of(Some(&secret), Authentication::Required);
        assert_eq!(required, Login::Required(known));
        assert!(matches!(
            of(None, Authentication::Required),
            Login::Required(_)
        ));
    }
}

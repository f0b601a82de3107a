//! What Kubernetes knows of the way to servers and to storage: the pods' addresses, the bucket with its credentials.

use crate::{
    claims::jobs::JobFailure,
    kubernetes::{
        call::{self, ApiError},
        errors::Classified,
    },
    storage::{Credentials, Location, ObjectStore, StorageError, location::CredentialsError},
};
use crds::{CLIENT_PORT, CONTAINER, LABEL_CLUSTER, S3Location};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, Client, ResourceExt, api::ListParams};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

/// Pods of a cluster by the address at which their node listens for clients.
pub type PodNames = BTreeMap<SocketAddr, String>;

/// The running pods of a cluster that have an address.
pub async fn pods(client: &Client, namespace: &str, cluster: &str) -> Result<PodNames, ApiError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let what = format!("list the Pods of RedisCluster {namespace}/{cluster}");
    let labels = format!("{LABEL_CLUSTER}={cluster}");
    let list = call::read(what, api.list(&ListParams::default().labels(&labels))).await?;
    let address = |pod: &Pod| {
        let ip: IpAddr = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
        Some((SocketAddr::new(ip, client_port(pod)), pod.name_any()))
    };
    Ok(list.items.iter().filter_map(address).collect())
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

/// Why the storage cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The Secret is missing.
    #[error(
        "Secret {name} with the credentials for bucket {bucket} does not exist in this namespace: create it with the keys accessKeyId and secretAccessKey"
    )]
    NoSecret {
        /// The Secret.
        name: String,
        /// The bucket.
        bucket: String,
    },
    /// The Secret is not as it should be.
    #[error("Secret {name} for bucket {bucket}: {source}")]
    Secret {
        /// The Secret.
        name: String,
        /// The bucket.
        bucket: String,
        /// What is wrong.
        source: CredentialsError,
    },
    /// The API server did not give the Secret.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The location is wrong.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl AccessError {
    /// CamelCase.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoSecret { .. } => "CredentialsNotFound",
            Self::Secret { .. } => "CredentialsMalformed",
            Self::Api(error) => error.reason(),
            Self::Storage(error) => error.reason(),
        }
    }

    /// Whether it may pass by itself.
    pub fn is_transient(&self) -> bool {
        match self {
            // A Secret is often applied a moment after what names it.
            Self::NoSecret { .. } | Self::Api(_) => true,
            Self::Secret { .. } => false,
            Self::Storage(error) => error.is_transient(),
        }
    }
}

impl From<AccessError> for JobFailure {
    fn from(error: AccessError) -> Self {
        Self {
            reason: error.reason(),
            message: error.to_string(),
            transient: error.is_transient(),
        }
    }
}

/// Opens the bucket with the credentials of the Secret it names, if it names one.
pub async fn store(
    client: &Client,
    namespace: &str,
    spec: &S3Location,
) -> Result<ObjectStore, AccessError> {
    let location = Location::from_spec(spec).map_err(StorageError::from)?;
    let credentials = match &spec.credentials_secret_ref {
        None => None,
        Some(reference) => {
            Some(credentials(client, namespace, &reference.name, &spec.bucket).await?)
        }
    };
    Ok(ObjectStore::connect(location, credentials).await)
}

/// One Secret by its name: no controller may list any.
async fn credentials(
    client: &Client,
    namespace: &str,
    name: &str,
    bucket: &str,
) -> Result<Credentials, AccessError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let what = format!("get Secret {namespace}/{name}");
    let Some(secret) = call::read_optional(what, api.get(name)).await? else {
        return Err(AccessError::NoSecret {
            name: name.to_owned(),
            bucket: bucket.to_owned(),
        });
    };
    let data: BTreeMap<String, Vec<u8>> = secret
        .data
        .unwrap_or_default()
        .into_iter()
        .map(|(key, value)| (key, value.0))
        .collect();
    Credentials::from_secret(&data).map_err(|source| AccessError::Secret {
        name: name.to_owned(),
        bucket: bucket.to_owned(),
        source,
    })
}

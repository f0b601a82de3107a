//! What a restore needs from outside: the bucket with its credentials, the pods' addresses.

use crate::plan::Trouble;
use common::{
    kubernetes::{
        call::{self, ApiError},
        errors::Classified,
    },
    storage::{Credentials, Location, ObjectStore, StorageError, location::CredentialsError},
};
use crds::{CLIENT_PORT, LABEL_CLUSTER, S3Location};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, Client, api::ListParams};
use std::{collections::BTreeMap, net::SocketAddr};

/// Where the nodes of a cluster listen: its pods that have an address.
pub async fn addresses(
    client: &Client,
    namespace: &str,
    cluster: &str,
) -> Result<Vec<SocketAddr>, ApiError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let what = format!("list the Pods of RedisCluster {namespace}/{cluster}");
    let labels = format!("{LABEL_CLUSTER}={cluster}");
    let list = call::read(what, api.list(&ListParams::default().labels(&labels))).await?;
    let address = |pod: &Pod| {
        let ip = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
        Some(SocketAddr::new(ip, CLIENT_PORT))
    };
    let mut addresses: Vec<_> = list.items.iter().filter_map(address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// Why the bucket cannot be used.
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
    /// The location is wrong, or a request failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The manifest is another than the one that was proven.
    #[error(
        "{key} in bucket {bucket} has SHA-256 {found}, expected {expected}: the manifest was replaced; restore another backup"
    )]
    OtherManifest {
        /// The bucket.
        bucket: String,
        /// Key of the manifest.
        key: String,
        /// What was vouched for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// An object is not there in full length.
    #[error(
        "the backup is incomplete: {key} in bucket {bucket} has {found} bytes instead of {expected}; restore another backup"
    )]
    Incomplete {
        /// The bucket.
        bucket: String,
        /// Key of the object.
        key: String,
        /// Its length as the manifest says.
        expected: u64,
        /// Its length; 0 if there is none.
        found: u64,
    },
    /// The status names a shard that the manifest lacks.
    #[error("the manifest has no shard {0}")]
    NoShard(i32),
}

impl AccessError {
    /// CamelCase.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoSecret { .. } => "CredentialsNotFound",
            Self::Secret { .. } => "CredentialsMalformed",
            Self::Api(error) => error.reason(),
            Self::Storage(error) => error.reason(),
            Self::OtherManifest { .. } => "ManifestReplaced",
            Self::Incomplete { .. } => "BackupIncomplete",
            Self::NoShard(_) => "StatusMalformed",
        }
    }

    /// Whether it may pass by itself.
    pub fn is_transient(&self) -> bool {
        match self {
            // A Secret is often applied a moment after what names it.
            Self::NoSecret { .. } | Self::Api(_) => true,
            Self::Secret { .. }
            | Self::OtherManifest { .. }
            | Self::Incomplete { .. }
            | Self::NoShard(_) => false,
            Self::Storage(error) => error.is_transient(),
        }
    }
}

impl From<AccessError> for Trouble {
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
        Some(secret) => Some(credentials(client, namespace, &secret.name, &spec.bucket).await?),
    };
    Ok(ObjectStore::connect(location, credentials).await)
}

/// One Secret by its name: the controller may not list any.
async fn credentials(
    client: &Client,
    namespace: &str,
    name: &str,
    bucket: &str,
) -> Result<Credentials, AccessError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let what = format!("get Secret {namespace}/{name}");
    let (name, bucket) = (name.to_owned(), bucket.to_owned());
    let Some(secret) = call::read_optional(what, api.get(&name)).await? else {
        return Err(AccessError::NoSecret { name, bucket });
    };
    let data = secret.data.unwrap_or_default();
    let data: BTreeMap<String, Vec<u8>> = data.into_iter().map(|(k, v)| (k, v.0)).collect();
    Credentials::from_secret(&data).map_err(|source| AccessError::Secret {
        name,
        bucket,
        source,
    })
}

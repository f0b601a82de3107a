//! A namespace with an S3 bucket, and pods that are objects only: each stands for a server and carries its address.

use crate::{
    kubernetes::{ApiServer, api_server},
    s3::TestBucket,
};
use anyhow::Result;
use crds::{CLIENT_PORT, CONTAINER, LABEL_CLUSTER, LocalRef, PORT_CLIENT, S3Location};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Pod, Secret},
};
use kube::{
    Api, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use std::net::SocketAddr;

/// The namespace and its bucket; the Secret `s3` has the key.
pub struct TestNamespace {
    /// The API server.
    pub server: ApiServer,
    /// Name of the namespace.
    pub namespace: String,
    /// An S3 server with a bucket of its own.
    pub bucket: TestBucket,
}

impl TestNamespace {
    /// A new namespace whose name begins with `prefix`.
    pub async fn new(prefix: &str) -> Result<Self> {
        let server = api_server().await?;
        let made = Self {
            namespace: server.namespace(prefix).await?,
            bucket: TestBucket::start().await?,
            server,
        };
        made.secret("s3", &made.bucket.key().secret).await?;
        Ok(made)
    }

    /// The API of a kind in the namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.server.client.clone(), &self.namespace)
    }

    /// Creates a Secret with the bucket's key id and this secret key.
    pub async fn secret(&self, name: &str, secret: &str) -> Result<()> {
        let text = json!({"metadata": {"name": name},
            "stringData": {"accessKeyId": self.bucket.key().id, "secretAccessKey": secret}});
        let secret: Secret = serde_json::from_value(text)?;
        self.api().create(&PostParams::default(), &secret).await?;
        Ok(())
    }

    /// The bucket with the key of the Secret `s3`.
    pub fn storage(&self) -> S3Location {
        S3Location {
            bucket: TestBucket::NAME.into(),
            endpoint: Some(self.bucket.server().endpoint()),
            credentials_secret_ref: Some(LocalRef { name: "s3".into() }),
            ..S3Location::default()
        }
    }

    /// Creates a running pod of a cluster, whose server is at this address.
    pub async fn pod(&self, cluster: &str, name: &str, address: SocketAddr) -> Result<()> {
        let port = match address.port() {
            CLIENT_PORT => json!([]),
            other => json!([{"name": PORT_CLIENT, "containerPort": other}]),
        };
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {LABEL_CLUSTER: cluster}},
            "spec": {"containers": [{"name": CONTAINER, "image": "redis", "ports": port}]},
        }))?;
        let api: Api<Pod> = self.api();
        api.create(&PostParams::default(), &pod).await?;
        let ip = address.ip().to_string();
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await?;
        Ok(())
    }
}

//! The Kubernetes client of the process.

use super::run::Program;
use axum::http::{HeaderValue, header::USER_AGENT};
use kube::{Client, Config};
use std::time::Duration;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Another crypto provider is installed already.
    #[error("cannot install the aws-lc-rs crypto provider: another one is installed already")]
    CryptoProvider,
    /// Neither a ServiceAccount nor a kubeconfig.
    #[error("cannot find the API server: neither in-cluster configuration nor a usable kubeconfig")]
    Configuration(#[source] kube::config::InferConfigError),
    /// The configuration does not make a client.
    #[error("cannot make a Kubernetes client of the configuration")]
    Client(#[source] kube::Error),
}

/// Installs the process's TLS crypto provider. With two in the tree rustls could not choose and would panic at its first use, so
/// this is explicit and a failure ends the process.
pub fn install_crypto_provider() -> Result<(), ConnectError> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| ConnectError::CryptoProvider)
}

/// A client from the pod's ServiceAccount or the kubeconfig.
///
/// It has no read timeout, because watches share it: calls are bounded by [`crate::kubernetes::call`].
pub async fn connect(program: Program) -> Result<Client, ConnectError> {
    let mut config = Config::infer().await.map_err(ConnectError::Configuration)?;
    config.connect_timeout = Some(Duration::from_secs(5));
    if let Ok(agent) = HeaderValue::from_str(&format!("{}/{}", program.name, program.version)) {
        config.headers.push((USER_AGENT, agent));
    }
    Client::try_from(config).map_err(ConnectError::Client)
}

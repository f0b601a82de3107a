//! The Kubernetes clients of the process.

use super::program::Program;
use axum::http::{
    HeaderValue,
    header::{CONNECTION, USER_AGENT},
};
use kube::{Client, Config};
use std::time::Duration;

/// How much later than promised the API server may end a watch. Less than the 5 s after which kube's watcher gives the watch up by itself:
/// that starts another one and reports nothing.
const WATCH_GRACE: Duration = Duration::from_secs(3);

/// The clients of one process.
#[derive(Clone)]
pub struct Clients {
    /// For everything: connections are kept and shared. Its read timeout is for the watches, which nothing else bounds: a server that
    /// neither answers nor ends them fails them. Calls are bounded where they are made, and repeated by who makes them.
    pub requests: Client,
    /// For leases: every request has a connection of its own. A kept connection whose other end is gone lets request after request
    /// wait, and the promise of a lease ends meanwhile.
    pub leases: Client,
}

impl Clients {
    /// Two clients of one configuration. `watch`: how long a watch lasts, within which its connection is never silent.
    pub fn new(mut config: Config, watch: Duration) -> Result<Self, ConnectError> {
        config.connect_timeout = Some(Duration::from_secs(5));
        config.read_timeout = Some(watch + WATCH_GRACE);
        // Counted from the request, not from when the connection became idle.
        config.reset_reader_on_write = true;
        // kube's own retries of 429, 503 and 504 would outlast the bound of a call and hide the failure of a watch.
        config.default_retry = false;
        let mut closing = config.clone();
        closing
            .headers
            .push((CONNECTION, HeaderValue::from_static("close")));
        Ok(Self {
            requests: Client::try_from(config).map_err(ConnectError::Client)?,
            leases: Client::try_from(closing).map_err(ConnectError::Client)?,
        })
    }
}

/// One client for everything.
impl From<Client> for Clients {
    fn from(client: Client) -> Self {
        Self {
            requests: client.clone(),
            leases: client,
        }
    }
}

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

/// Clients from the pod's ServiceAccount or the kubeconfig.
pub async fn connect(program: Program, watch: Duration) -> Result<Clients, ConnectError> {
    let mut config = Config::infer().await.map_err(ConnectError::Configuration)?;
    if let Ok(agent) = HeaderValue::from_str(&format!("{}/{}", program.name, program.version)) {
        config.headers.push((USER_AGENT, agent));
    }
    Clients::new(config, watch)
}

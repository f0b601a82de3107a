//! From `main` to the end of the process.

use super::{
    arguments::CommonArguments,
    health::Health,
    metrics::Metrics,
    tasks::{TaskEnd, Tasks},
};
use crate::kubernetes::{call::ApiError, events::Events};
use kube::{Api, Client, Resource};
use std::{process::ExitCode, sync::Arc};
use tokio_util::sync::CancellationToken;

/// Any error that ends the process.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What runs.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// For example `backup-controller`: lease name, field manager, reporter of Events, label of metrics.
    pub name: &'static str,
    /// `env!("CARGO_PKG_VERSION")`.
    pub version: &'static str,
}

/// What every part of a running controller needs. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    /// What runs.
    pub program: Program,
    /// The Kubernetes client.
    pub client: Client,
    /// The common arguments.
    pub arguments: Arc<CommonArguments>,
    /// The name of this replica.
    pub identity: Arc<str>,
    /// Namespace of the controller's own leases.
    pub lease_namespace: Arc<str>,
    /// Cancelled when the process is to end.
    pub shutdown: CancellationToken,
    /// Probes.
    pub health: Health,
    /// Metrics.
    pub metrics: Metrics,
    /// Events.
    pub events: Events,
}

impl Runtime {
    /// The API of a namespaced kind, in the watched namespace or in all.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        todo!()
    }

    /// Configuration of a watch; add a label selector where possible.
    pub fn watch(&self) -> kube::runtime::watcher::Config {
        todo!()
    }

    /// A set of at most `limit` supervised tasks, joined at shutdown. `ended` is called with the name and end of each.
    pub fn tasks(
        &self,
        limit: usize,
        ended: impl Fn(&str, &TaskEnd) + Send + Sync + 'static,
    ) -> Tasks {
        todo!()
    }
}

/// Runs a controller until SIGTERM or SIGINT: `start` gets the [`Runtime`] and its future ends after `shutdown` is cancelled.
/// Then tasks are joined, then leases are given back.
pub fn run<F, Fut>(program: Program, arguments: CommonArguments, start: F) -> ExitCode
where
    F: FnOnce(Runtime) -> Fut,
    Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    todo!()
}

/// Runs one short command with a client and without probes, leases or metrics.
pub fn run_once<F, Fut>(program: Program, arguments: CommonArguments, command: F) -> ExitCode
where
    F: FnOnce(Client) -> Fut,
    Fut: Future<Output = Result<(), BoxError>>,
{
    todo!()
}

//! The deployed controllers.

use super::{LIMIT, pod_names_by};
use crate::kubectl::Kubectl;
use anyhow::{Context, Result};

/// The namespace that `make deploy` puts the controllers into.
pub const SYSTEM: &str = "redis-operator-system";

/// Their Deployments.
pub const CONTROLLERS: [&str; 3] = [
    "cluster-controller",
    "backup-controller",
    "restore-controller",
];

/// kubectl for the controllers' namespace.
pub fn system() -> Kubectl {
    Kubectl::new(SYSTEM)
}

/// The pod of the replica that leads a controller now.
pub async fn leader(controller: &str) -> Result<String> {
    let lease = system().get(&format!("lease {controller}")).await?;
    let holder = lease["spec"]["holderIdentity"].as_str();
    let holder = holder.filter(|name| !name.is_empty());
    Ok(holder
        .with_context(|| format!("no replica of the {controller} leads: {lease}"))?
        .to_owned())
}

/// Scales a controller and waits until it has so many pods.
pub async fn scale(controller: &str, replicas: usize) -> Result<()> {
    let system = system();
    let scale = format!("scale deployment {controller} --replicas={replicas}");
    system.run(&scale).await?;
    let label = format!("app.kubernetes.io/name={controller}");
    let done = async || Ok(pod_names_by(&system, &label).await?.len() == replicas);
    let what = format!("{controller} with {replicas} replicas");
    system.until(&what, LIMIT, done).await.map(drop)
}

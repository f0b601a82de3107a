//! The steps of the demonstration and of the end-to-end suites: what a user does, and when it is done.

mod alone;
mod backups;
mod bare;
mod clusters;
mod controllers;
mod filled;
mod idle_machine;
mod kubernetes_nodes;
pub mod report;
mod servers;
mod workloads;

use crate::kubectl::{Kubectl, MADE_HERE};
use anyhow::Result;
use serde_json::{Value, json};
use std::{env, time::Duration};

pub use alone::pods_alone;
pub use backups::{backup, ended, failed, restore, s3_files, s3_location};
pub use bare::{BARE, bare_pods, delete_bare_pods};
pub use clusters::{
    Volumes, cluster, cluster_object, cluster_spec, condition, formed, has_shards, healthy,
    lose_all_pods, open_auth, pod_names, pod_names_by, pods, recovered, replace_all_pods, spec,
    uids, uids_by_name,
};
pub use controllers::{CONTROLLERS, SYSTEM, leader, scale, system};
pub use filled::FilledCluster;
pub use idle_machine::idle_machine;
pub use kubernetes_nodes::{
    cable, cordon, not_ready, primaries, primaries_by_node, serving_primaries_by_node, uncordon,
};
pub use report::{Area, ScenarioRow, met};
pub use servers::{
    links, no_data_was_dropped, no_data_was_dropped_by, node_ids, on_every_server,
    roles_are_labelled, serving_primaries, slot_map,
};
pub use workloads::{Writer, Writes, finish_workload, start_workload, workload};

/// Longest wait for anything in a scenario.
pub const LIMIT: Duration = Duration::from_mins(3);
/// `cluster-node-timeout` of the clusters that scenarios make.
pub const NODE_TIMEOUT: Duration = Duration::from_secs(5);

/// apiVersion of the suite's kinds.
pub const API_VERSION: &str = "redis.danieldorado.github.io/v1alpha1";

/// The RedisVersion of the clusters that scenarios make: beside those that a user's catalog has.
pub const VERSION: &str = "redis-7.0.15-scenario";

/// The registry that images come from; set as in the Makefile.
pub fn registry() -> String {
    env::var("REGISTRY").unwrap_or_else(|_| "docker.io/local".into())
}

/// The image of Redis 7.0.15 with a shell: the one that deploy/local/images makes, or any other that `REDIS_IMAGE` names.
pub fn redis_image() -> String {
    env::var("REDIS_IMAGE").unwrap_or_else(|_| registry() + "/redis:7.0.15")
}

fn tools_image() -> String {
    let tag = env::var("TAG").unwrap_or_else(|_| "dev".into());
    format!("{}/redis-operator-tools:{tag}", registry())
}

/// Runs a scenario in a namespace of its own, which is deleted after a success. After a failure of any kind it stays, its state is
/// printed, and the table of scenarios gets a row that says so.
pub async fn run(name: &str, scenario: impl AsyncFnOnce(&Kubectl) -> Result<()>) -> Result<()> {
    let kubectl = namespace(name).await?;
    match scenario(&kubectl).await {
        Ok(()) => kubectl.delete_namespace().await,
        Err(error) => {
            let failed = ScenarioRow::new(Area::Failed, name, &format!("{error:#}"));
            let _ = failed.record();
            kubectl.explain().await;
            Err(error)
        }
    }
}

/// A namespace that admits only restricted pods, with an S3 server and its credentials in it, and what its clusters run.
pub async fn namespace(name: &str) -> Result<Kubectl> {
    let kubectl = Kubectl::new(name);
    kubectl.create_namespace("restricted").await?;
    kubectl.apply(&backups::s3_server()).await?;
    kubectl.apply(&version()).await?;
    Ok(kubectl)
}

fn version() -> String {
    let (label, value) = MADE_HERE;
    json!({"apiVersion": API_VERSION, "kind": "RedisVersion", "metadata": {"name": VERSION, "labels": {label: value}},
           "spec": {"version": "7.0.15", "distribution": "Redis", "image": redis_image()}})
    .to_string()
}

fn restricted() -> Value {
    json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
}

fn pod_security() -> Value {
    json!({"runAsNonRoot": true, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}})
}

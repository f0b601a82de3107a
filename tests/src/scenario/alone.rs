//! What a cluster's pods need by themselves.

use super::{LIMIT, pods};
use crate::kubectl::Kubectl;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The time that a cluster's pods need by themselves until every server listens: the same StatefulSets, configuration, users and Services
/// in a namespace where no controller manages them.
pub async fn pods_alone(kubectl: &Kubectl, cluster: &str, nodes: usize) -> Result<Duration> {
    let alone = Kubectl::new(&format!("{}-alone", kubectl.namespace()));
    alone.create_namespace("restricted").await?;
    let label = format!(
        "configmaps,services,statefulsets -l {}={cluster}",
        crds::LABEL_CLUSTER
    );
    // First what the pods mount. The other Secrets are for programs that log in.
    let users = format!("secret {}", crds::users_secret_name(cluster));
    let mut objects = vec![kubectl.get(&users).await?];
    objects.extend(kubectl.list(&label).await?);
    let mut documents = Vec::new();
    for object in objects {
        let copy = copied(&object).context("copying a child object")?;
        documents.push(copy.to_string());
    }
    let started = Instant::now();
    alone.apply(&documents.join("\n---\n")).await?;
    let ready = async || {
        let pods = pods(&alone, cluster).await?;
        let ready = pods.iter().filter(|pod| {
            pod["status"]["conditions"].as_array().is_some_and(|all| {
                all.iter()
                    .any(|c| c["type"] == "Ready" && c["status"] == "True")
            })
        });
        Ok(ready.count() == nodes)
    };
    alone.until("the pods alone ready", LIMIT, ready).await?;
    let time = started.elapsed();
    alone.delete_namespace().await?;
    Ok(time)
}

/// An object without what ties it to its namespace and owner.
fn copied(object: &Value) -> Option<Value> {
    let mut spec = object["spec"].clone();
    if let Some(members) = spec.as_object_mut() {
        members.retain(|name, _| !name.starts_with("clusterIP"));
    }
    let mut copy = json!({"apiVersion": object.get("apiVersion")?, "kind": object.get("kind")?,
                          "metadata": {"name": object.pointer("/metadata/name")?, "labels": object.pointer("/metadata/labels")?}});
    for (name, value) in [("spec", spec), ("data", object["data"].clone())] {
        if !value.is_null() {
            copy[name] = value;
        }
    }
    // Without a controller no gate would open: that the server listens has to do.
    if let Some(pod) = copy.pointer_mut("/spec/template/spec") {
        let members = pod.as_object_mut()?;
        members.remove("readinessGates");
    }
    if object["kind"] == "Service" && object["spec"]["clusterIP"] == "None" {
        copy["spec"]["clusterIP"] = json!("None");
    }
    Some(copy)
}

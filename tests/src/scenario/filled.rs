//! A cluster with keys, and the proof that a loss took nothing from it.

use super::{
    Volumes, cluster, formed, lose_all_pods, no_data_was_dropped, node_ids, recovered,
    replace_all_pods, roles_are_labelled, slot_map, workload,
};
use crate::kubectl::Kubectl;
use anyhow::{Result, ensure};
use std::{collections::BTreeMap, time::Duration};

/// A formed cluster, its keys, and how its slots were distributed when it was filled.
pub struct FilledCluster<'a> {
    kubectl: &'a Kubectl,
    name: &'static str,
    nodes: usize,
    keys: String,
    slots: BTreeMap<String, String>,
    ids: Vec<String>,
}

impl<'a> FilledCluster<'a> {
    /// Makes a cluster of so many shards with a replica each, waits until it is formed, and writes the keys.
    pub async fn create(
        kubectl: &'a Kubectl,
        name: &'static str,
        shards: i32,
        volumes: Volumes,
        keys: u64,
    ) -> Result<Self> {
        cluster(kubectl, name, shards, volumes).await?;
        Self::fill(kubectl, name, usize::try_from(shards)? * 2, keys).await
    }

    /// Waits until a cluster of so many nodes with a replica a shard is formed, and writes the keys.
    pub async fn fill(
        kubectl: &'a Kubectl,
        name: &'static str,
        nodes: usize,
        keys: u64,
    ) -> Result<Self> {
        Self::fill_shards(kubectl, name, (nodes / 2, nodes), keys).await
    }

    /// Waits until a cluster of so many shards and nodes is formed, and writes the keys.
    pub async fn fill_shards(
        kubectl: &'a Kubectl,
        name: &'static str,
        (shards, nodes): (usize, usize),
        keys: u64,
    ) -> Result<Self> {
        formed(kubectl, name, nodes).await?;
        roles_are_labelled(kubectl, name).await?;
        let slots = slot_map(kubectl, name).await?;
        ensure!(
            slots.len() == shards,
            "{name}: slots are distributed as {slots:?}"
        );
        let ids = node_ids(kubectl, name).await?;
        let (pod, address) = (format!("fill-{name}"), format!("{name}:6379"));
        let keys = keys.to_string();
        workload(kubectl, &pod, &["fill", &address, "--keys", &keys]).await?;
        // What comes next may end a server, and with it the count of what it was sent.
        no_data_was_dropped(kubectl, name).await?;
        Ok(Self {
            kubectl,
            name,
            nodes,
            keys,
            slots,
            ids,
        })
    }

    /// Number of its nodes.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Deletes all pods at once and waits until the cluster is healthy again; answers the time from the start of the last pod.
    pub async fn lose_all_pods(&self, forced: bool) -> Result<Duration> {
        lose_all_pods(self.kubectl, self.name, self.nodes, forced).await
    }

    /// Deletes all pods at once and waits until the new ones run.
    pub async fn replace_all_pods(&self, forced: bool) -> Result<()> {
        replace_all_pods(self.kubectl, self.name, self.nodes, forced).await
    }

    /// Waits until it is healthy again by its nodes.
    pub async fn recovered(&self) -> Result<Duration> {
        recovered(self.kubectl, self.name, self.nodes).await
    }

    /// The ids of its nodes are what they were when it was filled.
    pub async fn has_its_ids(&self, step: &str) -> Result<()> {
        let ids = node_ids(self.kubectl, self.name).await?;
        ensure!(ids == self.ids, "{step}: node ids changed to {ids:?}");
        Ok(())
    }

    /// Every key has its value and its time to live.
    pub async fn has_its_values(&self, step: &str) -> Result<()> {
        let (pod, address) = (
            format!("verify-{}-{step}", self.name),
            format!("{}:6379", self.name),
        );
        workload(
            self.kubectl,
            &pod,
            &["verify", &address, "--keys", &self.keys],
        )
        .await
        .map(drop)
    }

    /// Nothing was lost: values, slots by shard, no command that drops data, and the labels follow the roles.
    pub async fn is_intact(&self, step: &str) -> Result<()> {
        self.has_its_values(step).await?;
        let slots = slot_map(self.kubectl, self.name).await?;
        ensure!(
            slots == self.slots,
            "{step}: slots moved from {:?} to {slots:?}",
            self.slots
        );
        no_data_was_dropped(self.kubectl, self.name).await?;
        roles_are_labelled(self.kubectl, self.name).await
    }
}

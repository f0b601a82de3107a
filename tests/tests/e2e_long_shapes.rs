//! A RedisCluster that is created again over the kept volumes of another number of shards ends Ready with every key.

use anyhow::{Result, ensure};
use std::time::Instant;
use tests::{
    kubectl::Kubectl,
    scenario::{self, Area, FilledCluster, LIMIT, ScenarioRow, Volumes},
};

const KEYS: u64 = 20_000;

/// Deletes the cluster, whose volumes stay, and creates it again with so many shards of two nodes.
async fn created_again(kubectl: &Kubectl, shop: &FilledCluster<'_>, shards: i32) -> Result<()> {
    kubectl.run("delete rediscluster shop").await?;
    let gone = async || Ok(scenario::pods(kubectl, "shop").await?.is_empty());
    kubectl.until("the pods are gone", LIMIT, gone).await?;
    let begun = Instant::now();
    scenario::cluster(kubectl, "shop", shards, Volumes::Kept).await?;
    let shards = usize::try_from(shards)?;
    let equal = async || {
        let pods = scenario::pods(kubectl, "shop").await?.len();
        if pods != shards * 2 {
            return Ok(false);
        }
        let slots = scenario::slot_map(kubectl, "shop").await?;
        Ok(slots.len() == shards)
    };
    let what = format!("{shards} shards serve, and no other pod is left");
    kubectl.until(&what, LIMIT, equal).await?;
    scenario::formed(kubectl, "shop", shards * 2).await?;
    let formed = begun.elapsed();
    shop.has_its_values(&format!("{shards}-shards")).await?;
    let sets = kubectl.list("statefulsets").await?.len();
    ensure!(sets == shards, "{sets} StatefulSets for {shards} shards");
    scenario::no_data_was_dropped(kubectl, "shop").await?;
    let done = "the RedisCluster is deleted and created again over the kept volumes of another number of shards";
    let scenario = format!("created again with {shards} shards");
    ScenarioRow::new(Area::Volumes, &scenario, done)
        .healthy_after(formed)
        .lost(0)
        .record()
}

#[tokio::test]
async fn kept_volumes_serve_another_number_of_shards() -> Result<()> {
    scenario::run("e2e-shapes", async |kubectl| {
        let shop = FilledCluster::create(kubectl, "shop", 3, Volumes::Kept, KEYS).await?;
        created_again(kubectl, &shop, 5).await?;
        created_again(kubectl, &shop, 3).await
    })
    .await
}

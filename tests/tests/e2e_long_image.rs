//! Another image rolls through a running cluster while a client writes to it.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tests::{
    kubectl::Kubectl,
    scenario::{self, Area, FilledCluster, ScenarioRow, Volumes, Writer},
};

const KEYS: u64 = 20_000;

/// Another name of the image that the scenarios' RedisVersion has: nodes need not load a second one.
fn another_reference() -> Result<String> {
    let image = scenario::redis_image();
    let short = image.strip_prefix("docker.io/");
    Ok(short.context("not an image of docker.io")?.to_owned())
}

/// What the servers of these pods run.
fn images(pods: &[Value]) -> Result<BTreeSet<String>> {
    let images = pods.iter().map(|pod| {
        let mut containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        let server = containers.find(|one| one["name"] == crds::CONTAINER);
        let image = server.context("no server")?["image"].as_str();
        Ok(image.context("no image")?.to_owned())
    });
    images.collect()
}

async fn rolls(kubectl: &Kubectl, change: Value, image: &str) -> Result<Duration> {
    let before = scenario::uids(&scenario::pods(kubectl, "shop").await?);
    let begun = Instant::now();
    scenario::spec(kubectl, "shop", change).await?;
    for condition in [
        ("Ready", "False", "Updating"),
        ("UpToDate", "True", "UpToDate"),
        ("Ready", "True", "Healthy"),
    ] {
        scenario::condition(kubectl, "shop", condition).await?;
    }
    let took = begun.elapsed();
    let pods = scenario::pods(kubectl, "shop").await?;
    let (images, after) = (images(&pods)?, scenario::uids(&pods));
    ensure!(images == BTreeSet::from([image.to_owned()]), "{images:?}");
    ensure!(
        after.len() == 6 && after.is_disjoint(&before),
        "{before:?} {after:?}"
    );
    let status = kubectl.get("rediscluster shop").await?["status"].clone();
    ensure!(status["version"]["image"] == image, "{}", status["version"]);
    Ok(took)
}

#[tokio::test]
async fn another_image_rolls_through_a_cluster_under_load() -> Result<()> {
    scenario::run("e2e-image-roll", async |kubectl| {
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, KEYS).await?;
        let version = kubectl.get("rediscluster shop").await?["spec"]["version"].clone();
        let writer = Writer::start(kubectl, "shop").await?;
        let other = another_reference()?;
        let took = rolls(kubectl, json!({"version": null, "image": other}), &other).await?;
        let seen = writer.finish().await?;
        shop.is_intact("rolled").await?;
        ScenarioRow::new(Area::Change, "image", "another image rolls through 6 pods")
            .healthy_after(took)
            .lost(0)
            .writes(&seen)
            .record()?;
        ensure!(
            seen.longest_gap < scenario::NODE_TIMEOUT,
            "an election was waited for: {seen}"
        );
        // And back to the catalogue.
        let back = json!({"version": version, "image": null});
        rolls(kubectl, back, &scenario::redis_image()).await?;
        shop.is_intact("back").await
    })
    .await
}

//! Changes of a running cluster whose servers or controller are killed in the middle: what comes next finishes them.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::{
    crash::Killers,
    kubectl::Kubectl,
    scenario::{self, Area, FilledCluster, LIMIT, ScenarioRow, Volumes, Writer},
};

const KEYS: u64 = 20_000;
/// Bytes a second: slow enough that a scaling of so few keys is hit in the middle.
const SLOWLY: u64 = 100_000;

/// The primary that gets slots and the leader are killed while slots move to a new shard; then the primary that loses them, while its
/// shard leaves.
#[tokio::test]
async fn killed_servers_and_leader_cost_no_key_of_a_scaling() -> Result<()> {
    scenario::run("e2e-mid-scaling", async |kubectl| {
        let killers = Killers::start(kubectl).await?;
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, KEYS).await?;
        let goals = [
            (4, "the target and the leading controller"),
            (3, "the source"),
        ];
        for (shards, victims) in goals {
            let writer = Writer::start(kubectl, "shop").await?;
            let slots = slots_of_new_shard(kubectl).await?;
            let slow = json!({"shards": shards, "migration": {"maxBytesPerSecond": SLOWLY}});
            scenario::spec(kubectl, "shop", slow).await?;
            let moved = async || Ok(slots_of_new_shard(kubectl).await? != slots);
            let wait = format!("slots move on the way to {shards} shards");
            kubectl.until(&wait, LIMIT, moved).await?;
            let mut killed = vec![primary_of_new_shard(kubectl).await?];
            if shards == 4 {
                let leader = scenario::leader("cluster-controller").await?;
                killed.push(scenario::system().get(&format!("pod {leader}")).await?);
            }
            let begun = killers.send_kill(&killed).await?;
            let status = kubectl.get("rediscluster shop").await?["status"].clone();
            ensure!(
                status["operation"]["kind"] == "Scale",
                "the scaling was over before the kill: {status}"
            );
            scenario::spec(kubectl, "shop", json!({"migration": null})).await?;
            scenario::has_shards(kubectl, "shop", shards, 1).await?;
            let recovered = begun.elapsed();
            shop.has_its_values(&format!("{shards}-shards")).await?;
            scenario::no_data_was_dropped(kubectl, "shop").await?;
            let done = format!("kill -9 of {victims} while slots move");
            ScenarioRow::new(
                Area::Size,
                &format!("killed on the way to {shards} shards"),
                &done,
            )
            .healthy_after(recovered)
            .lost(0)
            .writes(&writer.finish().await?)
            .note("since the kill, with the new number of shards")
            .record()?;
        }
        scenario::roles_are_labelled(kubectl, "shop").await?;
        killers.end().await
    })
    .await
}

/// The slots of the fourth shard, while its pods exist; none before it has any.
async fn slots_of_new_shard(kubectl: &Kubectl) -> Result<Option<String>> {
    Ok(scenario::slot_map(kubectl, "shop").await?.remove("shop-3"))
}

async fn primary_of_new_shard(kubectl: &Kubectl) -> Result<Value> {
    let pods = scenario::pods(kubectl, "shop").await?;
    let primary = pods.into_iter().find(|pod| {
        let metadata = &pod["metadata"];
        let name = metadata["name"].as_str().unwrap_or_default();
        name.starts_with("shop-3-") && metadata["labels"][crds::LABEL_ROLE] == crds::ROLE_PRIMARY
    });
    primary.context("the fourth shard has no pod with the label of a primary")
}

/// The leader is killed after the first pods of an update; another replica goes on where it was.
#[tokio::test]
async fn a_killed_leader_leaves_no_update_unfinished() -> Result<()> {
    scenario::run("e2e-mid-update", async |kubectl| {
        let killers = Killers::start(kubectl).await?;
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, KEYS).await?;
        let writer = Writer::start(kubectl, "shop").await?;
        scenario::spec(kubectl, "shop", json!({"config": {"databases": "20"}})).await?;
        let begun = async || {
            let operation = kubectl.get("rediscluster shop").await?["status"]["operation"].clone();
            Ok(operation["kind"] == "Update" && operation["done"].as_u64() >= Some(2))
        };
        kubectl.until("two pods are updated", LIMIT, begun).await?;
        let leader = scenario::leader("cluster-controller").await?;
        let leader = scenario::system().get(&format!("pod {leader}")).await?;
        let killed = Instant::now();
        killers.send_kill(&[leader]).await?;
        scenario::condition(kubectl, "shop", ("UpToDate", "True", "UpToDate")).await?;
        scenario::formed(kubectl, "shop", shop.nodes()).await?;
        let recovered = killed.elapsed();
        shop.is_intact("updated").await?;
        let answers =
            scenario::on_every_server(kubectl, "shop", "redis-cli config get databases").await?;
        ensure!(
            answers.values().all(|answer| answer.trim().ends_with("20")),
            "{answers:?}"
        );
        let done = "the leading controller is killed after two of six pods of an update";
        ScenarioRow::new(Area::Controllers, "leader killed in an update", done)
            .healthy_after(recovered)
            .lost(0)
            .writes(&writer.finish().await?)
            .note("since the kill, with all pods updated")
            .record()?;
        killers.end().await
    })
    .await
}

/// A server that runs a long script answers nothing else: it is named, and no replica takes over.
#[tokio::test]
async fn a_long_script_is_named_and_costs_no_failover() -> Result<()> {
    scenario::run("e2e-script", async |kubectl| {
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, KEYS).await?;
        let primaries = scenario::primaries(kubectl, "shop").await?;
        let busy = primaries.first().context("no primary")?;
        let writer = Writer::start(kubectl, "shop").await?;
        let begun = Instant::now();
        // Answers BUSY after half a second: within the node timeout, so that its peers hear from it.
        let now = "redis.call('time')[1]";
        let script = format!("local begun = {now} while {now} - begun < {SCRIPT} do end");
        let run = format!(
            "redis-cli config set busy-reply-threshold 500; redis-cli eval \"{script}\" 0 > /dev/null 2>&1 &"
        );
        kubectl.exec(busy, &run).await?;
        let named = async || {
            let status = kubectl.get("rediscluster shop").await?["status"].to_string();
            Ok(status.contains(&format!("pod {busy}")) && status.contains("script"))
        };
        let limit = Duration::from_secs(SCRIPT);
        kubectl.until("the script is named", limit, named).await?;
        shop.recovered().await?;
        let recovered = begun.elapsed();
        shop.is_intact("script").await?;
        shop.has_its_ids("script").await?;
        let after = scenario::primaries(kubectl, "shop").await?;
        ensure!(after == primaries, "{primaries:?} became {after:?}");
        let done = format!("a script keeps a primary busy for {SCRIPT} s");
        ScenarioRow::new(Area::Pods, "long script", &done)
            .healthy_after(recovered)
            .lost(0)
            .writes(&writer.finish().await?)
            .note("since the script began; the status names it, and no replica takes over")
            .record()
    })
    .await
}

/// Seconds.
const SCRIPT: u64 = 20;

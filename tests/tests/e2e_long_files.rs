//! Files of servers: those that disappear under a server, and those that nothing may delete.

use anyhow::{Context, Result, ensure};
use tests::{
    crash::Killers,
    scenario::{self, Area, FilledCluster, LIMIT, ScenarioRow, Volumes},
};

const KEYS: u64 = 20_000;

/// Re-created without storage over StatefulSets with volumes: a server that is killed finds the files of its volume.
#[tokio::test]
async fn orphaned_volumes_survive_a_cluster_without_storage() -> Result<()> {
    scenario::run("e2e-orphans", async |kubectl| {
        let killers = Killers::start(kubectl).await?;
        let shop = FilledCluster::create(kubectl, "shop", 3, Volumes::Kept, KEYS).await?;
        let cluster = kubectl.get("rediscluster shop").await?;
        let primary = &cluster["status"]["shardStatuses"][1]["primary"]["pod"];
        let primary = primary.as_str().context("no primary")?;
        let uids = scenario::uids(&scenario::pods(kubectl, "shop").await?);
        kubectl
            .run("delete rediscluster shop --cascade=orphan")
            .await?;
        scenario::cluster(kubectl, "shop", 3, Volumes::None).await?;
        // The controller has looked at the pods under the new spec.
        let observed = async || {
            let status = kubectl.get("rediscluster shop").await?["status"].clone();
            Ok(status["observedGeneration"] == 1 && status["readyNodes"] == 6)
        };
        kubectl
            .until("the new object has a status", LIMIT, observed)
            .await?;
        killers.kill_pod(kubectl, primary).await?;
        let answers = async || {
            let answer = kubectl.exec(primary, "redis-cli ping").await?;
            Ok(answer.contains("PONG"))
        };
        let wait = format!("{primary} answers again");
        kubectl.until(&wait, LIMIT, answers).await?;
        let answer = kubectl
            .exec(primary, "redis-cli config get appendonly")
            .await?;
        ensure!(
            answer.lines().nth(1) == Some("yes"),
            "{primary} has started as a pod in memory does: {answer}"
        );
        let find = "find /data -name '*.aof' -size +0; find /data -name '*.rdb' -size +0";
        let files = kubectl.exec(primary, find).await?;
        ensure!(
            !files.trim().is_empty(),
            "the volume of {primary} is empty: {}",
            kubectl.exec(primary, "ls -laR /data").await?
        );
        let recovered = shop.recovered().await?;
        shop.is_intact("orphans").await?;
        ensure!(
            scenario::uids(&scenario::pods(kubectl, "shop").await?) == uids,
            "pods were replaced by pods in memory"
        );
        let done =
            "created again without storage over pods with volumes, then kill -9 of a primary";
        ScenarioRow::new(Area::Volumes, "storage taken out of the spec", done)
            .healthy_after(recovered)
            .lost(0)
            .record()?;
        killers.end().await
    })
    .await
}

/// A primary that comes back without its files must not come back under its identity: its replica would copy the emptiness.
#[tokio::test]
async fn a_primary_without_its_files_is_replaced() -> Result<()> {
    scenario::run("e2e-files", async |kubectl| {
        let killers = Killers::start(kubectl).await?;
        let shop =
            FilledCluster::create(kubectl, "shop", 3, Volumes::DeletedWithCluster, KEYS).await?;
        let cluster = kubectl.get("rediscluster shop").await?;
        let primary = &cluster["status"]["shardStatuses"][1]["primary"];
        let pod = primary["pod"].as_str().context("no primary")?;
        let id = primary["nodeId"].as_str().context("no node id")?;
        let remove = "rm -rf /data/appendonlydir /data/*.rdb && ls /data";
        let left = kubectl.exec(pod, remove).await?;
        killers.kill_pod(kubectl, pod).await?;
        let replaced = async || {
            let ids = scenario::node_ids(kubectl, "shop").await?;
            Ok(!ids.iter().any(|other| other.trim() == id)
                && scenario::healthy(kubectl, "shop", shop.nodes()).await?)
        };
        let time = kubectl
            .until("another node in the place of the lost one", LIMIT, replaced)
            .await?;
        println!("{pod} has lost all files but {left}");
        shop.recovered().await?;
        shop.is_intact("files").await?;
        let done = "a primary loses its files but for nodes.conf, then kill -9";
        ScenarioRow::new(Area::Volumes, "files lost", done)
            .healthy_after(time)
            .lost(0)
            .note("with a new node; its replica has taken over")
            .record()?;
        killers.end().await
    })
    .await
}

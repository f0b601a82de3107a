//! Two of three primaries are lost at once: no election is possible, and the controller lets their replicas take over.

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use serde_json::Value;
use tests::{
    crash::Killers,
    kubectl::Kubectl,
    scenario::{self, Area, FilledCluster, ScenarioRow, Volumes, Writer},
};

const KEYS: u64 = 20_000;

#[tokio::test]
async fn a_lost_majority_with_volumes_costs_no_key() -> Result<()> {
    lost("e2e-majority", Volumes::DeletedWithCluster).await
}

#[tokio::test]
async fn a_lost_majority_in_memory_costs_no_key() -> Result<()> {
    lost("e2e-majority-memory", Volumes::None).await
}

/// Kills two primaries; with volumes their files are gone as well, so that nothing of them comes back.
async fn lost(namespace: &str, volumes: Volumes) -> Result<()> {
    scenario::run(namespace, async |kubectl| {
        let killers = Killers::start(kubectl).await?;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, KEYS).await?;
        let before = scenario::primaries(kubectl, "shop").await?;
        let victims = &before[..2];
        let writer = Writer::start(kubectl, "shop").await?;
        let pods = pods(kubectl, victims).await?;
        if volumes != Volumes::None {
            let remove = "rm -rf /data/*";
            try_join_all(victims.iter().map(|pod| kubectl.exec(pod, remove))).await?;
        }
        let begun = killers.kill(kubectl, &pods).await?;
        shop.recovered().await?;
        let recovered = begun.elapsed();
        shop.is_intact("majority").await?;
        let (how, done) = if volumes == Volumes::None {
            ("in memory", "kill -9 of two of three primaries at once")
        } else {
            (
                "with volumes",
                "two of three primaries lose their volumes' files, and kill -9",
            )
        };
        ScenarioRow::new(Area::Majority, &format!("majority lost, {how}"), done)
            .healthy_after(recovered)
            .lost(0)
            .writes(&writer.finish().await?)
            .record()?;
        // Which pods are primaries says nothing: they are spread over the Kubernetes nodes afterwards.
        let events = "events --field-selector reason=FailoverRequested";
        let takeovers = kubectl.list(events).await?;
        ensure!(!takeovers.is_empty(), "no replica was asked to take over");
        killers.end().await
    })
    .await
}

async fn pods(kubectl: &Kubectl, names: &[String]) -> Result<Vec<Value>> {
    let asked = names
        .iter()
        .map(async |name| kubectl.get(&format!("pod {name}")).await);
    try_join_all(asked).await
}

//! Losses that take the majority of the primaries, with real kubelets.

use anyhow::{Result, ensure};
use std::time::{Duration, Instant};
use tests::scenario::{self, Area, FilledCluster, ScenarioRow, Volumes};

const KEYS: u64 = 20_000;

/// Without a hand-over by the stop scripts it takes the 20 s that a pod in memory has to end in, a margin of 10 s, and the start of the new
/// pods.
const GOAL: Duration = Duration::from_mins(1);

/// In memory only, the pods of all primaries are deleted by force at once: their replicas have everything, and serve it.
#[tokio::test]
async fn primaries_in_memory_deleted_by_force_lose_no_key() -> Result<()> {
    scenario::run("e2e-loss", async |kubectl| {
        let cluster = FilledCluster::create(kubectl, "memory", 3, Volumes::None, KEYS).await?;
        let by_node = scenario::primaries_by_node(kubectl, "memory").await?;
        let primaries: Vec<String> = by_node.into_values().flatten().collect();
        ensure!(primaries.len() == 3, "{primaries:?}");
        let begun = Instant::now();
        let names = primaries.join(" ");
        kubectl
            .run(&format!("delete pods {names} --force --grace-period=0"))
            .await?;
        cluster.recovered().await?;
        let took = begun.elapsed();
        cluster.is_intact("deleted").await?;
        let done = "the pods of all primaries without volumes are deleted by force";
        ScenarioRow::new(Area::Majority, "all primaries lost, in memory", done)
            .healthy_after(took)
            .lost(0)
            .note(format!("goal {} s", GOAL.as_secs()))
            .record()?;
        ensure!(took < GOAL, "healthy only after {took:?}, goal {GOAL:?}");
        Ok(())
    })
    .await
}

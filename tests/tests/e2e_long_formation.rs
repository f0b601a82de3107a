//! Forming a cluster beside what its pods need by themselves.

use anyhow::{Result, ensure};
use std::time::{Duration, Instant};
use tests::{
    kubectl::Kubectl,
    scenario::{self, Area, LIMIT, ScenarioRow, Volumes},
};

const NODES: usize = 6;
const ROUNDS: usize = 3;
/// Formed, by the time of the same pods alone.
const RATIO: f64 = 1.2;

#[tokio::test]
async fn forming_costs_little_more_than_the_pods() -> Result<()> {
    scenario::run("e2e-formation", async |kubectl| {
        let (mut formed, mut alone) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let name = format!("shop{round}");
            scenario::idle_machine().await?;
            let begun = Instant::now();
            scenario::cluster(kubectl, &name, 3, Volumes::DeletedWithCluster).await?;
            scenario::formed(kubectl, &name, NODES).await?;
            formed.push(begun.elapsed());
            scenario::idle_machine().await?;
            alone.push(scenario::pods_alone(kubectl, &name, NODES).await?);
            deleted(kubectl, &name).await?;
        }
        println!("formed {formed:?}, alone {alone:?}");
        let (formed, alone) = (median(formed), median(alone));
        let ratio = formed.as_secs_f64() / alone.as_secs_f64();
        let done = "3 shards with a replica each and volumes, the median of 3 rounds";
        let figures = format!(
            "the same pods alone: {:.1} s; ratio {ratio:.2}, goal {RATIO}",
            alone.as_secs_f64()
        );
        ScenarioRow::new(Area::Forming, "apply to healthy", done)
            .healthy_after(formed)
            .note(figures.clone())
            .record()?;
        ensure!(ratio <= RATIO, "formed in {formed:?}; {figures}");
        Ok(())
    })
    .await
}

async fn deleted(kubectl: &Kubectl, name: &str) -> Result<()> {
    kubectl.run(&format!("delete rediscluster {name}")).await?;
    // The volumes of both: while some are removed, others are made later.
    let ours = kubectl.namespace();
    let gone = async || {
        let volumes = kubectl.list("persistentvolumes").await?;
        let mut claims = volumes
            .iter()
            .map(|one| &one["spec"]["claimRef"]["namespace"]);
        let is_left = claims.any(|of| of.as_str().is_some_and(|of| of.starts_with(ours)));
        Ok(!is_left && scenario::pods(kubectl, name).await?.is_empty())
    };
    let wait = format!("pods and volumes of {name} gone");
    kubectl.until(&wait, LIMIT, gone).await.map(drop)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

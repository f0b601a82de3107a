//! A shard comes and goes while a client writes: how long until the slots are moved, and what the client sees of it.

use anyhow::{Result, ensure};
use std::time::{Duration, Instant};
use tests::{
    kubectl::Kubectl,
    scenario::{self, Area, FilledCluster, ScenarioRow, Volumes, Writer},
};

const KEYS: u64 = 200_000;
/// The goal from the change of the spec until the cluster is Ready with the new number of shards, and what it takes at most on a slow machine.
const RESIZED: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(40)];
/// The same for the longest time without an acknowledged write.
const GAP: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(500)];

#[tokio::test]
async fn a_shard_comes_and_goes_while_a_client_writes() -> Result<()> {
    scenario::run("e2e-size", async |kubectl| {
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, KEYS).await?;
        for (from, to) in [(3, 4), (4, 3)] {
            let writer = Writer::start(kubectl, "shop").await?;
            let time = resized(kubectl, to).await?;
            let seen = writer.finish().await?;
            shop.has_its_values(&format!("{to}-shards")).await?;
            scenario::no_data_was_dropped(kubectl, "shop").await?;
            let gap = seen.longest_gap;
            let goal = format!(
                "goal {} s, {}; gap {} s, {}",
                RESIZED[0].as_secs(),
                scenario::met(time <= RESIZED[0]),
                GAP[0].as_secs_f64(),
                scenario::met(gap <= GAP[0])
            );
            let row = ScenarioRow::new(
                Area::Size,
                &format!("{from} to {to} shards"),
                "kubectl scale, with 200,000 keys and a replica a shard",
            );
            row.healthy_after(time)
                .lost(0)
                .writes(&seen)
                .note(goal)
                .record()?;
            ensure!(
                time <= RESIZED[1] && gap <= GAP[1],
                "{from} to {to} shards in {time:?}, {seen}"
            );
        }
        scenario::roles_are_labelled(kubectl, "shop").await
    })
    .await
}

/// To three times as many shards and back: slots come from every shard and go to every shard.
#[tokio::test]
async fn three_shards_become_nine_and_three_again() -> Result<()> {
    scenario::run("e2e-nine", async |kubectl| {
        let shop = FilledCluster::create(kubectl, "shop", 3, Volumes::None, KEYS).await?;
        let writer = Writer::start(kubectl, "shop").await?;
        let mut times = Vec::new();
        for shards in [9, 3] {
            times.push(resized(kubectl, shards).await?);
            shop.has_its_values(&format!("{shards}-shards")).await?;
            scenario::no_data_was_dropped(kubectl, "shop").await?;
        }
        let done = "3 to 9 shards with a replica each and back, 200,000 keys in memory";
        let note = format!(
            "3 to 9 in {:.0} s, 9 to 3 in {:.0} s",
            times[0].as_secs_f64(),
            times[1].as_secs_f64()
        );
        ScenarioRow::new(Area::Size, "3 to 9 to 3 shards", done)
            .healthy_after(times.iter().sum())
            .lost(0)
            .writes(&writer.finish().await?)
            .note(note)
            .record()
    })
    .await
}

/// Scales, and waits with one process: many that look again and again would take the processors from the servers.
async fn resized(kubectl: &Kubectl, shards: usize) -> Result<Duration> {
    let begun = Instant::now();
    let scale = format!("scale rediscluster shop --replicas={shards}");
    kubectl.run(&scale).await?;
    for reached in [format!("shards}}={shards}"), "phase}=Ready".to_owned()] {
        let wait =
            format!("wait rediscluster shop --for=jsonpath={{.status.{reached} --timeout=110s");
        kubectl.run(&wait).await?;
    }
    let waited = begun.elapsed();
    Ok(waited + scenario::has_shards(kubectl, "shop", shards, 1).await?)
}

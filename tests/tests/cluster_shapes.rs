//! Clusters that are created again over the volumes of another number of shards: real servers, the Redis half of the controller. In the
//! end every key is there with its value, and the shards are those that the spec asks for.

use anyhow::{Result, ensure};
use std::time::Duration;
use tests::{
    dataset,
    redis::{functions, nothing_destroyed},
    shapes::Shards,
    verify,
};

const KEYS: u64 = 6000;
const LIMIT: Duration = Duration::from_mins(1);

async fn formed(shards: usize) -> Result<Shards> {
    let cluster = Shards::start(shards).await?;
    cluster.become_shards(shards, shards, LIMIT).await?;
    dataset::fill(&cluster.client().await?, KEYS).await?;
    for server in &cluster.servers {
        for code in functions() {
            let mut load = redis::cmd("FUNCTION");
            load.arg("LOAD").arg(*code);
            let _: String = load.query_async(&mut server.connect().await?).await?;
        }
    }
    Ok(cluster)
}

/// Every value, equal shards, and the functions where there are slots.
async fn is_complete(cluster: &Shards, shards: usize) -> Result<()> {
    let slots = cluster.slots().await?;
    let (serving, leaving) = slots.split_at(shards);
    let (most, least) = (serving.iter().max(), serving.iter().min());
    ensure!(
        most.zip(least)
            .is_some_and(|(most, least)| most - least <= 1),
        "{slots:?}"
    );
    ensure!(leaving.iter().all(|slots| *slots == 0), "{slots:?}");
    let compared = verify::data_set(&cluster.client().await?, KEYS).await?;
    ensure!(
        compared.keys == KEYS && compared.different == 0,
        "{compared:?}"
    );
    for (shard, server) in cluster.servers.iter().enumerate() {
        if shard >= shards {
            let keys: u64 = server.call("DBSIZE").await?;
            let is_copy = server.info("role").await? == "slave";
            ensure!(
                keys == 0 || is_copy,
                "shard {shard} leaves with {keys} keys"
            );
            continue;
        }
        if functions().is_empty() {
            continue;
        }
        let listed: redis::Value = server.call("FUNCTION LIST").await?;
        let all = matches!(&listed, redis::Value::Array(all) if all.len() == functions().len());
        ensure!(all, "shard {shard}: {listed:?}");
    }
    nothing_destroyed(&cluster.servers).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_shards_of_data_become_five() -> Result<()> {
    let mut cluster = formed(3).await?;
    cluster.created_again(3).await?;
    cluster.add(2).await?;
    cluster.become_shards(5, 5, LIMIT).await?;
    is_complete(&cluster, 5).await
}

/// First only the pods that the spec asks for exist: nothing is given away, and no node is forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_shards_of_data_become_three() -> Result<()> {
    let mut cluster = formed(5).await?;
    let before = cluster.slots().await?;
    cluster.created_again(3).await?;
    let short = Duration::from_secs(6);
    let early = cluster.become_shards(3, 3, short).await;
    ensure!(early.is_err(), "three of five shards were called complete");
    ensure!(cluster.slots().await? == before[..3], "slots have moved");
    for server in cluster.servers.iter_mut().skip(3) {
        server.restart().await?;
    }
    cluster.become_shards(3, 5, LIMIT).await?;
    is_complete(&cluster, 3).await
}

/// Both serve slots, as after a reset and a reshard by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_primaries_of_a_shard_become_one() -> Result<()> {
    let mut cluster = formed(4).await?;
    cluster.second_in = Some(0);
    cluster.become_shards(3, 4, LIMIT).await?;
    let role = cluster.servers[3].info("role").await?;
    ensure!(role == "slave", "it became no replica of the first: {role}");
    is_complete(&cluster, 3).await
}

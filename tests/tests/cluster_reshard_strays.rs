//! A target that hangs reads the keys of a call later than the call breaks off: what clients did with them meanwhile stands.

use anyhow::{Context, Result, ensure};
use cluster_controller::redis::reshard::{ReshardEnd, ReshardLimits, ReshardPlan, SlotMove};
use common::cluster::slots::Slot;
use std::{num::NonZeroU64, time::Duration};
use tests::{
    redis::RedisServer,
    reshard::{ReshardCluster, STAYING, by_migrate},
    wait::eventually,
};

/// What a client does with the keys that are left at the source, while the target hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    Deleted,
    /// And written again: the source sends the client on to the target.
    WrittenAgain,
    Changed,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_keys_do_not_come_back() -> Result<()> {
    broken_off(Meanwhile::Deleted).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_written_again_keep_their_new_value() -> Result<()> {
    broken_off(Meanwhile::WrittenAgain).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_keys_move_with_their_new_value() -> Result<()> {
    broken_off(Meanwhile::Changed).await
}

/// A cluster in which the first server has these keys of one slot, and a plan that moves the slot to the server without slots.
async fn slot_of(names: &[&str]) -> Result<(ReshardCluster, ReshardPlan, Vec<String>)> {
    let cluster = ReshardCluster::start(3, &[STAYING]).await?;
    let range = cluster.servers.ranges()[0];
    let mut tags = (0..).map(|number| format!("{{{number}}}"));
    let tag = tags.find(|tag| range.contains(Slot::of_key(tag.as_bytes())));
    let tag = tag.context("no tag")?;
    let keys: Vec<String> = names.iter().map(|key| format!("{tag}{key}")).collect();
    for key in &keys {
        let set = format!("SET {key} old");
        cluster.server(0).call::<()>(&set).await?;
    }
    let plan = ReshardPlan {
        moves: vec![SlotMove {
            source: cluster.ids[0],
            target: cluster.ids[3],
            slots: [Slot::of_key(tag.as_bytes())].into_iter().collect(),
        }],
        ..ReshardPlan::default()
    };
    Ok((cluster, plan, keys))
}

/// One call after the other; after a longer pause than these the target would have to prove itself.
fn limits(keys_per_second: u64) -> ReshardLimits {
    ReshardLimits {
        call_timeout: Duration::from_millis(150),
        keys_per_second: NonZeroU64::new(keys_per_second),
        ..by_migrate()
    }
}

async fn breaks_off(source: &RedisServer) -> Result<()> {
    eventually("a call breaks off", async || {
        Ok(source.info("errorstat_IOERR").await.is_ok())
    })
    .await
}

async fn broken_off(meanwhile: Meanwhile) -> Result<()> {
    // Each is a call of its own.
    let (cluster, plan, keys) = slot_of(&["a", "b", "c"]).await?;
    let (source, target) = (cluster.server(0), cluster.server(3));
    let limits = limits(3);
    let change = async {
        eventually("the first key has moved", async || {
            Ok(target.call::<u64>("DBSIZE").await? == 1)
        })
        .await?;
        let left = left(&cluster, &keys).await?;
        let hang = target.call::<()>("DEBUG SLEEP 2");
        let changed = async {
            breaks_off(source).await?;
            for key in &left {
                match meanwhile {
                    Meanwhile::Changed => source.call::<()>(&format!("SET {key} new")).await?,
                    Meanwhile::Deleted | Meanwhile::WrittenAgain => {
                        let gone: u64 = source.call(&format!("DEL {key}")).await?;
                        ensure!(gone == 1, "{key} had moved");
                    }
                }
            }
            if meanwhile == Meanwhile::WrittenAgain {
                for key in &left {
                    write_at(&cluster, key).await?;
                }
            }
            Ok(())
        };
        let (slept, changed) = tokio::join!(hang, changed);
        slept?;
        changed.map(|()| left)
    };
    let (ended, left) = tokio::join!(cluster.run(&plan, &limits), change);
    let (ended, left) = (ended?, left?);
    ensure!(ended.end == ReshardEnd::Completed, "{ended:?}");
    ensure!(
        !left.is_empty(),
        "every key had moved before the target hung"
    );
    for key in &keys {
        let value: Option<String> = target.call(&format!("GET {key}")).await?;
        let expected = match meanwhile {
            _ if !left.contains(key) => Some("old"),
            Meanwhile::Deleted => None,
            Meanwhile::WrittenAgain | Meanwhile::Changed => Some("new"),
        };
        ensure!(
            value.as_deref() == expected,
            "{key} is {value:?}, not {expected:?}\n{}",
            cluster.describe().await
        );
    }
    let there: u64 = source.call("DBSIZE").await?;
    ensure!(there == 0, "{there} keys are left at the source");
    Ok(())
}

/// The keys that the source still has.
async fn left(cluster: &ReshardCluster, keys: &[String]) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for key in keys {
        // Clients are sent on for a key that has moved.
        let exists = format!("EXISTS {key}");
        if let Ok(1) = cluster.server(0).call::<u64>(&exists).await {
            left.push(key.clone());
        }
    }
    Ok(left)
}

/// As a client does that the source has sent on. Its connection comes from the address of the source here, and may be ended as one of its calls.
async fn write_at(cluster: &ReshardCluster, key: &str) -> Result<()> {
    eventually("the key is written", async || {
        Ok(write_once(cluster, key).await.is_ok())
    })
    .await
}

async fn write_once(cluster: &ReshardCluster, key: &str) -> Result<()> {
    let mut commands = redis::pipe();
    commands.cmd("ASKING").ignore();
    commands.cmd("SET").arg(key).arg("new").ignore();
    let mut connection = cluster.server(3).connect().await?;
    Ok(commands.query_async(&mut connection).await?)
}

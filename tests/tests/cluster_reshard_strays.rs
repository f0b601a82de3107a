//! A target that hangs reads the keys of a call later than the call breaks off: what clients did with them meanwhile stands.

use anyhow::{Context, Result, ensure};
use cluster_controller::redis::reshard::{ReshardEnd, ReshardLimits};
use common::cluster::slots::Slot;
use std::{num::NonZeroU64, time::Duration};
use tests::{
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

async fn broken_off(meanwhile: Meanwhile) -> Result<()> {
    let cluster = ReshardCluster::start(3, &[STAYING]).await?;
    let (source, target) = (cluster.server(0), cluster.server(3));
    let range = cluster.servers.ranges()[0];
    let mut tags = (0..).map(|number| format!("{{{number}}}"));
    let tag = tags.find(|tag| range.contains(Slot::of_key(tag.as_bytes())));
    let tag = tag.context("no tag")?;
    let keys = ["a", "b", "c"].map(|key| format!("{tag}{key}"));
    for key in &keys {
        source.call::<()>(&format!("SET {key} old")).await?;
    }
    let plan = cluster.one_slot(Slot::of_key(tag.as_bytes()), 0, 3);
    let limits = ReshardLimits {
        call_timeout: Duration::from_millis(150),
        // A key in each call, one after the other; after a longer pause the target would have to prove itself.
        keys_per_second: NonZeroU64::new(3),
        ..by_migrate()
    };
    let change = async {
        eventually("the first key has moved", async || {
            Ok(target.call::<u64>("DBSIZE").await? == 1)
        })
        .await?;
        let left = cluster.keys_at(0, &keys).await?;
        let hang = target.call::<()>("DEBUG SLEEP 2");
        let changed = async {
            eventually("a call breaks off", async || {
                Ok(source.info("errorstat_IOERR").await.is_ok())
            })
            .await?;
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

/// As a client does that the source has sent on. Its connection comes from the address of the source here, and may be ended as one of its calls.
async fn write_at(cluster: &ReshardCluster, key: &str) -> Result<()> {
    let mut commands = redis::pipe();
    commands.cmd("ASKING").ignore();
    commands.cmd("SET").arg(key).arg("new").ignore();
    eventually("the key is written", async || {
        let mut connection = cluster.server(3).connect().await?;
        let written: Result<(), redis::RedisError> = commands.query_async(&mut connection).await;
        Ok(written.is_ok())
    })
    .await
}

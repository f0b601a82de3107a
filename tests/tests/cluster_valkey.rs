//! Valkey 9 moves slots by itself: the atomic engine. Not part of `make test`, since no package of Debian 12 has it: `make test-servers` runs it.

use anyhow::{Context, Result, ensure};
use cluster_controller::redis::{
    imports::find_imports,
    member::{ExpectedNode, Member},
    observe::observe,
    reshard::{Engine, EngineChoice, ReshardEnd, ReshardError, ReshardLimits, ReshardProgress},
};
use common::cluster::{slots::Slot, topology::NodeAddress};
use futures::future::{Either, select};
use std::{net::SocketAddr, pin::pin, time::Duration};
use tests::{
    client::ClusterClient,
    dataset,
    redis::{RedisServer, own_users},
    reshard::ReshardCluster,
    verify,
    wait::eventually,
    writer::Writer,
};
use tokio_util::sync::CancellationToken;

const KEYS: u64 = 21_000;
const ALL: [usize; 4] = [0, 1, 2, 3];

async fn filled() -> Result<ReshardCluster> {
    let options = [("cluster-allow-replica-migration", "no")];
    let cluster = ReshardCluster::start(3, &options).await?;
    dataset::fill(&client(&cluster).await?, KEYS).await?;
    Ok(cluster)
}

/// Microseconds that a source waits with each key of a snapshot: so a job is slow enough to be hit.
async fn delay_snapshots(cluster: &ReshardCluster, microseconds: u32) -> Result<()> {
    for index in 0..3 {
        let set = format!("CONFIG SET rdb-key-save-delay {microseconds}");
        cluster.server(index).call::<()>(&set).await?;
    }
    Ok(())
}

async fn client(cluster: &ReshardCluster) -> Result<ClusterClient> {
    ClusterClient::connect(&cluster.server(1).address().to_string()).await
}

fn addresses(cluster: &ReshardCluster) -> Vec<SocketAddr> {
    let servers = cluster.servers.nodes().iter();
    servers.map(RedisServer::address).collect()
}

async fn unharmed(cluster: &ReshardCluster) -> Result<()> {
    let comparison = verify::data_set(&client(cluster).await?, KEYS).await?;
    ensure!(
        comparison.keys == KEYS && comparison.different == 0,
        "{comparison:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Valkey 9: make test-servers"]
async fn both_engines_grow_and_shrink_under_a_writer() -> Result<()> {
    let cluster = filled().await?;
    let writer = Writer::start(addresses(&cluster), 2000);
    for (engine, used) in [
        (EngineChoice::Auto, Engine::Atomic),
        (EngineChoice::Legacy, Engine::Legacy),
    ] {
        let limits = ReshardLimits {
            engine,
            ..ReshardLimits::default()
        };
        for staying in [&ALL[..], &[0, 1, 2]] {
            let summary = cluster.reach(staying, &limits).await?;
            let summary = summary.context("nothing was done")?;
            println!("{summary:?}");
            ensure!(summary.end == ReshardEnd::Completed && summary.progress.engine == used);
            ensure!(summary.progress.slots_done == summary.progress.slots_total);
            cluster.settled(staying).await?;
            unharmed(&cluster).await?;
        }
    }
    let report = writer.end(addresses(&cluster)).await?;
    println!(
        "{} writes, longest gap {:?}",
        report.acknowledged, report.longest_gap
    );
    ensure!(report.wrong.is_empty(), "{:?}", report.wrong);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Valkey 9: make test-servers"]
async fn a_cancelled_migration_is_taken_back() -> Result<()> {
    let cluster = filled().await?;
    delay_snapshots(&cluster, 200).await?;
    let plan = cluster.plan(&ALL).await?;
    let cancel = CancellationToken::new();
    let stop = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        cancel.cancel();
        std::time::Instant::now()
    };
    let limits = ReshardLimits::default();
    let (ended, at) = tokio::join!(cluster.run_until(&plan, &limits, &cancel), stop);
    println!("{ended:?} {:?} after it was cancelled", at.elapsed());
    ensure!(ended?.end == ReshardEnd::Canceled && at.elapsed() < Duration::from_secs(1));
    let tables = cluster.tables().await?;
    ensure!(tables[&cluster.ids[3]].slots.is_empty(), "slots have moved");
    unharmed(&cluster).await?;
    delay_snapshots(&cluster, 0).await?;
    cluster.reach(&ALL, &limits).await?;
    cluster.settled(&ALL).await?;
    unharmed(&cluster).await
}

/// What clients write while a slot moves reaches the target, in transactions too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Valkey 9: make test-servers"]
async fn transactions_while_slots_move_reach_the_target() -> Result<()> {
    let cluster = filled().await?;
    delay_snapshots(&cluster, 200).await?;
    let plan = cluster.plan(&ALL).await?;
    let moved = plan.moves.first().context("nothing moves")?;
    let mut tags = (0..).map(|number| format!("{{transaction:{number}}}"));
    let tag = tags.find(|tag| moved.slots.contains(Slot::of_key(tag.as_bytes())));
    let tag = tag.context("no key in these slots")?;
    let source = cluster.ids.iter().position(|id| *id == moved.source);
    let mut client = cluster
        .server(source.context("no source")?)
        .connect()
        .await?;
    // Until it is sent on.
    let writes = async {
        let mut written = 0_u64;
        loop {
            let mut both = redis::pipe();
            both.atomic();
            for key in ["a", "b"] {
                both.cmd("SET").arg(format!("{tag}{key}")).arg(written + 1);
            }
            if both.query_async::<()>(&mut client).await.is_err() {
                return written;
            }
            written += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limits = ReshardLimits::default();
    let (ended, written) = tokio::join!(cluster.run(&plan, &limits), writes);
    ensure!(ended?.end == ReshardEnd::Completed);
    ensure!(written > 10, "{written} transactions");
    for key in ["a", "b"] {
        let found: u64 = cluster.server(3).call(&format!("GET {tag}{key}")).await?;
        ensure!(found == written, "{key}: {found} of {written}");
    }
    Ok(())
}

/// The controller that started it has ended, and the spec asks for the shards that there were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Valkey 9: make test-servers"]
async fn a_target_is_known_to_import_without_its_controller() -> Result<()> {
    let cluster = filled().await?;
    delay_snapshots(&cluster, 200).await?;
    let imports = async || {
        let address = cluster.server(3).address();
        let expected = ExpectedNode {
            address: Some(NodeAddress::new(address.ip(), address.port())),
            wanted: false,
            ..ExpectedNode::new("shop-3-0".into(), 3, 0)
        };
        let (connections, timeout) = (own_users::connections(), Duration::from_secs(2));
        let mut members = observe(&[expected], &connections, timeout).await;
        find_imports(&mut members, &connections, timeout).await;
        let report = members.first().and_then(Member::report).cloned();
        report.context("no report")
    };
    ensure!(!imports().await?.imports);
    let (plan, limits) = (cluster.plan(&ALL).await?, ReshardLimits::default());
    {
        let running = pin!(cluster.run(&plan, &limits));
        let seen = pin!(eventually("a job runs", async || Ok(imports()
            .await?
            .imports)));
        match select(running, seen).await {
            Either::Left((ended, _)) => anyhow::bail!("it has ended: {ended:?}"),
            Either::Right((seen, _)) => seen?,
        }
    }
    let report = imports().await?;
    ensure!(report.imports && report.own().slots.is_empty());
    delay_snapshots(&cluster, 0).await?;
    eventually("the jobs end", async || Ok(!imports().await?.imports)).await?;
    // The sources learn a moment later that the slots are another node's: they are planned again until then.
    eventually("the goal is reached", async || {
        Ok(cluster.reach(&ALL, &limits).await.is_ok())
    })
    .await?;
    cluster.settled(&ALL).await?;
    unharmed(&cluster).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Valkey 9: make test-servers"]
async fn a_target_that_dies_is_reported_and_the_rest_follows() -> Result<()> {
    let mut cluster = filled().await?;
    delay_snapshots(&cluster, 200).await?;
    let plan = cluster.plan(&ALL).await?;
    let endpoints = cluster.endpoints();
    let running = tokio::spawn(async move {
        let (progress, _) = tokio::sync::watch::channel(ReshardProgress::default());
        let (limits, cancel) = (ReshardLimits::default(), CancellationToken::new());
        cluster_controller::redis::reshard::run(&plan, &endpoints, &limits, &cancel, &progress)
            .await
    });
    tokio::time::sleep(Duration::from_millis(400)).await;
    cluster.servers.kill(3).await?;
    let error = running.await?.err().context("the target was dead")?;
    println!("{error}");
    ensure!(matches!(
        error,
        ReshardError::MigrationFailed { .. } | ReshardError::NodeLost { .. }
    ));
    cluster.servers.restart(3).await?;
    delay_snapshots(&cluster, 0).await?;
    cluster.servers.healthy().await?;
    cluster.reach(&ALL, &ReshardLimits::default()).await?;
    cluster.settled(&ALL).await?;
    unharmed(&cluster).await
}

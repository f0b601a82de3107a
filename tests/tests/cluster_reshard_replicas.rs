//! Slots are handed over once the replicas of both shards have what their primaries did with the keys; one that hangs, and a reader that is no node
//! of the cluster, keep none from moving.

use anyhow::{Context, Result, ensure};
use cluster_controller::redis::reshard::{ReshardEnd, ReshardError, ReshardPlan, SlotMove};
use common::cluster::{
    info::{Info, ReplicationInfo},
    topology::{ClusterNode, NodeId, NodesView},
};
use futures::future::{Either, select};
use std::{
    pin::pin,
    process::Stdio,
    time::{Duration, Instant},
};
use tests::{
    reshard::{ReshardCluster, STAYING, by_migrate},
    wait::eventually,
};
use tokio::process::Command;

const KEYS: u64 = 3000;
/// The node timeout of these servers.
const TIMEOUT: Duration = Duration::from_secs(2);
const ALL: [usize; 4] = [0, 1, 2, 3];

/// Adds a replica, and waits until every server knows it as one: it would be taken for a successor of its primary otherwise.
async fn join_replica(
    cluster: &mut ReshardCluster,
    primary: usize,
    options: &[(&str, &str)],
) -> Result<usize> {
    let replica = cluster.servers.join_replica(primary, options).await?;
    let id: NodeId = cluster.server(replica).id().await?;
    eventually("every server knows the replica", async || {
        for server in cluster.servers.nodes() {
            let view = NodesView::parse(&server.call::<String>("CLUSTER NODES").await?)?;
            if !view.get(id).is_some_and(ClusterNode::is_replica) {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await?;
    Ok(replica)
}

/// The plan of a few slots of the first shard, which go to the one without slots.
async fn few(cluster: &ReshardCluster) -> Result<ReshardPlan> {
    let whole = cluster.plan(&ALL).await?;
    let source = cluster.ids[0];
    let mut planned = whole.moves.iter();
    let first = planned
        .find(|one| one.source == source)
        .context("no move")?;
    let few = SlotMove {
        slots: first.slots.iter().take(200).collect(),
        ..first.clone()
    };
    Ok(ReshardPlan {
        moves: vec![few],
        ..ReshardPlan::default()
    })
}

/// The replica is asleep while keys arrive at its primary: a loss of the primary would cost what is not copied yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_are_handed_over_once_their_keys_are_copied() -> Result<()> {
    waits_for_the_replica_of(3).await
}

/// And while they are dropped: it would bring back what clients delete at the target.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_are_handed_over_once_replicas_dropped_their_keys() -> Result<()> {
    waits_for_the_replica_of(0).await
}

async fn replication(cluster: &ReshardCluster, primary: usize) -> Result<ReplicationInfo> {
    let text: String = cluster.server(primary).call("INFO replication").await?;
    Ok(Info::parse(&text).replication())
}

/// Bytes of `REPLCONF GETACK *` in the stream, the question for an acknowledgement. A sleeping replica is asked again and again.
const QUESTION: u64 = 37;

async fn waits_for_the_replica_of(primary: usize) -> Result<()> {
    // Nothing but keys and questions is in the stream.
    let options = [STAYING, ("repl-ping-replica-period", "3600")];
    let mut cluster = ReshardCluster::filled(&options, 3000).await?;
    let replica = join_replica(&mut cluster, primary, &options).await?;
    // By whole questions it may be behind: those after the one that it has answered.
    let acknowledged = async || {
        let found = replication(&cluster, primary).await?;
        let mut replicas = found.replicas.iter();
        Ok::<_, anyhow::Error>(
            replicas.any(|one| one.online && (found.offset - one.offset) % QUESTION == 0),
        )
    };
    // After its first copy the primary sends nothing until it acknowledges that, which may take a second.
    eventually("it follows", async || {
        cluster.server(primary).call::<u64>("WAIT 2 10").await?;
        let found = replication(&cluster, primary).await?;
        let mut replicas = found.replicas.iter();
        Ok(replicas.any(|one| one.offset > 0) && acknowledged().await?)
    })
    .await?;
    let plan = few(&cluster).await?;
    let (limits, asleep) = (by_migrate(), "DEBUG SLEEP 0.6");
    let sleep = cluster.server(replica).call::<()>(asleep);
    let moved = async {
        // The sleep begins first.
        tokio::task::yield_now().await;
        let ended = cluster.run(&plan, &limits).await?;
        Ok::<_, anyhow::Error>((ended, acknowledged().await?))
    };
    let (slept, moved) = tokio::join!(sleep, moved);
    slept?;
    let (ended, copied) = moved?;
    ensure!(ended.progress.slots_done == 200 && ended.progress.keys_done > 10);
    ensure!(copied, "the replica is behind, and slots were handed over");
    Ok(())
}

/// It is waited for until its primary does not hear of it any more, and breaks nothing off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_hangs_keeps_no_slot_from_moving() -> Result<()> {
    let mut cluster = ReshardCluster::filled(&[STAYING], KEYS).await?;
    let replica = join_replica(&mut cluster, 3, &[STAYING]).await?;
    is_attached(&cluster, 3, true).await?;
    let plan = cluster.plan(&ALL).await?;
    let (limits, begun) = (by_migrate(), Instant::now());
    let sleep = pin!(cluster.server(replica).call::<()>("DEBUG SLEEP 16"));
    let (ended, asleep) = match select(pin!(cluster.run(&plan, &limits)), sleep).await {
        Either::Left((ended, sleep)) => (ended, Some(sleep)),
        Either::Right((slept, run)) => {
            slept?;
            (run.await, None)
        }
    };
    // From Valkey 8 on a server itself hands no slot over that its replicas do not know of.
    let waits_itself = cluster.server(3).info("valkey_version").await.is_ok();
    match ended {
        Ok(ended) => {
            ensure!(ended.end == ReshardEnd::Completed, "{ended:?}");
            ensure!(asleep.is_some(), "it was waited for to the end: {ended:?}");
            let waited = begun.elapsed();
            ensure!(waited >= TIMEOUT, "it was not waited for: {waited:?}");
        }
        Err(error) => ensure!(waits_itself, "{error}"),
    }
    if let Some(asleep) = asleep {
        asleep.await?;
    }
    cluster.reach(&ALL, &limits).await?;
    cluster.settled(&ALL).await?;
    cluster.unharmed(KEYS).await
}

/// Its primary has just dropped it, and would take it again: the loss of the target would cost what it lacks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_waits_for_a_replica_that_is_not_attached() -> Result<()> {
    let (cluster, replica) = detached(3).await?;
    let plan = few(&cluster).await?;
    let error = cluster.run(&plan, &by_migrate()).await.err();
    let error = error.context("slots were handed over without their replica")?;
    println!("{error}");
    let address = cluster.server(replica).address();
    ensure!(
        matches!(error, ReshardError::ReplicaNotAttached { node, replica } if node == cluster.ids[3] && replica == address),
        "{error}"
    );
    let tables = cluster.tables().await?;
    let target = tables.get(&cluster.ids[3]).context("no table")?;
    ensure!(target.slots.is_empty(), "{target:?}");
    attach(&cluster, 3).await?;
    cluster.reach(&ALL, &by_migrate()).await?;
    cluster.settled(&ALL).await?;
    cluster.unharmed(KEYS).await
}

/// A shard may be too busy to be copied, which is why its slots are to move.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_waits_once_for_a_detached_replica() -> Result<()> {
    let (cluster, _) = detached(0).await?;
    let begun = Instant::now();
    cluster.reach(&ALL, &by_migrate()).await?;
    let took = begun.elapsed();
    ensure!((10..20).contains(&took.as_secs()), "took {took:?}");
    cluster.settled(&ALL).await?;
    attach(&cluster, 0).await?;
    cluster.unharmed(KEYS).await
}

/// A cluster, and a replica of a primary that lets none copy it any more.
async fn detached(primary: usize) -> Result<(ReshardCluster, usize)> {
    let mut cluster = ReshardCluster::filled(&[STAYING], KEYS).await?;
    let replica = join_replica(&mut cluster, primary, &[STAYING]).await?;
    is_attached(&cluster, primary, true).await?;
    let server = cluster.server(primary);
    server
        .call::<()>("ACL SETUSER redis-operator-replication -psync")
        .await?;
    server.call::<u64>("CLIENT KILL TYPE replica").await?;
    is_attached(&cluster, primary, false).await?;
    Ok((cluster, replica))
}

/// Lets it copy again, by PSYNC: one that falls back to SYNC confirms nothing.
async fn attach(cluster: &ReshardCluster, primary: usize) -> Result<()> {
    let server = cluster.server(primary);
    let grant = "ACL SETUSER redis-operator-replication +psync";
    server.call::<()>(grant).await?;
    is_attached(cluster, primary, true).await
}

async fn is_attached(cluster: &ReshardCluster, primary: usize, wanted: bool) -> Result<()> {
    eventually("it is attached, or not", async || {
        let found = replication(cluster, primary).await?;
        Ok(found.replicas.iter().any(|one| one.online) == wanted)
    })
    .await
}

/// `redis-cli --replica` never confirms anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_keeps_no_slot_from_moving() -> Result<()> {
    let cluster = ReshardCluster::filled(&[STAYING], KEYS).await?;
    let address = cluster.server(3).address();
    let mut reader = Command::new("redis-cli")
        .args([
            "-h",
            &address.ip().to_string(),
            "-p",
            &address.port().to_string(),
            "--replica",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    is_attached(&cluster, 3, true).await?;
    let ended = cluster.run(&few(&cluster).await?, &by_migrate()).await?;
    ensure!(ended.end == ReshardEnd::Completed, "{ended:?}");
    ensure!(reader.try_wait()?.is_none(), "it has ended before");
    reader.kill().await?;
    Ok(())
}

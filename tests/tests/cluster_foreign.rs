//! Servers that are not the cluster's own, living nodes without a pod, and servers that lost their data: real servers, started as in pods.

use anyhow::{Context, Result, ensure};
use cluster_controller::redis::member::{ExpectedNode, Recovery, Wanted};
use common::cluster::slots::Slot;
use std::{collections::BTreeMap, time::Duration};
use tests::{
    drive::{Drive, drive},
    redis::{
        NODE_TIMEOUT, PodCluster, PodStorage, RedisServer, ShardSlots, executed, nothing_destroyed,
    },
    wait::eventually,
};

const LIMIT: Duration = Duration::from_secs(40);
const KEYS: usize = 3000;

struct Formed {
    pods: PodCluster,
    slots: ShardSlots,
    wanted: Wanted,
}

/// A cluster with keys, whose node ids are recorded.
async fn formed(storage: PodStorage) -> Result<Formed> {
    let pods = PodCluster::start(1, storage).await?;
    let mut wanted = Wanted {
        patience: Duration::from_secs(4),
        recovery: Recovery {
            after: Duration::from_secs(4),
            ..Recovery::default()
        },
        ..Wanted::new((3, 1), storage == PodStorage::Volume, NODE_TIMEOUT)
    };
    let formed = drive(&wanted, &pods.expected(), LIMIT).await;
    healthy(&formed, &pods).await?;
    wanted.known = formed.known;
    wanted.formed_before = true;
    let slots = pods.fill_and_replicate(KEYS).await?;
    Ok(Formed {
        pods,
        slots,
        wanted,
    })
}

async fn healthy(drive: &Drive, pods: &PodCluster) -> Result<()> {
    let problems = &drive.assessment.problems;
    let blockers = &drive.plan.blockers;
    ensure!(
        drive.assessment.is_healthy(),
        "{problems:#?}\n{blockers:#?}\n{}",
        pods.tables().await
    );
    Ok(())
}

/// What changes a cluster, of all that the server was sent.
async fn changes(server: &RedisServer) -> Result<BTreeMap<String, u64>> {
    let mut sent = executed(server).await?;
    let reads = [
        "cluster|nodes",
        "cluster|info",
        "cluster|myid",
        "cluster|countkeysinslot",
    ];
    sent.retain(|name, _| name.starts_with("cluster|") && !reads.contains(&name.as_str()));
    Ok(sent)
}

/// The address of a pod that was cut off is given to a primary of another cluster, and a replica comes back on a new volume: what
/// merged both clusters once.
#[tokio::test]
async fn a_reused_address_merges_no_clusters() -> Result<()> {
    let mut ours = formed(PodStorage::Volume).await?;
    let other = formed(PodStorage::Volume).await?;
    let foreign = other.pods.primary_of(0).await?;
    let before = changes(other.pods.server(foreign)).await?;

    let victim = ours.pods.primary_of(1).await?;
    let replica = ours.pods.replica_of(0).await?;
    ours.pods.kill(victim).await?;
    ours.pods.kill(replica).await?;
    ours.pods.wipe(replica)?;
    ours.pods.restart(replica).await?;
    let mut expected: Vec<ExpectedNode> = ours.pods.expected();
    expected[victim].address = other.pods.expected()[foreign].address;
    let cut_off = drive(&ours.wanted, &expected, Duration::from_secs(12)).await;
    ensure!(!cut_off.assessment.is_healthy());
    let named = format!("pod {}: ", expected[victim].pod);
    let words: Vec<String> = cut_off
        .plan
        .blockers
        .iter()
        .map(ToString::to_string)
        .collect();
    ensure!(words.iter().any(|one| one.starts_with(&named)), "{words:?}");

    let after = changes(other.pods.server(foreign)).await?;
    ensure!(before == after, "sent to the foreign node: {after:?}");
    other.pods.unharmed(&other.slots, KEYS).await?;
    let tables = other.pods.tables().await;
    for id in cut_off.known.keys() {
        ensure!(
            !tables.contains(&id.to_string()),
            "{id} was introduced:\n{tables}"
        );
    }

    ours.pods.move_one(victim)?;
    ours.pods.restart(victim).await?;
    ours.wanted.known = cut_off.known;
    let repaired = drive(&ours.wanted, &ours.pods.expected(), LIMIT).await;
    healthy(&repaired, &ours.pods).await?;
    ours.pods.unharmed(&ours.slots, KEYS).await
}

/// A node is added by hand and takes slots over; in memory, where slots of nodes that are gone are created again.
#[tokio::test]
async fn a_node_added_by_hand_keeps_its_slots() -> Result<()> {
    let ours = formed(PodStorage::Memory).await?;
    let added = RedisServer::cluster_node(&[]).await?;
    let source = ours.pods.server(ours.pods.primary_of(0).await?);
    let (address, id): (_, String) = (source.address(), added.call("CLUSTER MYID").await?);
    let meet = format!("CLUSTER MEET {} {}", address.ip(), address.port());
    added.call::<()>(&meet).await?;
    eventually("every node knows the added one", async || {
        Ok(ours.pods.tables().await.matches(&id).count() >= 6)
    })
    .await?;
    let name = (0..1000)
        .map(|number| format!("by-hand:{number}"))
        .find(|name| Slot::of_key(name.as_bytes()).get() < 5000)
        .context("a name")?;
    let slot = Slot::of_key(name.as_bytes()).get();
    let source_id: String = source.call("CLUSTER MYID").await?;
    added
        .call::<()>(&format!("CLUSTER SETSLOT {slot} IMPORTING {source_id}"))
        .await?;
    source
        .call::<()>(&format!("CLUSTER SETSLOT {slot} MIGRATING {id}"))
        .await?;
    for server in [&added, source] {
        server
            .call::<()>(&format!("CLUSTER SETSLOT {slot} NODE {id}"))
            .await?;
    }
    let write = format!("SET {name} kept");
    eventually("the added node serves its slot", async || {
        Ok(added.call::<()>(&write).await.is_ok())
    })
    .await?;
    let serves = format!("{id} ");
    eventually("every node knows the slot's primary", async || {
        let tables = ours.pods.tables().await;
        let lines = tables.lines().filter(|line| line.starts_with(&serves));
        Ok(lines
            .filter(|line| line.ends_with(&format!(" {slot}")))
            .count()
            >= 6)
    })
    .await?;

    let expected = ours.pods.expected();
    let after = drive(&ours.wanted, &expected, Duration::from_secs(8)).await;
    ensure!(after.done.is_empty(), "{:?}", after.done);
    let words: Vec<String> = after
        .plan
        .blockers
        .iter()
        .map(ToString::to_string)
        .collect();
    let named = words
        .iter()
        .any(|one| one.contains(&id) && one.contains("1 slots"));
    ensure!(named, "{words:?}");
    let kept: Option<String> = added.call(&format!("GET {name}")).await?;
    ensure!(kept.as_deref() == Some("kept"), "{kept:?}");
    let tables = ours.pods.tables().await;
    ensure!(tables.matches(&id).count() >= 6, "forgotten:\n{tables}");
    nothing_destroyed([&added]).await?;
    ours.pods.nothing_destroyed().await
}

/// Its files are gone, its nodes.conf is not.
#[tokio::test]
async fn a_primary_without_its_data_gives_up_its_identity() -> Result<()> {
    let mut ours = formed(PodStorage::Volume).await?;
    let ids = ours.pods.ids().await?;
    let victim = ours.pods.primary_of(1).await?;
    ours.pods.kill(victim).await?;
    let data = ours.pods.server(victim).directory().to_owned();
    if ours.pods.server(victim).program().at_least(7, 0) {
        std::fs::remove_dir_all(data.join("appendonlydir"))?;
    } else {
        std::fs::remove_file(data.join("appendonly.aof"))?;
    }
    ours.pods.restart(victim).await?;
    let repaired = drive(&ours.wanted, &ours.pods.expected(), LIMIT).await;
    healthy(&repaired, &ours.pods).await?;
    ensure!(ours.pods.primary_of(1).await? != victim);
    ensure!(ours.pods.ids().await?[victim] != ids[victim]);
    let names: Vec<String> = std::fs::read_dir(&data)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    let aside = names.iter().any(|name| name.starts_with("set-aside-"));
    ensure!(aside, "{names:?}");
    ours.pods.unharmed(&ours.slots, KEYS).await
}

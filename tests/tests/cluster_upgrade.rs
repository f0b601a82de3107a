//! Real servers are replaced one after another, as a rollout does it: those of older releases where `TEST_SERVER` names a release that has some
//! (`make test-servers`), and otherwise the same ones.

use anyhow::{Result, ensure};
use cluster_controller::redis::{
    assess::{Problem, assess},
    observe::observe,
    plan::Action,
    survey::Survey,
};
use std::time::Duration;
use tests::{
    drive::{drive_pods, hand_over},
    redis::{PodCluster, PodStorage, ShardSlots, own_users},
    servers::{self, ServerProgram},
    wait::eventually,
};

const LIMIT: Duration = Duration::from_secs(40);
const KEYS: usize = 3000;
/// Of a question to a node.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Lets the controller work until the cluster is healthy. No replica is ever promoted.
async fn settled(cluster: &PodCluster, formed_before: bool) -> Result<()> {
    let drive = drive_pods(cluster, &cluster.wanted(formed_before), LIMIT).await;
    ensure!(
        drive.assessment.is_healthy(),
        "not healthy: {:#?}\n{}",
        drive.assessment.problems,
        cluster.tables().await
    );
    let mut steps = drive.done.iter().map(|done| &done.step.action);
    ensure!(
        !steps.any(|action| matches!(action, Action::Promote { .. })),
        "{:?}",
        drive.done
    );
    Ok(())
}

/// A cluster of the older release, with keys.
async fn filled(storage: PodStorage, older: &ServerProgram) -> Result<(PodCluster, ShardSlots)> {
    let cluster = PodCluster::start_program(1, storage, older).await?;
    settled(&cluster, false).await?;
    let slots = cluster.fill_and_replicate(KEYS).await?;
    Ok((cluster, slots))
}

async fn updated(cluster: &mut PodCluster, index: usize) -> Result<()> {
    replaced(cluster, index, &servers::selected()?).await
}

/// As a pod that is replaced: at another address, and in memory as another node.
async fn replaced(cluster: &mut PodCluster, index: usize, program: &ServerProgram) -> Result<()> {
    cluster.stop(index).await?;
    if cluster.storage() == PodStorage::Memory {
        cluster.wipe(index)?;
    }
    cluster.move_one(index)?;
    cluster.set_program(index, program);
    cluster.restart(index).await?;
    settled(cluster, true).await?;
    cluster.replicated().await
}

/// What is wrong with the cluster now.
async fn problems(cluster: &PodCluster) -> Vec<Problem> {
    let connections = own_users::connections();
    let members = observe(&cluster.expected(), &connections, TIMEOUT).await;
    assess(&Survey::of(&cluster.wanted(true), &members)).problems
}

/// In each shard the replica first, then the primary after that replica has taken over.
async fn every_node_is_updated(older: &ServerProgram, storage: PodStorage) -> Result<()> {
    println!("{storage:?}, from {older:?}");
    let (mut cluster, slots) = filled(storage, older).await?;
    for shard in 0..PodCluster::SHARDS {
        let primary = cluster.primary_of(shard).await?;
        let replica = cluster.replica_of(shard).await?;
        updated(&mut cluster, replica).await?;
        hand_over(&cluster, primary, replica).await?;
        ensure!(cluster.primary_of(shard).await? == replica);
        updated(&mut cluster, primary).await?;
        ensure!(cluster.primary_of(shard).await? == replica);
    }
    cluster.unharmed(&slots, KEYS).await?;
    for index in 0..cluster.len() {
        has_version(&cluster, index, &servers::selected()?).await?;
    }
    Ok(())
}

/// Fails unless the server reports this program's version.
async fn has_version(cluster: &PodCluster, index: usize, program: &ServerProgram) -> Result<()> {
    let field = if program.valkey {
        "valkey_version"
    } else {
        "redis_version"
    };
    let version = cluster.server(index).info(field).await?;
    let (major, minor) = program.version;
    let is_same = version.starts_with(&format!("{major}.{minor}."));
    ensure!(is_same, "server {index} is {version}, not {program:?}");
    Ok(())
}

#[tokio::test]
async fn servers_with_volumes_are_replaced_without_an_election() -> Result<()> {
    for older in servers::predecessors()? {
        every_node_is_updated(&older, PodStorage::Volume).await?;
    }
    Ok(())
}

#[tokio::test]
async fn servers_in_memory_are_replaced_without_an_election() -> Result<()> {
    for older in servers::predecessors()? {
        every_node_is_updated(&older, PodStorage::Memory).await?;
    }
    Ok(())
}

/// The older server of a primary that has handed over starts again before it is updated. Redis sends it what it cannot load: that is named,
/// no key is lost, and with the newer server it has everything again. (Valkey 9 sends what an older replica says that it can load.)
#[tokio::test]
async fn an_older_replica_without_a_copy_is_named() -> Result<()> {
    let newer = servers::selected()?;
    let older = servers::predecessors()?;
    let mut older = older
        .iter()
        .filter(|older| older.rdb_version() < newer.rdb_version());
    let Some(older) = older.next().filter(|_| !newer.valkey) else {
        println!("SKIPPED: no older release, or none that this one leaves without a copy");
        return Ok(());
    };
    let (mut cluster, slots) = filled(PodStorage::Volume, older).await?;
    let (primary, replica) = (cluster.primary_of(0).await?, cluster.replica_of(0).await?);
    updated(&mut cluster, replica).await?;
    hand_over(&cluster, primary, replica).await?;
    cluster.stop(primary).await?;
    cluster.restart(primary).await?;
    eventually("the older server has dropped its copy", async || {
        let keys: i64 = cluster.server(primary).call("DBSIZE").await?;
        Ok(keys == 0)
    })
    .await?;
    let pod = cluster.expected()[primary].pod.clone();
    eventually("the older server is named", async || {
        let problems = problems(&cluster).await;
        let mut problems = problems.iter();
        Ok(problems.any(
            |one| matches!(one, Problem::OlderThanPrimary { pod: named, .. } if *named == pod),
        ))
    })
    .await?;
    updated(&mut cluster, primary).await?;
    cluster.unharmed(&slots, KEYS).await
}

//! Moves of slots as a task of the whole cluster-controller: they wait for the operation Lease and end with it, and the next leader finishes
//! what a killed one began. The API server and the servers are real.

use anyhow::{Result, ensure};
use common::{
    cluster::slots::SLOT_COUNT,
    kubernetes::leases::{Holder, Operation, OperationLeases},
};
use crds::RedisClusterStatus;
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Pod},
    jiff::{SignedDuration, Timestamp},
};
use kube::api::DeleteParams;
use redis::pipe;
use serde_json::{Value, json};
use std::time::Duration;
use tests::{
    api_proxy::ApiProxy,
    cluster_stage::{ClusterStage, KEYS, pod_name, serves},
    redis::PodCluster,
    replica::{Replica, ReplicaEnd},
    wait::eventually,
};

/// Slots that are given to another shard, before the cluster has keys.
const GIVEN: u16 = 400;
const ALL_KEYS: usize = 10 * KEYS;
/// Bytes a second. The slots have some 240 keys: their moves take longer than what happens to them.
const SLOW: u32 = 1024;
/// For how long nothing is to happen.
const WATCHED: Duration = Duration::from_secs(3);

struct Moves {
    stage: ClusterStage,
    leases: OperationLeases,
    backup: Holder,
}

/// A cluster with keys in which the second shard has slots of the first one. They are about to return, at this rate at most. A backup has
/// the Lease.
async fn unbalanced(rate: Value) -> Result<(Moves, Replica)> {
    unbalanced_behind(rate, None).await
}

/// The same with a controller that reaches the API server through this proxy.
async fn unbalanced_behind(rate: Value, proxy: Option<&ApiProxy>) -> Result<(Moves, Replica)> {
    let stage = ClusterStage::new().await?;
    let replica = stage.replica("a", proxy);
    let migration = json!({ "maxBytesPerSecond": rate });
    stage.create(json!({ "migration": migration })).await?;
    stage.run_pods().await?;
    stage.until("formed", serves).await?;
    let moves = Moves::of(stage)?;
    ensure!(moves.take().await? == Operation::Held);
    moves.give_away().await?;
    moves.stage.nodes.fill(ALL_KEYS).await?;
    moves.stage.nodes.replicated().await?;
    Ok((moves, replica))
}

impl Moves {
    fn of(stage: ClusterStage) -> Result<Self> {
        let lease = Duration::from_secs(3);
        let (server, namespace) = (&stage.server, &stage.namespace);
        let runtime = server.runtime("test-controller", "b", namespace, lease)?;
        Ok(Self {
            leases: OperationLeases::new(&runtime),
            backup: Holder {
                kind: "RedisBackup".into(),
                name: "nightly".into(),
                uid: "uid".into(),
            },
            stage,
        })
    }

    /// The pods that are being deleted, by index.
    async fn ending(&self) -> Result<Vec<usize>> {
        let pods = self.stage.api::<Pod>();
        let mut ending = Vec::new();
        for index in 0..self.stage.nodes.len() {
            let pod = pods.get(&pod_name(index)).await?;
            ending.extend(pod.metadata.deletion_timestamp.map(|_| index));
        }
        Ok(ending)
    }

    async fn take(&self) -> Result<Operation> {
        let long = Duration::from_mins(10);
        let place = &self.stage.namespace;
        let taken = self.leases.acquire(place, "shop", &self.backup, long);
        Ok(taken.await?)
    }

    async fn release(&self) -> Result<()> {
        let place = &self.stage.namespace;
        Ok(self.leases.release(place, "shop", &self.backup).await?)
    }

    /// Gives the first slots to the second shard, as a user would who has no keys yet.
    async fn give_away(&self) -> Result<()> {
        let nodes = &self.stage.nodes;
        let target = nodes.server(nodes.primary_of(1).await?);
        let id = target.id().await?.to_string();
        // The others believe the one with the newest configuration: from the first slot on, or a message of before takes slots back.
        target.call::<String>("CLUSTER BUMPEPOCH").await?;
        for shard in [1, 0, 2] {
            let server = nodes.server(nodes.primary_of(shard).await?);
            let mut commands = pipe();
            for slot in 0..GIVEN {
                let command = commands.cmd("CLUSTER").arg("SETSLOT").arg(slot);
                command.arg("NODE").arg(&id).ignore();
            }
            let mut connection = server.connect().await?;
            commands.query_async::<()>(&mut connection).await?;
        }
        self.stage.until("every node knows", serves).await?;
        Ok(())
    }

    /// Without a rate any more.
    async fn unlimited(&self) -> Result<()> {
        let spec = json!({"migration": {"maxBytesPerSecond": null}});
        self.stage.change(spec).await
    }

    async fn says(&self, what: &str) -> Result<RedisClusterStatus> {
        let says = |status: &RedisClusterStatus| {
            let operation = status.operation.as_ref();
            operation.is_some_and(|operation| operation.message.contains(what))
        };
        self.stage.until(what, says).await
    }

    /// The slots that the second shard still has of the first one.
    async fn left(&self) -> Result<usize> {
        let slots = self.stage.nodes.slot_map().await?;
        let shard = slots.shard(1);
        Ok(shard.iter().filter(|slot| slot.get() < GIVEN).count())
    }

    /// Keys of the shard whose slots return.
    async fn keys_of_the_giver(&self) -> Result<u64> {
        let nodes = &self.stage.nodes;
        let giver = nodes.server(nodes.primary_of(1).await?);
        giver.call("DBSIZE").await
    }

    /// Waits until the shards have as many slots each, and every key is served with its value.
    async fn balanced(&self) -> Result<()> {
        let share = usize::from(SLOT_COUNT) / PodCluster::SHARDS;
        eventually("the slots are spread evenly", async || {
            let slots = self.stage.nodes.slot_map().await?;
            let mut shards = (0..PodCluster::SHARDS).map(|shard| slots.shard(shard).len());
            Ok(shards.all(|count| count.abs_diff(share) <= 1))
        })
        .await?;
        let ended = |status: &RedisClusterStatus| serves(status) && status.operation.is_none();
        self.stage.until("nothing moves any more", ended).await?;
        self.stage.nodes.check(ALL_KEYS).await?;
        self.stage.nodes.nothing_destroyed().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_wait_for_another_operation() -> Result<()> {
    let (moves, replica) = unbalanced(Value::Null).await?;
    moves.says("RedisBackup/nightly does not need them").await?;
    ensure!(moves.left().await? == usize::from(GIVEN));
    moves.release().await?;
    moves.balanced().await?;
    replica.end(ReplicaEnd::Orderly)
}

/// Every pod is of another template than the StatefulSets name. The first one goes once the backup is done, and holds the Lease then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_waits_for_another_operation() -> Result<()> {
    let stage = ClusterStage::new().await?;
    let replica = stage.replica("a", None);
    stage.create(json!({})).await?;
    stage.run_pods().await?;
    let ready = |status: &RedisClusterStatus| serves(status) && status.ready_nodes == 6;
    stage.until("every pod is ready", ready).await?;
    let moves = Moves::of(stage)?;
    ensure!(moves.take().await? == Operation::Held);
    let update = json!({"strategy": "RollingUpdate"});
    moves.stage.change(json!({ "update": update })).await?;
    moves.says("waiting for RedisBackup/nightly").await?;
    let ending = moves.ending().await?;
    ensure!(ending.is_empty(), "{ending:?}");
    moves.release().await?;
    let ending = eventually("a pod is replaced", async || {
        let ending = moves.ending().await?;
        Ok((!ending.is_empty()).then_some(ending))
    });
    let ending = ending.await?;
    let [first] = ending[..] else {
        anyhow::bail!("{ending:?}")
    };
    let role = moves.stage.nodes.server(first).info("role").await?;
    ensure!(role == "slave", "{} is a {role}", pod_name(first));
    let name = crds::operation_lease_name(&moves.stage.namespace, "shop");
    let lease = moves.stage.api::<Lease>().get(&name).await?;
    let holder = lease.spec.and_then(|spec| spec.holder_identity);
    let holder = holder.unwrap_or_default();
    ensure!(holder.contains("RedisCluster"), "{holder}");
    moves.stage.nodes.nothing_destroyed().await?;
    replica.end(ReplicaEnd::Orderly)
}

/// The Lease was deleted by hand, and a backup has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moves_end_with_their_lease() -> Result<()> {
    let (moves, replica) = unbalanced(json!(SLOW)).await?;
    moves.release().await?;
    moves.says("slots moved").await?;
    let name = crds::operation_lease_name(&moves.stage.namespace, "shop");
    eventually("the Lease is another's", async || {
        let leases = moves.stage.api::<Lease>();
        leases.delete(&name, &DeleteParams::default()).await?;
        Ok(moves.take().await? == Operation::Held)
    })
    .await?;
    moves.says("does not need them").await?;
    ensure!(moves.left().await? > 0, "nothing was left to move");
    moves.release().await?;
    moves.unlimited().await?;
    moves.balanced().await?;
    replica.end(ReplicaEnd::Orderly)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_finishes_the_moves() -> Result<()> {
    let (moves, replica) = unbalanced(json!(SLOW)).await?;
    moves.release().await?;
    moves.says("slots moved").await?;
    replica.end(ReplicaEnd::Kill)?;
    ensure!(moves.left().await? > 0, "nothing was left to move");
    let successor = moves.stage.replica("c", None);
    moves.stage.leads("c").await?;
    moves.unlimited().await?;
    moves.balanced().await?;
    successor.end(ReplicaEnd::Orderly)
}

/// The controller cannot renew its Lease. Another replica may lead as soon as the Lease has run out, and plan other moves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moves_end_with_leadership() -> Result<()> {
    let mut proxy = ApiProxy::start()?;
    let (moves, replica) = unbalanced_behind(json!(SLOW), Some(&proxy)).await?;
    moves.release().await?;
    moves.says("slots moved").await?;
    let before = moves.keys_of_the_giver().await?;
    eventually("keys move", async || {
        Ok(moves.keys_of_the_giver().await? < before)
    })
    .await?;
    proxy.leave();
    eventually("the Lease of the leader has run out", async || {
        let leases = moves.stage.api::<Lease>();
        Ok(has_run_out(&leases.get("cluster-controller").await?))
    })
    .await?;
    let left = moves.keys_of_the_giver().await?;
    ensure!(moves.left().await? > 0, "nothing was left to move");
    // A task that went on would move some of them meanwhile.
    tokio::time::sleep(WATCHED).await;
    let after = moves.keys_of_the_giver().await?;
    ensure!(after == left, "{left} keys without a leader, then {after}");
    let successor = moves.stage.replica("c", None);
    moves.stage.leads("c").await?;
    moves.unlimited().await?;
    moves.balanced().await?;
    proxy.come_back()?;
    replica.end(ReplicaEnd::Orderly)?;
    successor.end(ReplicaEnd::Orderly)
}

fn has_run_out(lease: &Lease) -> bool {
    let until = lease.spec.as_ref().and_then(|spec| {
        let seconds = i64::from(spec.lease_duration_seconds?);
        Some(spec.renew_time.as_ref()?.0 + SignedDuration::from_secs(seconds))
    });
    until.is_some_and(|until| until < Timestamp::now())
}

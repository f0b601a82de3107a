//! The Redis half of the cluster-controller against real servers, started as in pods: formed, broken, repaired. After each loss every
//! value and every slot is where it was, and no server was sent a destructive command.

use anyhow::{Context, Result, ensure};
use cluster_controller::redis::{
    assess::assess,
    execute::{Done, execute},
    member::{AbsentPods, Answer, ExpectedNode, Recovery, TakeoverRequest, Wanted},
    observe::observe,
    plan::{Action, Blocker, PromotedCopy, age, plan},
    survey::Survey,
};
use common::cluster::{node::FailoverMode, slots::Slot, topology::NodesView};
use crds::{LostSlots, Takeover};
use k8s_openapi::jiff::Timestamp;
use std::time::{Duration, Instant};
use tests::{
    drive::{Drive, RECONCILE_INTERVAL, drive, drive_pods, hand_over},
    redis::{
        MountedUsers, NODE_TIMEOUT, PodCluster, PodStorage, ShardSlots, free_ipv6_address,
        nothing_destroyed, own_users,
    },
    wait::{eventually, within},
};

const LIMIT: Duration = Duration::from_secs(40);
const KEYS: usize = 3000;
/// Of a question to a node.
const TIMEOUT: Duration = Duration::from_secs(1);

fn wanted(cluster: &PodCluster, formed_before: bool) -> Wanted {
    Wanted {
        patience: Duration::from_secs(4),
        recovery: Recovery {
            after: Duration::from_secs(4),
            ..Recovery::default()
        },
        ..cluster.wanted(formed_before)
    }
}

/// Drives the cluster until it is healthy, or fails with what is wrong.
async fn repair(cluster: &PodCluster, formed_before: bool) -> Result<Drive> {
    let wanted = wanted(cluster, formed_before);
    let drive = drive_pods(cluster, &wanted, LIMIT).await;
    for done in &drive.done {
        println!("  {:?}: {}", done.step.action, done.step.reason);
        if let Err(error) = &done.result {
            println!("    {error}");
        }
    }
    println!("took {:?}", drive.took);
    ensure!(
        drive.assessment.is_healthy(),
        "not healthy after {LIMIT:?}: {:#?}\n{}",
        drive.assessment.problems,
        cluster.tables().await
    );
    Ok(drive)
}

async fn formed(replicas: usize, storage: PodStorage) -> Result<PodCluster> {
    let cluster = PodCluster::start(replicas, storage).await?;
    repair(&cluster, false).await?;
    Ok(cluster)
}

async fn filled(replicas: usize, storage: PodStorage) -> Result<(PodCluster, ShardSlots)> {
    let cluster = formed(replicas, storage).await?;
    let slots = cluster.fill_and_replicate(KEYS).await?;
    Ok((cluster, slots))
}

/// Addresses of version 6 are met, listed, replicated from, lost and found again.
#[tokio::test]
async fn a_cluster_with_addresses_of_version_6() -> Result<()> {
    let addresses: Result<Vec<_>> = (0..6).map(|_| free_ipv6_address()).collect();
    let users = MountedUsers::Own;
    let mut cluster = PodCluster::start_at(addresses?, PodStorage::Volume, users).await?;
    repair(&cluster, false).await?;
    let slots = cluster.fill_and_replicate(KEYS).await?;
    let (victim, heir) = (cluster.primary_of(0).await?, cluster.replica_of(0).await?);
    cluster.kill(victim).await?;
    within(LIMIT, "the replica has taken over", async || {
        let primary = cluster.primary_of(0).await;
        Ok(primary.is_ok_and(|primary| primary == heir))
    })
    .await?;
    cluster.restart(victim).await?;
    repair(&cluster, true).await?;
    hand_over(&cluster, heir, victim).await?;
    cluster.unharmed(&slots, KEYS).await
}

/// What a server lists.
async fn view(cluster: &PodCluster, index: usize) -> Result<NodesView> {
    let table: String = cluster.server(index).call("CLUSTER NODES").await?;
    Ok(NodesView::parse(&table)?)
}

fn promotions(drive: &Drive) -> Vec<FailoverMode> {
    let modes = drive.done.iter().filter_map(|done| match done.step.action {
        Action::Promote { mode, .. } => Some(mode),
        _ => None,
    });
    modes.collect()
}

/// The command that takes slots from a node; one for ranges came with 7.0.
fn del_slots(slots: impl Iterator<Item = Slot>) -> String {
    let numbers: Vec<String> = slots.map(|slot| slot.get().to_string()).collect();
    format!("CLUSTER DELSLOTS {}", numbers.join(" "))
}

async fn have_node_timeout(cluster: &PodCluster, expected: Duration) -> Result<()> {
    for server in 0..3 * (cluster.replicas() + 1) {
        let read = "CONFIG GET cluster-node-timeout";
        let (_, value): (String, String) = cluster.server(server).call(read).await?;
        ensure!(
            value == expected.as_millis().to_string(),
            "server {server} has {value} ms"
        );
    }
    Ok(())
}

#[tokio::test]
async fn another_node_timeout_reaches_every_server() -> Result<()> {
    let cluster = formed(1, PodStorage::Memory).await?;
    let longer = Wanted {
        node_timeout: NODE_TIMEOUT * 2,
        ..wanted(&cluster, true)
    };
    let drive = drive_pods(&cluster, &longer, LIMIT).await;
    ensure!(drive.assessment.is_healthy(), "{:?}", drive.done);
    have_node_timeout(&cluster, NODE_TIMEOUT * 2).await
}

#[tokio::test]
async fn forms_with_and_without_replicas() -> Result<()> {
    for replicas in [1, 0] {
        let cluster = PodCluster::start(replicas, PodStorage::Volume).await?;
        let drive = repair(&cluster, false).await?;
        ensure!(drive.assessment.slots_ok == 16384);
        let mut done = drive.done.iter();
        let assigned = |done: &&Done| matches!(done.step.action, Action::AssignSlots { .. });
        let refused = done.find(|one| assigned(one) && one.result.is_err());
        ensure!(refused.is_none(), "{refused:?}");
        have_node_timeout(&cluster, NODE_TIMEOUT).await?;
        let again = repair(&cluster, true).await?;
        ensure!(
            again.done.is_empty(),
            "a second look found something to do: {:?}",
            again.done
        );
        let slots = cluster.slot_map().await?;
        cluster.fill(KEYS).await?;
        cluster.unharmed(&slots, KEYS).await?;
    }
    Ok(())
}

#[tokio::test]
async fn every_node_killed_and_back_at_another_address() -> Result<()> {
    let (mut cluster, slots) = filled(1, PodStorage::Volume).await?;
    let before = cluster.ids().await?;
    cluster.kill_all().await?;
    cluster.move_all()?;
    cluster.restart_all().await?;
    repair(&cluster, true).await?;
    ensure!(cluster.ids().await? == before, "node ids changed");
    cluster.unharmed(&slots, KEYS).await
}

#[tokio::test]
async fn every_node_killed_and_addresses_swapped() -> Result<()> {
    let (mut cluster, slots) = filled(1, PodStorage::Volume).await?;
    let before = cluster.ids().await?;
    cluster.kill_all().await?;
    cluster.rotate_addresses();
    cluster.restart_all().await?;
    repair(&cluster, true).await?;
    ensure!(cluster.ids().await? == before, "node ids changed");
    cluster.unharmed(&slots, KEYS).await
}

#[tokio::test]
async fn a_primary_without_its_volume_is_replaced_by_its_replica() -> Result<()> {
    let (mut cluster, slots) = filled(1, PodStorage::Volume).await?;
    let victim = cluster.primary_of(1).await?;
    cluster.kill(victim).await?;
    cluster.wipe(victim)?;
    cluster.restart(victim).await?;
    repair(&cluster, true).await?;
    ensure!(cluster.primary_of(1).await? != victim);
    cluster.unharmed(&slots, KEYS).await
}

#[tokio::test]
async fn a_replica_that_lost_its_volume_copies_again() -> Result<()> {
    let (mut cluster, slots) = filled(1, PodStorage::Volume).await?;
    let victim = cluster.replica_of(2).await?;
    cluster.kill(victim).await?;
    cluster.wipe(victim)?;
    cluster.move_one(victim)?;
    cluster.restart(victim).await?;
    repair(&cluster, true).await?;
    ensure!(cluster.replica_of(2).await? == victim);
    cluster.unharmed(&slots, KEYS).await
}

/// After a full copy a replica goes on with the file of before until the new one is written: a process that ended before would come back
/// without what it copied, as the primary.
#[tokio::test]
async fn a_replica_takes_over_once_its_file_is_whole() -> Result<()> {
    let (mut cluster, slots) = filled(1, PodStorage::Volume).await?;
    if cluster.server(0).program().moves_slots() {
        println!(
            "SKIPPED: Valkey 9 takes the snapshot that it has copied as its file, which is whole at once"
        );
        return Ok(());
    }
    let (primary, replica) = (cluster.primary_of(0).await?, cluster.replica_of(0).await?);
    cluster.kill(replica).await?;
    cluster.wipe(replica)?;
    cluster.restart(replica).await?;
    // In microseconds a key: its child process writes the file for some seconds.
    let slowly = cluster.server(replica);
    slowly
        .call::<()>("CONFIG SET rdb-key-save-delay 10000")
        .await?;
    let begun = Instant::now();
    repair(&cluster, true).await?;
    let expected: Vec<ExpectedNode> = cluster
        .expected()
        .into_iter()
        .enumerate()
        .map(|(index, one)| ExpectedNode {
            wanted: index != primary,
            ..one
        })
        .collect();
    let leaves = Wanted {
        known: cluster.known(),
        ..wanted(&cluster, true)
    };
    let is_handed_over = |drive: &Drive| {
        let mut done = drive.done.iter();
        done.any(|one| matches!(one.step.action, Action::HandOver { .. }))
    };
    let is_writing = async || -> Result<bool> {
        let flag = cluster
            .server(replica)
            .info("aof_rewrite_in_progress")
            .await?;
        Ok(flag == "1")
    };
    let early = drive(&leaves, &expected, Duration::from_millis(500)).await;
    ensure!(
        is_writing().await?,
        "it was written within {:?}",
        begun.elapsed()
    );
    ensure!(!is_handed_over(&early), "{:?}", early.done);
    within(LIMIT, "the file is written", async || {
        Ok(!is_writing().await?)
    })
    .await?;
    let late = drive(&leaves, &expected, NODE_TIMEOUT * 4).await;
    ensure!(is_handed_over(&late), "{:?} {:?}", late.done, late.plan);
    ensure!(cluster.primary_of(0).await? == replica);
    cluster.unharmed(&slots, KEYS).await
}

/// A primary is lost before its replica has heard what it serves (seen half a second after a cluster was formed).
#[tokio::test]
async fn a_replica_takes_over_slots_that_it_never_heard_of() -> Result<()> {
    for storage in [PodStorage::Volume, PodStorage::Memory] {
        let (mut cluster, slots) = filled(1, storage).await?;
        if cluster.server(0).info("valkey_version").await.is_ok() {
            println!(
                "SKIPPED: from Valkey 8 on the replica is elected at once, with the slots that it knows"
            );
            return Ok(());
        }
        let (victim, replica) = (cluster.primary_of(1).await?, cluster.replica_of(1).await?);
        let served = view(&cluster, victim).await?.myself().slots.clone();
        cluster.kill(victim).await?;
        let forget = del_slots(served.iter());
        cluster.server(replica).call::<()>(&forget).await?;
        cluster.mark_down_since(&[victim], Timestamp::now());
        let drive = drive_pods(&cluster, &wanted(&cluster, true), NODE_TIMEOUT * 6).await;
        let promoted = promotions(&drive);
        ensure!(
            promoted == [FailoverMode::Takeover],
            "{:?} {:?}\n{}",
            drive.done,
            drive.plan,
            cluster.tables().await
        );
        ensure!(cluster.primary_of(1).await? == replica);
        cluster.check(KEYS).await?;
        ensure!(cluster.slot_map().await? == slots);
    }
    Ok(())
}

/// A new shard loses its primary before it gets slots, and the spec has taken the replicas back: no other pod of it will come.
#[tokio::test]
async fn a_lone_replica_begins_a_shard_without_slots() -> Result<()> {
    let mut cluster = PodCluster::start(1, PodStorage::Memory).await?;
    let two = cluster.expected().into_iter().filter(|one| one.shard < 2);
    let smaller = Wanted {
        shards: 2,
        ..wanted(&cluster, false)
    };
    let formed = drive(&smaller, &two.collect::<Vec<_>>(), LIMIT).await;
    ensure!(formed.assessment.is_healthy(), "{:?}", formed.assessment);
    cluster.record(&formed.known);
    drive_pods(&cluster, &wanted(&cluster, true), NODE_TIMEOUT * 4).await;
    let is_primary = view(&cluster, 4).await?.myself().is_primary();
    let (primary, replica) = if is_primary { (4, 5) } else { (5, 4) };
    let (own, others) = (
        view(&cluster, primary).await?,
        view(&cluster, replica).await?,
    );
    ensure!(own.myself().slots.is_empty() && others.myself().primary == Some(own.myself().id));
    cluster.kill(primary).await?;

    let left = cluster.expected().into_iter().enumerate();
    let left = left.filter(|(index, _)| *index != primary);
    let left = left.map(|(index, one)| ExpectedNode {
        wanted: one.ordinal == 0 || index == replica,
        ..one
    });
    let alone = Wanted {
        replicas_per_shard: 0,
        known: cluster.known(),
        ..wanted(&cluster, true)
    };
    let ended = drive(&alone, &left.collect::<Vec<_>>(), NODE_TIMEOUT * 6).await;
    let promoted = promotions(&ended);
    ensure!(promoted == [FailoverMode::Takeover], "{:?}", ended.done);
    let table = view(&cluster, replica).await?;
    ensure!(table.myself().is_primary(), "{table:?}");
    cluster.nothing_destroyed().await
}

#[tokio::test]
async fn a_failover_by_the_servers_is_left_as_it_is() -> Result<()> {
    let (mut cluster, slots) = filled(1, PodStorage::Volume).await?;
    let victim = cluster.primary_of(0).await?;
    cluster.kill(victim).await?;
    eventually("another primary of shard 0", async || {
        Ok(cluster.primary_of(0).await.is_ok_and(|now| now != victim))
    })
    .await?;
    cluster.move_one(victim)?;
    cluster.restart(victim).await?;
    let drive = repair(&cluster, true).await?;
    ensure!(promotions(&drive).is_empty());
    ensure!(cluster.replica_of(0).await? == victim);
    cluster.unharmed(&slots, KEYS).await
}

/// A restarted container keeps the pod's directory, in which the start script finds that it ran before; a new pod has none.
/// As one that was started before it had a role, and that has replicas all the same.
#[tokio::test]
async fn a_primary_that_refuses_its_replicas_feeds_them_again() -> Result<()> {
    let (cluster, slots) = filled(1, PodStorage::Volume).await?;
    let primary = cluster.server(cluster.primary_of(0).await?);
    primary
        .call::<()>("ACL SETUSER redis-operator-replication -psync")
        .await?;
    let closed: u64 = primary.call("CLIENT KILL TYPE replica").await?;
    ensure!(closed == 1, "{closed} replicas were linked");
    let drive = repair(&cluster, true).await?;
    let mut done = drive.done.iter();
    ensure!(
        done.any(|one| matches!(one.step.action, Action::Admit { .. })),
        "{:?}",
        drive.done
    );
    cluster.unharmed(&slots, KEYS).await
}

#[tokio::test]
async fn a_primary_in_memory_restarted_in_place_loses_nothing() -> Result<()> {
    for new_pod in [false, true] {
        let (mut cluster, slots) = filled(1, PodStorage::Memory).await?;
        let victim = cluster.primary_of(1).await?;
        cluster.kill(victim).await?;
        if new_pod {
            cluster.wipe(victim)?;
        }
        cluster.restart(victim).await?;
        let drive = repair(&cluster, true).await?;
        ensure!(drive.took < NODE_TIMEOUT * 6, "took {:?}", drive.took);
        ensure!(cluster.replica_of(1).await? == victim);
        cluster.unharmed(&slots, KEYS).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_cluster_in_memory_that_lost_everything_is_formed_again() -> Result<()> {
    let (mut cluster, slots) = filled(1, PodStorage::Memory).await?;
    cluster.kill_all().await?;
    cluster.wipe_all()?;
    cluster.move_all()?;
    cluster.restart_all().await?;
    repair(&cluster, true).await?;
    cluster.fill(KEYS).await?;
    cluster.unharmed(&slots, KEYS).await
}

#[tokio::test]
async fn a_shard_in_memory_that_lost_everything_is_created_again() -> Result<()> {
    let (mut cluster, slots) = filled(0, PodStorage::Memory).await?;
    let victim = cluster.primary_of(1).await?;
    cluster.kill(victim).await?;
    cluster.wipe(victim)?;
    cluster.restart(victim).await?;
    repair(&cluster, true).await?;
    cluster.fill(KEYS).await?;
    cluster.check(KEYS).await?;
    ensure!(cluster.slot_map().await? == slots);
    // The new node takes the slots out of its own table before it claims them.
    let others = (0..cluster.len()).filter(|index| *index != victim);
    nothing_destroyed(others.map(|index| cluster.server(index))).await
}

#[tokio::test]
async fn a_shard_that_lost_its_volumes_is_not_created_again() -> Result<()> {
    let (mut cluster, slots) = filled(0, PodStorage::Volume).await?;
    let victim = cluster.primary_of(1).await?;
    cluster.kill(victim).await?;
    cluster.wipe(victim)?;
    cluster.restart(victim).await?;
    let wanted = wanted(&cluster, true);
    let drive = drive_pods(&cluster, &wanted, NODE_TIMEOUT * 4).await;
    ensure!(!drive.assessment.is_healthy());
    ensure!(drive.plan.steps.is_empty(), "{:?}", drive.plan.steps);
    let blockers = drive.plan.blockers.iter();
    let words: Vec<String> = blockers.map(ToString::to_string).collect();
    ensure!(
        words.iter().any(|word| word.contains("are lost")),
        "{words:?}"
    );
    for survivor in [0, 2] {
        cluster.is_as_before(survivor, &slots, KEYS).await?;
    }
    cluster.nothing_destroyed().await
}

/// Where the user accepts it, the ranges of the message are served again, empty, and nothing else changes.
#[tokio::test]
async fn lost_ranges_are_named_and_recreated_on_request() -> Result<()> {
    let (mut cluster, slots) = filled(0, PodStorage::Volume).await?;
    let victim = cluster.primary_of(1).await?;
    cluster.kill(victim).await?;
    cluster.wipe(victim)?;
    cluster.restart(victim).await?;
    let mut wanted = wanted(&cluster, true);
    let refused = drive_pods(&cluster, &wanted, NODE_TIMEOUT * 4).await;
    let blockers = refused.plan.blockers.iter();
    let words: Vec<String> = blockers.map(ToString::to_string).collect();
    for part in [
        "5461 slots (5462-10922) are lost",
        "restore a backup",
        "lostSlots: RecreateEmpty",
    ] {
        ensure!(
            words.iter().any(|word| word.contains(part)),
            "{part}: {words:?}"
        );
    }
    wanted.recovery.lost_slots = LostSlots::RecreateEmpty;
    let drive = drive_pods(&cluster, &wanted, LIMIT).await;
    ensure!(
        drive.assessment.is_healthy(),
        "{:#?}",
        drive.assessment.problems
    );
    ensure!(cluster.slot_map().await? == slots);
    for survivor in [0, 2] {
        cluster.is_as_before(survivor, &slots, KEYS).await?;
    }
    let size: u64 = cluster.server(victim).call("DBSIZE").await?;
    ensure!(size == 0, "{size} keys in the shard that was created again");
    cluster.fill(KEYS).await?;
    cluster.check(KEYS).await
}

/// CLUSTER DELSLOTS, on the primary alone or on every node: the primary has the keys, and serves them again.
#[tokio::test]
async fn slots_taken_by_hand_are_served_again() -> Result<()> {
    for storage in [PodStorage::Volume, PodStorage::Memory] {
        let (cluster, slots) = filled(1, storage).await?;
        let primary = cluster.primary_of(1).await?;
        let own = view(&cluster, primary).await?.myself().slots.clone();
        let taken = del_slots(own.iter().filter(|slot| (6000..7000).contains(&slot.get())));
        cluster.server(primary).call::<()>(&taken).await?;
        let drive = repair(&cluster, true).await?;
        let restored = |drive: &Drive| {
            let done = drive.done.iter();
            done.filter(|one| one.step.reason.contains("no living node owns the slots"))
                .count()
        };
        ensure!(restored(&drive) > 0, "{:?}", drive.done);
        ensure!(cluster.slot_map().await? == slots);
        // On every node, of slots that have keys: those without one are known by no table any more.
        let full = cluster.slots_with_keys(1, KEYS).await?;
        let taken = del_slots(full.iter().take(50));
        for index in 0..cluster.len() {
            // A node that has heard of it already refuses.
            let _ = cluster.server(index).call::<()>(&taken).await;
        }
        let drive = repair(&cluster, true).await?;
        ensure!(restored(&drive) > 0, "{:?}", drive.done);
        ensure!(cluster.slot_map().await? == slots);
        cluster.check(KEYS).await?;
    }
    Ok(())
}

#[tokio::test]
async fn replicas_take_over_when_the_majority_is_lost() -> Result<()> {
    let (mut cluster, slots) = filled(1, PodStorage::Volume).await?;
    let victims = [cluster.primary_of(0).await?, cluster.primary_of(1).await?];
    for victim in victims {
        cluster.kill(victim).await?;
    }
    cluster.mark_down_since(&victims, Timestamp::now());
    let wanted = wanted(&cluster, true);
    within(LIMIT, "the replicas have taken over", async || {
        drive_pods(&cluster, &wanted, RECONCILE_INTERVAL * 4).await;
        let primaries = [cluster.primary_of(0).await, cluster.primary_of(1).await];
        let taken =
            |(now, then): (&Result<usize>, usize)| now.as_ref().is_ok_and(|now| *now != then);
        Ok(primaries.iter().zip(victims).all(taken))
    })
    .await?;
    eventually("every key is served", async || {
        Ok(cluster.check(KEYS).await.is_ok())
    })
    .await?;
    for victim in victims {
        cluster.move_one(victim)?;
        cluster.restart(victim).await?;
    }
    repair(&cluster, true).await?;
    cluster.unharmed(&slots, KEYS).await
}

/// An ordered failover does not ask how old a copy is, and the volume of the primary is still there. No look has seen how old it is.
#[tokio::test]
async fn a_copy_of_unknown_age_waits_for_the_primary() -> Result<()> {
    waits_for_the_primary(None).await
}

/// The primary was seen to go on without it.
#[tokio::test]
async fn an_old_copy_waits_for_the_primary() -> Result<()> {
    waits_for_the_primary(Some(age::most(NODE_TIMEOUT))).await
}

/// `longer_than`: for how long the primary is seen to go on.
async fn waits_for_the_primary(longer_than: Option<Duration>) -> Result<()> {
    let (mut cluster, slots) = filled(1, PodStorage::Volume).await?;
    let (primary, replica) = (cluster.primary_of(0).await?, cluster.replica_of(0).await?);
    let mut wanted = wanted(&cluster, true);
    wanted.recovery.after = Duration::from_secs(1);
    cluster.kill(replica).await?;
    cluster.fill(2 * KEYS).await?;
    if let Some(time) = longer_than {
        drive_pods(&cluster, &wanted, time + Duration::from_secs(2)).await;
    } else {
        cluster.forget_looks();
    }
    cluster.kill(primary).await?;
    let hour = k8s_openapi::jiff::SignedDuration::from_hours(1);
    cluster.mark_down_since(&[primary], Timestamp::now() - hour);
    cluster.restart(replica).await?;
    let seen = drive_pods(&cluster, &wanted, NODE_TIMEOUT * 4).await;
    ensure!(promotions(&seen).is_empty(), "{:?}", seen.done);
    let waits = |blocker: &Blocker| matches!(blocker, Blocker::OldCopy { shard: 0, older_than, .. } if *older_than == longer_than);
    ensure!(seen.plan.blockers.iter().any(waits), "{:?}", seen.plan);
    cluster.restart(primary).await?;
    repair(&cluster, true).await?;
    cluster.unharmed(&slots, 2 * KEYS).await
}

/// The replica was linked until a moment before its primary ended, and was started since.
#[tokio::test]
async fn a_recent_copy_takes_over() -> Result<()> {
    let (mut cluster, slots) = filled(1, PodStorage::Volume).await?;
    let (primary, replica) = (cluster.primary_of(0).await?, cluster.replica_of(0).await?);
    let mut wanted = wanted(&cluster, true);
    wanted.recovery.after = Duration::from_secs(1);
    drive_pods(&cluster, &wanted, NODE_TIMEOUT).await;
    cluster.kill_all().await?;
    let hour = k8s_openapi::jiff::SignedDuration::from_hours(1);
    cluster.mark_down_since(&[primary], Timestamp::now() - hour);
    for index in (0..cluster.len()).filter(|index| *index != primary) {
        cluster.restart(index).await?;
    }
    let seen = drive_pods(&cluster, &wanted, LIMIT).await;
    let mut promoted = promotions(&seen);
    if cluster.server(0).program().moves_slots() {
        // The voters of Valkey 9 refuse for a moment after their start: it is asked for again.
        promoted.dedup();
    }
    ensure!(
        promoted == [FailoverMode::Force],
        "{:?} {:?}",
        seen.done,
        seen.plan
    );
    ensure!(cluster.primary_of(0).await? == replica);
    cluster.restart(primary).await?;
    repair(&cluster, true).await?;
    cluster.unharmed(&slots, KEYS).await
}

/// Everything was down for an hour. The replica has missed the last writes and is the first to answer; the primary is started later,
/// at an address that no node knows, and takes longer than the patience to read its file.
#[tokio::test]
async fn a_primary_that_comes_back_slowly_keeps_its_role() -> Result<()> {
    let (mut cluster, slots) = filled(1, PodStorage::Volume).await?;
    if !cluster.server(0).program().at_least(7, 0) {
        println!(
            "SKIPPED: it answers while it loads only after every 2 MiB, which these keys are not, and no setting changes that"
        );
        return Ok(());
    }
    let (primary, replica) = (cluster.primary_of(0).await?, cluster.replica_of(0).await?);
    let ids = cluster.ids().await?;
    cluster.kill(replica).await?;
    cluster.fill(2 * KEYS).await?;
    cluster.rewrite(primary).await?;
    cluster.kill_all().await?;
    cluster.move_one(primary)?;
    let hour = k8s_openapi::jiff::SignedDuration::from_hours(1);
    cluster.mark_down_since(&[primary], Timestamp::now() - hour);
    for index in 0..ids.len() {
        if index != primary {
            cluster.restart(index).await?;
        }
    }
    let wanted = wanted(&cluster, true);
    let first = drive_pods(&cluster, &wanted, Duration::from_secs(2)).await;
    ensure!(promotions(&first).is_empty(), "{:?}", first.done);
    // 2000 keys of the shard: 8 s.
    cluster.start_slowly(primary, Duration::from_millis(4))?;
    let connections = own_users::connections();
    eventually("the primary loads", async || {
        let members = observe(&cluster.expected(), &connections, TIMEOUT).await;
        Ok(members[primary].answer == Answer::Loading)
    })
    .await?;
    let drive = repair(&cluster, true).await?;
    ensure!(drive.took > wanted.patience, "took only {:?}", drive.took);
    ensure!(promotions(&drive).is_empty());
    ensure!(cluster.primary_of(0).await? == primary);
    ensure!(cluster.ids().await? == ids, "node ids changed");
    cluster.unharmed(&slots, 2 * KEYS).await
}

/// The server of a full disk refuses writes. Its pod, the cause and the cure are named, and nothing is done against it.
#[tokio::test]
async fn a_full_disk_is_named() -> Result<()> {
    let (mut cluster, slots) = filled(0, PodStorage::Volume).await?;
    if !cluster.server(0).program().at_least(7, 0) {
        println!(
            "SKIPPED: before 7.0 all is in one file, which cannot be read and be full at the same time"
        );
        return Ok(());
    }
    let ids = cluster.ids().await?;
    let full = cluster.primary_of(1).await?;
    cluster.rewrite(full).await?;
    cluster.kill(full).await?;
    cluster.fill_disk(full)?;
    cluster.restart(full).await?;
    repair(&cluster, true).await?;
    eventually("it cannot write", async || {
        let refused = cluster.fill(KEYS).await.err();
        Ok(refused.is_some_and(|error| format!("{error:#}").contains("MISCONF")))
    })
    .await?;
    let drive = drive_pods(&cluster, &wanted(&cluster, true), NODE_TIMEOUT * 2).await;
    let problems = drive.assessment.problems.iter();
    let words: Vec<(Option<&str>, String)> =
        problems.map(|one| (one.pod(), one.to_string())).collect();
    let [(pod, words)] = words.as_slice() else {
        anyhow::bail!("{words:?}")
    };
    ensure!(*pod == Some("test-1-0"), "{pod:?}");
    for part in [
        "cannot write its append-only file",
        "make room on its volume",
    ] {
        ensure!(words.contains(part), "{words}");
    }
    ensure!(drive.done.is_empty(), "{:?}", drive.done);
    ensure!(cluster.ids().await? == ids && cluster.slot_map().await? == slots);
    cluster.check(KEYS).await
}

/// Before 7.0 slots are given one by one; later servers still know how.
/// Its pods bring no data, so the last one to start is not waited for: it becomes a replica.
#[tokio::test]
async fn a_new_cluster_begins_before_its_last_node_starts() -> Result<()> {
    let mut cluster = PodCluster::start(1, PodStorage::Memory).await?;
    let last = 4;
    cluster.kill(last).await?;
    cluster.wipe(last)?;
    let wanted = Wanted {
        absent: AbsentPods::Blank,
        ..wanted(&cluster, false)
    };
    let drive = drive_pods(&cluster, &wanted, Duration::from_secs(6)).await;
    ensure!(drive.assessment.slots_ok == 16384, "{:?}", drive.assessment);
    cluster.restart(last).await?;
    let joined = drive_pods(&cluster, &wanted, LIMIT).await;
    println!("the last node is a replica after {:?}", joined.took);
    ensure!(joined.assessment.is_healthy(), "{:?}", joined.assessment);
    ensure!(cluster.replica_of(2).await? == last);
    Ok(())
}

#[tokio::test]
async fn forms_with_the_commands_of_older_servers() -> Result<()> {
    let cluster = PodCluster::start(1, PodStorage::Memory).await?;
    let wanted = wanted(&cluster, false);
    let expected = cluster.expected();
    let connections = own_users::connections();
    eventually("formed as servers of 6.2 are", async || {
        let mut members = observe(&expected, &connections, TIMEOUT).await;
        for member in &mut members {
            if let Answer::Report(report) = &mut member.answer {
                report.server.version = "6.2.14".into();
            }
        }
        let survey = Survey::of(&wanted, &members);
        let steps = plan(&survey, Timestamp::now());
        let done = execute(&steps, &members, &connections, TIMEOUT).await;
        for one in done {
            one.result?;
        }
        Ok(assess(&survey).is_healthy())
    })
    .await?;
    for shard in 0..3 {
        let primary = cluster.primary_of(shard).await?;
        ensure!(cluster.was_sent(primary, "cluster|addslots").await?);
        ensure!(!cluster.was_sent(primary, "cluster|addslotsrange").await?);
    }
    cluster.fill(KEYS).await?;
    cluster.check(KEYS).await?;
    cluster.nothing_destroyed().await
}

/// Two primaries are on one Kubernetes node and none on another: one hand-over later each has one, without a lost key or an election.
#[tokio::test]
async fn primaries_are_spread_by_a_hand_over() -> Result<()> {
    let (mut cluster, slots) = filled(1, PodStorage::Volume).await?;
    let mut places = [""; 6];
    for (shard, (primary, replica)) in [("one", "two"), ("one", "three"), ("two", "one")]
        .into_iter()
        .enumerate()
    {
        places[cluster.primary_of(shard).await?] = primary;
        places[cluster.replica_of(shard).await?] = replica;
    }
    cluster.place_on(&places);
    let drive = repair(&cluster, true).await?;
    let hand_overs = drive
        .done
        .iter()
        .filter(|done| matches!(done.step.action, Action::HandOver { .. }) && done.result.is_ok());
    ensure!(hand_overs.count() == 1, "{:?}", drive.done);
    let nodes = places_of_primaries(&cluster, &places).await?;
    ensure!(nodes == ["one", "three", "two"], "{nodes:?}");
    let again = repair(&cluster, true).await?;
    ensure!(again.done.is_empty(), "{:?}", again.done);
    the_server_of_before_is_asked_when_it_stands_again(&cluster, &drive, &places).await?;
    cluster.unharmed(&slots, KEYS).await
}

/// The Kubernetes nodes of the primaries, sorted.
async fn places_of_primaries<'a>(
    cluster: &PodCluster,
    places: &[&'a str; 6],
) -> Result<Vec<&'a str>> {
    let mut nodes = Vec::new();
    for shard in 0..3 {
        nodes.push(places[cluster.primary_of(shard).await?]);
    }
    nodes.sort_unstable();
    Ok(nodes)
}

/// A person takes the hand-over back. The server that had been elected remembers that, and is not asked before it would stand again: no attempt
/// fails, and none is won with the votes of before.
async fn the_server_of_before_is_asked_when_it_stands_again(
    cluster: &PodCluster,
    drive: &Drive,
    places: &[&str; 6],
) -> Result<()> {
    let mut steps = drive.done.iter().map(|done| &done.step.action);
    let handed = steps.find_map(|action| match action {
        Action::HandOver { to, from, .. } => Some((*to, *from)),
        _ => None,
    });
    let (elected, before) = handed.context("no hand-over")?;
    hand_over(cluster, elected, before).await?;
    let begun = Instant::now();
    within(LIMIT, "the primaries are spread again", async || {
        let drive = repair(cluster, true).await?;
        let mut failed = drive.done.iter().filter(|done| done.result.is_err());
        ensure!(failed.next().is_none(), "{:?}", drive.done);
        let nodes = places_of_primaries(cluster, places).await?;
        Ok(nodes == ["one", "three", "two"])
    })
    .await?;
    println!("handed over again after {:?}", begun.elapsed());
    Ok(())
}

/// The servers of two of three primaries are gone.
async fn without_majority() -> Result<(PodCluster, ShardSlots, [usize; 2])> {
    let (mut cluster, slots) = filled(1, PodStorage::Volume).await?;
    let victims = [cluster.primary_of(0).await?, cluster.primary_of(1).await?];
    for victim in victims {
        cluster.kill(victim).await?;
    }
    cluster.mark_down_since(&victims, Timestamp::now());
    Ok((cluster, slots, victims))
}

/// Repairs until the replicas of these primaries have taken over.
async fn taken_over(cluster: &PodCluster, wanted: &Wanted, victims: &[usize]) -> Result<()> {
    let taken = within(LIMIT, "the replicas have taken over", async || {
        drive_pods(cluster, wanted, RECONCILE_INTERVAL * 4).await;
        let primaries = [cluster.primary_of(0).await, cluster.primary_of(1).await];
        let taken =
            |(now, then): (&Result<usize>, &usize)| now.as_ref().is_ok_and(|now| now != then);
        Ok(primaries.iter().zip(victims).all(taken))
    });
    cluster.explained(taken.await).await
}

/// No replica takes over for twice the patience, and these words say why.
async fn waits(cluster: &PodCluster, wanted: &Wanted, why: &str) -> Result<()> {
    let waiting = drive_pods(cluster, wanted, wanted.recovery.after * 2).await;
    ensure!(promotions(&waiting).is_empty(), "{:?}", waiting.done);
    let blockers = waiting.plan.blockers.iter();
    let words: Vec<String> = blockers.map(ToString::to_string).collect();
    ensure!(words.iter().any(|word| word.contains(why)), "{words:?}");
    Ok(())
}

async fn returned(mut cluster: PodCluster, slots: &ShardSlots, victims: [usize; 2]) -> Result<()> {
    for victim in victims {
        cluster.restart(victim).await?;
    }
    repair(&cluster, true).await?;
    cluster.unharmed(slots, KEYS).await
}

/// Two of three primaries give no sign of life and may still serve elsewhere: their replicas wait until that is excluded.
#[tokio::test]
async fn replicas_wait_for_a_majority_that_may_live() -> Result<()> {
    let (mut cluster, slots, victims) = without_majority().await?;
    cluster.mark_doubtful(&victims, true);
    let wanted = wanted(&cluster, true);
    let why = "has surely ended: its Kubernetes node is cut off";
    waits(&cluster, &wanted, why).await?;
    cluster.mark_doubtful(&victims, false);
    taken_over(&cluster, &wanted, &victims).await?;
    returned(cluster, &slots, victims).await
}

/// Lets two nodes give themselves the same epoch, the newest of all: neither has heard of the other's. A third one ends what an attempt that
/// failed has left.
async fn same_epoch(cluster: &PodCluster, pair: [usize; 2]) -> Result<()> {
    let third = cluster.server(cluster.primary_of(2).await?);
    let [one, other] = pair.map(|index| cluster.server(index));
    let (mut one, mut other) = (one.connect().await?, other.connect().await?);
    let bump = redis::cmd("CLUSTER").arg("BUMPEPOCH").to_owned();
    eventually("both have bumped to the same epoch", async || {
        let bumped: String = third.call("CLUSTER BUMPEPOCH").await?;
        let (_, newest) = bumped.split_once(' ').context("BUMPED and an epoch")?;
        let newest = format!("cluster_current_epoch:{newest}\r");
        for index in pair {
            let info: String = cluster.server(index).call("CLUSTER INFO").await?;
            if !info.contains(&newest) {
                return Ok(false);
            }
        }
        let (one, other): (String, String) =
            tokio::try_join!(bump.query_async(&mut one), bump.query_async(&mut other))?;
        Ok(one == other && one.starts_with("BUMPED"))
    })
    .await
}

/// Primary and replica have the same epoch, and it is the newest: two nodes that were born at once may have given it to themselves. What
/// takes over is believed, and keeps its slots when the primary returns.
#[tokio::test]
async fn a_takeover_is_newer_than_its_primary() -> Result<()> {
    let (mut cluster, slots) = filled(1, PodStorage::Volume).await?;
    let pair = [cluster.primary_of(0).await?, cluster.replica_of(0).await?];
    same_epoch(&cluster, pair).await?;
    let bumped = view(&cluster, pair[0]).await?.myself().clone();
    eventually("all know the epoch of the primary", async || {
        for index in 0..cluster.len() {
            let view = view(&cluster, index).await?;
            let listed = view.get(bumped.id).map(|node| node.config_epoch);
            if listed != Some(bumped.config_epoch) {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await?;
    let victims = [pair[0], cluster.primary_of(1).await?];
    for victim in victims {
        cluster.kill(victim).await?;
    }
    cluster.mark_down_since(&victims, Timestamp::now());
    let mut wanted = wanted(&cluster, true);
    wanted.recovery.takeover = Takeover::Manual;
    wanted.recovery.requested = TakeoverRequest::Shards([0].into());
    taken_over(&cluster, &wanted, &victims).await?;
    returned(cluster, &slots, victims).await
}

/// The spec accepts what they may have acknowledged.
#[tokio::test]
async fn a_majority_that_may_live_is_given_up_with_auto() -> Result<()> {
    let (mut cluster, slots, victims) = without_majority().await?;
    cluster.mark_doubtful(&victims, true);
    let mut wanted = wanted(&cluster, true);
    wanted.recovery.takeover = Takeover::Auto;
    taken_over(&cluster, &wanted, &victims).await?;
    returned(cluster, &slots, victims).await
}

/// Also where the lost primaries have ended for certain. One takeover makes a majority, which elects the other replica.
#[tokio::test]
async fn with_manual_takeover_replicas_wait_for_the_annotation() -> Result<()> {
    let (cluster, slots, victims) = without_majority().await?;
    let mut wanted = wanted(&cluster, true);
    wanted.recovery.takeover = Takeover::Manual;
    waits(&cluster, &wanted, "spec.recovery.takeover is Manual").await?;
    wanted.recovery.requested = TakeoverRequest::Shards([0].into());
    let first = drive_pods(&cluster, &wanted, RECONCILE_INTERVAL * 2).await;
    ensure!(
        promotions(&first).first() == Some(&FailoverMode::Takeover),
        "{:?}",
        first.done
    );
    ensure!(cluster.primary_of(0).await? != victims[0]);
    taken_over(&cluster, &wanted, &victims).await?;
    returned(cluster, &slots, victims).await
}

/// A new replica waits for its first copy when its primary's pod is lost with everything in memory: the shard is served again, empty,
/// and the step says so.
#[tokio::test]
async fn a_replica_before_its_first_copy_is_not_promoted_silently() -> Result<()> {
    let (mut cluster, _) = filled(1, PodStorage::Memory).await?;
    let (primary, replica) = (cluster.primary_of(1).await?, cluster.replica_of(1).await?);
    let server = cluster.server(primary);
    let _: String = server
        .call("CONFIG SET repl-diskless-sync-delay 600")
        .await?;
    cluster.kill(replica).await?;
    cluster.wipe(replica)?;
    cluster.restart(replica).await?;
    let wanted = wanted(&cluster, true);
    within(LIMIT, "the new replica is attached", async || {
        drive_pods(&cluster, &wanted, RECONCILE_INTERVAL * 4).await;
        Ok(cluster.server(replica).info("role").await? == "slave")
    })
    .await?;
    ensure!(cluster.server(replica).info("master_link_status").await? == "down");
    cluster.kill(primary).await?;
    cluster.wipe(primary)?;
    cluster.restart(primary).await?;
    let drive = repair(&cluster, true).await?;
    let named = drive.done.iter().find_map(|done| match done.step.action {
        Action::Promote {
            copy: PromotedCopy::Lost,
            ..
        } => Some(&done.step.reason),
        _ => None,
    });
    ensure!(
        named.is_some_and(|reason| reason.contains("no copy of shard 1 is left")),
        "{:?}",
        drive.done
    );
    ensure!(cluster.primary_of(1).await? == replica);
    cluster.fill(KEYS).await?;
    cluster.check(KEYS).await
}

/// A script blocks a primary: it is named as the cause, and nothing is done against it.
#[tokio::test]
async fn a_busy_primary_keeps_its_slots() -> Result<()> {
    let (cluster, slots) = filled(1, PodStorage::Volume).await?;
    let primary = cluster.primary_of(0).await?;
    let server = cluster.server(primary);
    let _: String = server.call("CONFIG SET lua-time-limit 300").await?;
    let mut connection = server.connect().await?;
    let script = tokio::spawn(async move {
        let mut endless = redis::cmd("EVAL");
        endless.arg("while true do end").arg(0);
        endless.query_async::<redis::Value>(&mut connection).await
    });
    let wanted = Wanted {
        known: cluster.known(),
        ..wanted(&cluster, true)
    };
    let connections = own_users::connections();
    let busy = eventually("the primary is busy", async || {
        let members = observe(&cluster.expected(), &connections, TIMEOUT).await;
        Ok((members[primary].answer == Answer::Busy).then_some(members))
    })
    .await?;
    let survey = Survey::of(&wanted, &busy);
    let steps = plan(&survey, Timestamp::now());
    ensure!(steps.steps.is_empty(), "{steps:?}");
    let assessment = assess(&survey);
    ensure!(assessment.slots_ok == 16384, "{assessment:?}");
    let problems = assessment.problems.iter();
    let words: Vec<String> = problems.map(ToString::to_string).collect();
    ensure!(
        words.iter().any(|word| word.contains("script kill")),
        "{words:?}"
    );
    let _: String = server.call("SCRIPT KILL").await?;
    ensure!(script.await?.is_err(), "the script ended by itself");
    repair(&cluster, true).await?;
    ensure!(cluster.primary_of(0).await? == primary);
    cluster.unharmed(&slots, KEYS).await
}

//! What the product seldom sends, on servers that know its users, as the user that sends it there. `tests/rights.tsv` has for each right of each
//! own user a test that fails without it.

use anyhow::{Context, Result, ensure};
use cluster_controller::{
    certificates::servers::end_plaintext,
    redis::{
        execute::{execute, pause_writes},
        member::{Answer, Member},
        observe::observe,
        plan::{Action, Assignment, Plan, Step},
    },
    users::servers::ask_rules,
};
use common::cluster::{slots::SlotRange, topology::NodesView};
use std::time::{Duration, Instant};
use tests::{
    cluster_stage::addresses,
    drive::drive_pods,
    redis::{MountedUsers, PodCluster, PodStorage, executed, own_users},
    wait::eventually,
};

const LIMIT: Duration = Duration::from_secs(40);
/// Of a question to a node.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Three shards with a replica each, at the port of the product.
async fn formed() -> Result<PodCluster> {
    let cluster = PodCluster::start_at(addresses(), PodStorage::Memory, MountedUsers::Own).await?;
    let drive = drive_pods(&cluster, &cluster.wanted(false), LIMIT).await;
    let problems = &drive.assessment.problems;
    ensure!(drive.assessment.is_healthy(), "{problems:#?}");
    Ok(cluster)
}

async fn view(cluster: &PodCluster, index: usize) -> Result<NodesView> {
    let table: String = cluster.server(index).call("CLUSTER NODES").await?;
    Ok(NodesView::parse(&table)?)
}

async fn members(cluster: &PodCluster) -> Vec<Member> {
    observe(&cluster.expected(), &own_users::connections(), TIMEOUT).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stop_script_hands_a_primary_over() -> Result<()> {
    let cluster = formed().await?;
    cluster.replicated().await?;
    let (primary, replica) = (cluster.primary_of(0).await?, cluster.replica_of(0).await?);
    let server = cluster.server(primary);
    let ended = server.stop_script()?.output()?;
    ensure!(ended.status.success(), "{ended:?}");
    ensure!(
        server.info("role").await? == "slave",
        "it is a primary still: {ended:?}\n{}",
        cluster.tables().await
    );
    ensure!(cluster.primary_of(0).await? == replica);
    // The script has seen that, and did not go on until its own limit.
    let seen = executed(server).await?.get("role").copied();
    ensure!(seen.is_some_and(|times| times > 0), "ROLE: {seen:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_wait_while_they_are_paused() -> Result<()> {
    const PAUSED: Duration = Duration::from_secs(2);
    let cluster = formed().await?;
    let members = members(&cluster).await;
    let connections = own_users::connections();
    let begun = Instant::now();
    pause_writes(&members, &connections, PAUSED, TIMEOUT).await;
    cluster.fill(100).await?;
    let took = begun.elapsed();
    ensure!(took >= PAUSED, "written after {took:?}");
    cluster.check(100).await
}

/// As after a loss: a primary takes slots over that its own table lists with another node. By ranges, and one by one as before 7.0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_listed_with_another_node_are_claimed() -> Result<()> {
    let cluster = formed().await?;
    let (claimant, owner) = (cluster.primary_of(0).await?, cluster.primary_of(1).await?);
    let view = |index: usize| view(&cluster, index);
    let listed = view(owner).await?.myself().slots.clone();
    for (slot, version) in listed.iter().zip(["7.0.15", "6.2.14"]) {
        let mut members = members(&cluster).await;
        if let Answer::Report(report) = &mut members[claimant].answer {
            version.clone_into(&mut report.server.version);
        }
        let ranges = vec![SlotRange::from(slot)];
        let action = Action::AssignSlots {
            member: claimant,
            ranges: ranges.clone(),
            how: Assignment::Restored { listed: ranges },
        };
        let reason = "the test asks for it".to_owned();
        let steps = Plan {
            steps: vec![Step { action, reason }],
            ..Plan::default()
        };
        for done in execute(&steps, &members, &own_users::connections(), TIMEOUT).await {
            done.result?;
        }
        eventually("the other node has heard of it", async || {
            Ok(!view(owner).await?.myself().slots.contains(slot))
        })
        .await?;
        ensure!(view(claimant).await?.myself().slots.contains(slot));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_are_tried_and_leave_no_user() -> Result<()> {
    let cluster = formed().await?;
    let members = members(&cluster).await;
    let rules = |words: &str| ("app".to_owned(), words.to_owned());
    let (right, wrong) = (rules("~* +get"), rules("~* +gett"));
    let trials = [right.clone(), wrong.clone()];
    let found = ask_rules(&members, &own_users::connections(), &trials).await;
    let refused = found.get(&wrong).context("a server has not answered")?;
    let words = refused.as_deref().unwrap_or_default();
    ensure!(words.contains("gett"), "{found:?}");
    ensure!(found.get(&right) == Some(&None), "{found:?}");
    let users: Vec<String> = cluster.server(0).call("ACL USERS").await?;
    ensure!(
        users.iter().all(|user| !user.contains("trial")),
        "{users:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_in_the_clear_are_ended() -> Result<()> {
    let cluster = formed().await?;
    let members = members(&cluster).await;
    let mut client = cluster.server(0).connect().await?;
    let ended = end_plaintext(&members, &own_users::connections()).await;
    ensure!(ended.len() == cluster.len(), "{} servers", ended.len());
    eventually("the client's connection has ended", async || {
        let answer: Result<String, _> = redis::cmd("PING").query_async(&mut client).await;
        Ok(answer.is_err())
    })
    .await
}

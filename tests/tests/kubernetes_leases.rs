//! Leases on a real API server: one leader, takeover, members, operations.

use anyhow::Result;
use common::{
    kubernetes::leases::{Holder, Leadership, Members, Membership, Operation, OperationLeases},
    runtime::Runtime,
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use std::time::{Duration, Instant};
use tests::{
    kubernetes::{ApiServer, api_server},
    replica::{Replica, ReplicaEnd, ReplicaSettings},
    wait::eventually,
};

const LEASE: Duration = Duration::from_secs(3);
const PROGRAM: &str = "test-controller";

fn runtime(server: &ApiServer, identity: &str, namespace: &str) -> Result<Runtime> {
    server.runtime(PROGRAM, identity, namespace, LEASE)
}

async fn leads(leadership: &Leadership) -> Result<()> {
    eventually("the candidate leads", async || {
        Ok(leadership.is_leader_now().then_some(()))
    })
    .await
}

/// A replica that leads until it ends.
fn leader(identity: &str, namespace: &str) -> Replica {
    let settings = ReplicaSettings {
        program: PROGRAM,
        identity: identity.to_owned(),
        namespace: namespace.to_owned(),
        lease: LEASE,
        proxy: None,
    };
    Replica::start(settings, |runtime| async move {
        let _leadership = Leadership::start(&runtime);
        let mut membership = Membership::start(&runtime);
        membership.joined().await;
        runtime.shutdown.cancelled().await;
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_leads_and_hands_over_at_once() -> Result<()> {
    let server = api_server().await?;
    let namespace = server.namespace("leader").await?;
    let (a, b) = (
        runtime(&server, "a", &namespace)?,
        runtime(&server, "b", &namespace)?,
    );
    let first = Leadership::start(&a);
    leads(&first).await?;
    let second = Leadership::start(&b);
    let mut seen = second.watch();
    seen.wait_for(|state| state.holder.as_deref() == Some("a"))
        .await?;
    let observed = Instant::now();
    while observed.elapsed() < LEASE * 2 {
        assert!(first.is_leader_now() && !second.is_leader_now());
        assert!(second.ensure().is_err());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    a.shutdown.cancel();
    a.finish(Duration::from_secs(10)).await;
    assert!(!first.is_leader_now());
    // Released, or taken by the other one since: it does not have to expire.
    let leases: Api<Lease> = Api::namespaced(server.client.clone(), &namespace);
    let lease = leases.get(PROGRAM).await?;
    let holder = lease.spec.and_then(|spec| spec.holder_identity);
    assert_ne!(holder.as_deref(), Some("a"));
    leads(&second).await?;
    b.finish(Duration::from_secs(1)).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_replica_is_noticed_and_replaced() -> Result<()> {
    let server = api_server().await?;
    let namespace = server.namespace("dead").await?;
    let mortal = leader("a", &namespace);
    let runtime = runtime(&server, "b", &namespace)?;
    let members = Members::new(&runtime);
    let mut membership = Membership::start(&runtime);
    assert!(membership.joined().await && membership.is_alive_now());
    let (a, b) = (format!("{PROGRAM}-a"), membership.name().to_string());
    eventually("both live", async || {
        Ok(members.live().await?.contains(&a).then_some(()))
    })
    .await?;
    let leases: Api<Lease> = Api::namespaced(server.client.clone(), &namespace);
    // Only then: its member lease alone does not say that it leads, and this replica would be as good.
    eventually("the mortal one leads", async || {
        let lease = leases.get_opt(PROGRAM).await?;
        let holder = lease.and_then(|lease| lease.spec?.holder_identity);
        Ok((holder.as_deref() == Some("a")).then_some(()))
    })
    .await?;
    let leadership = Leadership::start(&runtime);
    let state = leadership.watch();
    eventually("this one knows who leads", async || {
        let known = state.borrow().holder.clone();
        Ok((known.as_deref() == Some("a")).then_some(()))
    })
    .await?;
    mortal.end(ReplicaEnd::Kill)?;
    let died = Instant::now();
    leads(&leadership).await?;
    // Not before the dead leader's own promise has passed, which it may have renewed just before.
    assert!(died.elapsed() > LEASE / 2, "{:?}", died.elapsed());
    let live = eventually("the dead member is noticed", async || {
        let live = members.live().await?;
        Ok((!live.contains(&a)).then_some(live))
    })
    .await?;
    assert!(live.contains(&b), "{live:?}");
    runtime.shutdown.cancel();
    runtime.finish(Duration::from_secs(1)).await;
    assert!(leases.get_opt(&b).await?.is_none());
    Ok(())
}

fn holder(name: &str, uid: &str) -> Holder {
    Holder {
        kind: "RedisBackup".into(),
        name: name.into(),
        uid: uid.into(),
    }
}

#[tokio::test]
async fn an_operation_excludes_others_until_released() -> Result<()> {
    let server = api_server().await?;
    let namespace = server.namespace("operation").await?;
    let leases = OperationLeases::new(&runtime(&server, "a", &namespace)?);
    let (ours, theirs) = (holder("one", "u1"), holder("two", "u2"));
    let again = holder("one", "created-again");
    let long = Duration::from_mins(1);
    let acquire = async |holder| leases.acquire(&namespace, "cache", holder, long).await;
    assert_eq!(leases.holder(&namespace, "cache").await?, None);
    assert_eq!(acquire(&ours).await?, Operation::Held);
    assert_eq!(acquire(&ours).await?, Operation::Held);
    assert_eq!(acquire(&theirs).await?, Operation::HeldBy(ours.clone()));
    assert_eq!(acquire(&again).await?, Operation::HeldBy(ours.clone()));
    leases.release(&namespace, "cache", &theirs).await?;
    assert_eq!(
        leases.holder(&namespace, "cache").await?,
        Some(ours.clone())
    );
    leases.release(&namespace, "cache", &ours).await?;
    assert_eq!(acquire(&theirs).await?, Operation::Held);
    assert_eq!(
        leases.holder(&namespace, "cache").await?,
        Some(theirs.clone())
    );
    leases.release(&namespace, "cache", &theirs).await?;
    let api: Api<Lease> = Api::namespaced(server.client.clone(), &namespace);
    let name = crds::operation_lease_name(&namespace, "cache");
    assert!(api.get_opt(&name).await?.is_none(), "{name} is left behind");
    Ok(())
}

#[tokio::test]
async fn renewing_just_now_writes_nothing() -> Result<()> {
    let server = api_server().await?;
    let namespace = server.namespace("fresh").await?;
    let leases = OperationLeases::new(&runtime(&server, "a", &namespace)?);
    let ours = holder("one", "u1");
    let api: Api<Lease> = Api::namespaced(server.client.clone(), &namespace);
    let long = Duration::from_mins(1);
    let name = crds::operation_lease_name(&namespace, "cache");
    let mut versions = Vec::new();
    for _ in 0..3 {
        leases.acquire(&namespace, "cache", &ours, long).await?;
        let lease = api.get(&name).await?;
        versions.push(lease.metadata.resource_version);
    }
    versions.dedup();
    assert_eq!(versions.len(), 1, "{versions:?}");
    // Another process of the same holder does not know when it was renewed, and renews.
    let other = OperationLeases::new(&runtime(&server, "b", &namespace)?);
    other.acquire(&namespace, "cache", &ours, long).await?;
    let lease = api.get(&name).await?;
    assert_ne!(lease.metadata.resource_version, versions[0]);
    Ok(())
}

#[tokio::test]
async fn a_forgotten_operation_expires_by_itself() -> Result<()> {
    let server = api_server().await?;
    let namespace = server.namespace("expiry").await?;
    let leases = OperationLeases::new(&runtime(&server, "a", &namespace)?);
    let observer = OperationLeases::new(&runtime(&server, "b", &namespace)?);
    let (gone, next) = (holder("gone", "u1"), holder("next", "u2"));
    let short = Duration::from_secs(1);
    leases.acquire(&namespace, "cache", &gone, short).await?;
    let begun = Instant::now();
    eventually("the lease expires", async || {
        let answer = observer.acquire(&namespace, "cache", &next, short).await?;
        Ok((answer == Operation::Held).then_some(()))
    })
    .await?;
    assert!(begun.elapsed() >= short, "{:?}", begun.elapsed());
    Ok(())
}

/// A cluster that was deleted while its slots moved, and created again: the lease of its predecessor does not keep its slots from moving.
/// That of anything else does, also under the same name.
#[tokio::test]
async fn a_cluster_created_again_takes_over_at_once() -> Result<()> {
    let server = api_server().await?;
    let namespace = server.namespace("again").await?;
    let before = OperationLeases::new(&runtime(&server, "a", &namespace)?);
    let after = OperationLeases::new(&runtime(&server, "b", &namespace)?);
    let cluster = |uid: &str| Holder {
        kind: "RedisCluster".into(),
        ..holder("cache", uid)
    };
    let long = Duration::from_mins(10);
    let (old, new) = (cluster("u1"), cluster("u2"));
    assert_eq!(
        before.acquire(&namespace, "cache", &old, long).await?,
        Operation::Held
    );
    // A backup waits, and so does a cluster of another name.
    for other in [
        holder("cache", "u2"),
        Holder {
            name: "other".into(),
            ..new.clone()
        },
    ] {
        assert_eq!(
            after.acquire(&namespace, "cache", &other, long).await?,
            Operation::HeldBy(old.clone())
        );
    }
    // Also in the process that has just renewed it for the old one.
    for leases in [&before, &after] {
        assert_eq!(
            leases.acquire(&namespace, "cache", &new, long).await?,
            Operation::Held
        );
        assert_eq!(leases.holder(&namespace, "cache").await?, Some(new.clone()));
    }
    // What still ended for the old one releases nothing.
    before.release(&namespace, "cache", &old).await?;
    assert_eq!(after.holder(&namespace, "cache").await?, Some(new));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_holders_race_and_one_wins() -> Result<()> {
    let server = api_server().await?;
    let namespace = server.namespace("race").await?;
    let long = Duration::from_mins(1);
    for round in 0..5 {
        let cluster = format!("cache{round}");
        let replica = runtime(&server, "a", &namespace)?;
        let races = (0..10).map(|racer| {
            let leases = OperationLeases::new(&replica);
            let (namespace, cluster) = (namespace.clone(), cluster.clone());
            tokio::spawn(async move {
                let holder = holder(&format!("r{racer}"), &racer.to_string());
                leases.acquire(&namespace, &cluster, &holder, long).await
            })
        });
        let mut held = 0;
        for race in futures::future::join_all(races).await {
            held += usize::from(race?? == Operation::Held);
        }
        assert_eq!(held, 1);
    }
    Ok(())
}

/// A list from before a replica joined says nothing about it: its work must not be taken from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_has_just_joined_counts_as_alive() -> Result<()> {
    let server = api_server().await?;
    let namespace = server.namespace("joining").await?;
    let (a, b) = (
        runtime(&server, "a", &namespace)?,
        runtime(&server, "b", &namespace)?,
    );
    let members = Members::new(&a);
    assert!(members.living([]).await?.is_empty());
    let mut membership = Membership::start(&b);
    assert!(membership.joined().await);
    let name = membership.name().to_owned();
    assert!(members.living([name.as_str()]).await?.contains(&name));
    b.finish(Duration::from_secs(1)).await;
    Ok(())
}

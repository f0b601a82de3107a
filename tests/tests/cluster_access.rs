//! Clients outside the network of the pods: the whole cluster-controller between a real API server and real servers. What a provider of load
//! balancers does, the test does.

use anyhow::{Result, ensure};
use crds::{CONDITION_ACCESS, RedisClusterStatus, access_service_name};
use k8s_openapi::api::core::v1::Service;
use redis::{FromRedisValue, cmd};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};
use tests::{
    cluster_stage::{ClusterStage, NODES, message, pod_name, reason},
    load_balancers::LoadBalancers,
    replica::ReplicaEnd,
    wait::eventually,
    writer::RoutedClient,
};

const KEYS: usize = 200;

fn is_announced(status: &RedisClusterStatus) -> bool {
    reason(status, CONDITION_ACCESS) == "Announced"
}

/// What a client has written, and found acknowledged.
#[derive(Default)]
struct Written(BTreeMap<String, String>);

impl Written {
    async fn write(&mut self, client: &mut RoutedClient, what: &str) -> Result<()> {
        for number in 0..KEYS {
            let (key, value) = (format!("{what}:{number}"), format!("{what} {number}"));
            let set = cmd("SET").arg(&key).arg(&value).clone();
            client.send(&key, &set).await?;
            self.0.insert(key, value);
        }
        Ok(())
    }

    async fn is_found_by(&self, client: &mut RoutedClient) -> Result<()> {
        for (key, value) in &self.0 {
            let found = client.send(key, cmd("GET").arg(key)).await?;
            let found = Option::<String>::from_redis_value(found)?;
            ensure!(found.as_ref() == Some(value), "{key} is {found:?}");
        }
        Ok(())
    }
}

/// Whether a client was sent to these addresses and to no other.
fn was_sent_to(client: &RoutedClient, allowed: &BTreeSet<SocketAddr>) -> Result<()> {
    let named = client.named();
    ensure!(
        !named.is_empty() && named.is_subset(allowed),
        "sent to {named:?}, not only to {allowed:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_outside_go_through_a_failover() -> Result<()> {
    let mut stage = ClusterStage::new().await?;
    let late = access_service_name(&pod_name(3));
    let balancers = LoadBalancers::start(&stage.server.client, &stage.namespace, &[&late]);
    let replica = stage.replica("a", None);
    let policy = json!({"type": "LoadBalancer", "annotations": {"pool": "outside"}});
    stage.create(json!({ "access": policy })).await?;
    stage.run_pods().await?;
    stage.fill().await?;

    // As long as one pod has no load balancer, no client is sent to one.
    let waits = |status: &RedisClusterStatus| reason(status, CONDITION_ACCESS) == "NoLoadBalancer";
    let status = stage.until("one is awaited", waits).await?;
    let words = message(&status, CONDITION_ACCESS);
    ensure!(words.contains(&late), "{words}");
    let inside: Vec<SocketAddr> = (0..stage.nodes.len())
        .map(|index| stage.nodes.server(index).address())
        .collect();
    let pods: BTreeSet<SocketAddr> = inside.iter().copied().collect();
    let mut written = Written::default();
    let mut early = RoutedClient::new(inside.clone());
    written.write(&mut early, "early").await?;
    was_sent_to(&early, &pods)?;

    balancers.provide_all();
    let status = stage.until("announced", is_announced).await?;
    let addresses = balancers.are(usize::from(NODES) + 1).await?;
    let access = status.access.unwrap_or_default();
    ensure!(access.redirects, "{access:?}");
    let first = addresses["shop"];
    ensure!(access.endpoint == Some(first.to_string()), "{access:?}");
    let of_pods: BTreeSet<SocketAddr> = addresses
        .iter()
        .filter_map(|(name, address)| (name != "shop").then_some(*address))
        .collect();

    // Clients inside and outside are sent to the load balancers, and go on when a primary is lost.
    let mut outside = RoutedClient::new(vec![first]);
    let mut within = RoutedClient::new(inside);
    written.write(&mut outside, "outside").await?;
    written.write(&mut within, "inside").await?;
    let victim = stage.nodes.primary_of(1).await?;
    stage.nodes.kill(victim).await?;
    stage.ended(victim, 0).await?;
    written.write(&mut outside, "failover").await?;
    written.write(&mut within, "failover inside").await?;
    for client in [&mut outside, &mut within] {
        written.is_found_by(client).await?;
        was_sent_to(client, &of_pods)?;
    }

    // The server that comes back is announced where it was.
    stage.nodes.restart(victim).await?;
    stage.started(victim, 1).await?;
    stage
        .until("announced again", |status| {
            is_announced(status) && i32::from(NODES) == status.ready_nodes
        })
        .await?;
    let mut fresh = RoutedClient::new(vec![first]);
    written.is_found_by(&mut fresh).await?;
    was_sent_to(&fresh, &of_pods)?;

    // Without the field no client is sent there any more, and the load balancers go.
    stage.change(json!({"access": null})).await?;
    balancers.are(0).await?;
    stage
        .until("nothing is left", |status| status.access.is_none())
        .await?;
    eventually("one Service for clients", async || {
        let service = stage.api::<Service>().get("shop").await?;
        let kind = service.spec.and_then(|spec| spec.type_);
        Ok(kind.as_deref() == Some("ClusterIP"))
    })
    .await?;
    let mut last = RoutedClient::new(pods.iter().copied().collect());
    written.is_found_by(&mut last).await?;
    was_sent_to(&last, &pods)?;
    replica.end(ReplicaEnd::Orderly)
}

//! The whole cluster-controller between a real API server and real servers. There is no kubelet: the test says what runs where.

use anyhow::{Context, Result, ensure};
use common::kubernetes::conditions::holds;
use crds::{LABEL_CLUSTER, RedisCluster, RedisClusterStatus};
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Node, Pod, Service},
        events::v1::Event,
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use std::time::{Duration, Instant};
use tests::{
    api_proxy::ApiProxy,
    cluster_stage::{
        ClusterStage, KEYS, LIMIT, NODES, message, pod_condition, pod_name, reason, serves,
    },
    redis::NODE_TIMEOUT,
    replica::ReplicaEnd,
    wait::{at_intervals, eventually, within},
};

/// Longer than a failover by hand takes, or fails.
const FAILOVER: Duration = Duration::from_secs(6);
/// How long the API server is away.
const OUTAGE: Duration = Duration::from_mins(1);

/// Waits for the end of a second.
async fn is_over(second: i64) -> Result<()> {
    let is_over = async || Ok(Timestamp::now().as_second() > second);
    within(LIMIT, "the end of the second", is_over).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_repaired_whatever_is_wrong_with_the_spec() -> Result<()> {
    let mut stage = ClusterStage::new().await?;
    let replica = stage.replica("a", None);
    let too_much = json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}});
    stage.create(json!({ "resources": too_much })).await?;
    let refused = stage
        .until("the refusal is reported", |status| {
            reason(status, "Ready") == "RefusedByServer"
        })
        .await?;
    let words = message(&refused, "Ready");
    ensure!(
        words.contains("StatefulSet") && words.contains("cpu limit"),
        "{words}"
    );
    ensure!(reason(&refused, "Progressing") == "RefusedByServer");
    // What is not refused is there.
    let maps = stage.api::<ConfigMap>();
    let selector = ListParams::default().labels(&format!("{LABEL_CLUSTER}=shop"));
    ensure!(maps.list(&selector).await?.items.len() == 1);
    stage.api::<Service>().get("shop").await?;
    let words = message(&refused, "Formed");
    ensure!(words.contains("the pod does not exist"), "{words}");

    stage.run_pods().await?;
    let formed = stage.until("formed nevertheless", serves).await?;
    ensure!(holds(&formed.conditions, "Formed"));
    ensure!(!holds(&formed.conditions, "Ready"));
    let budgets = stage.api::<PodDisruptionBudget>();
    eventually("a budget, now that there is data", async || {
        Ok(budgets.get_opt("shop").await?.is_some())
    })
    .await?;
    let slots = stage.fill().await?;

    stage.change(json!({"resources": null})).await?;
    let ready = |status: &RedisClusterStatus| holds(&status.conditions, "Ready");
    stage.until("ready once it is corrected", ready).await?;
    let sets = stage.api::<StatefulSet>();
    ensure!(sets.list(&ListParams::default()).await?.items.len() == 3);

    // A version that does not exist; and then a replica is lost.
    stage
        .change(json!({"image": null, "version": "nowhere"}))
        .await?;
    let wrong = |status: &RedisClusterStatus| reason(status, "Ready") == "VersionNotFound";
    stage.until("the mistake is reported", wrong).await?;
    let before = stage.nodes.ids().await?;
    let victim = stage.lose_a_replica().await?;
    stage.started(victim, 1).await?;
    let repaired = stage.repaired(victim).await?;
    ensure!(stage.nodes.ids().await?[victim] != before[victim]);
    ensure!(wrong(&repaired));
    let events = stage.api::<Event>().list(&ListParams::default()).await?;
    let reasons: Vec<String> = events
        .items
        .into_iter()
        .filter_map(|event| event.reason)
        .collect();
    for reason in ["RefusedByServer", "VersionNotFound"] {
        ensure!(reasons.iter().any(|one| one == reason), "{reasons:?}");
    }
    stage.nodes.unharmed(&slots, KEYS).await?;
    replica.end(ReplicaEnd::Orderly)
}

/// It comes and goes with its field, and says what the field says, also after another client has written into it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_policy_admits_whom_the_spec_names() -> Result<()> {
    let stage = ClusterStage::new().await?;
    let replica = stage.replica("a", None);
    let clients = |label: &str| json!({"networkPolicy": {"clients": [{"podSelector": {"matchLabels": {"app": label}}}]}});
    stage.create(clients("web")).await?;
    let policies = stage.api::<NetworkPolicy>();
    let admits = async |wanted: &[&str]| {
        eventually(&format!("a policy with {wanted:?}"), async || {
            let policy = policies.get_opt("shop").await?;
            let text = serde_json::to_string(&policy)?;
            Ok(wanted.iter().all(|word| text.contains(word)))
        })
        .await
    };
    admits(&["\"web\"", "\"redis-operator\"", "16379"]).await?;
    let edit = json!({"spec": {"ingress": [{}]}});
    let by_hand = PatchParams::default();
    policies
        .patch("shop", &by_hand, &Patch::Merge(edit))
        .await?;
    admits(&["\"web\"", "16379"]).await?;
    stage.change(clients("shop-window")).await?;
    admits(&["shop-window"]).await?;
    let nonsense = json!({"networkPolicy": {"clients": [{"ipBlock": {"cidr": "everywhere"}}]}});
    stage.change(nonsense).await?;
    let is_refused = |status: &RedisClusterStatus| reason(status, "Ready") == "RefusedByServer";
    let refused = stage.until("the refusal is reported", is_refused).await?;
    let words = message(&refused, "Ready");
    ensure!(
        words.contains("NetworkPolicy") && words.contains("everywhere"),
        "{words}"
    );
    stage.change(json!({"networkPolicy": null})).await?;
    eventually("no policy", async || {
        Ok(policies.get_opt("shop").await?.is_none())
    })
    .await?;
    replica.end(ReplicaEnd::Orderly)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_ready_while_its_node_serves() -> Result<()> {
    let mut stage = ClusterStage::new().await?;
    let replica = stage.replica("a", None);
    stage.create(json!({})).await?;
    stage.run_pods().await?;
    let slots = stage.fill().await?;
    for index in 0..stage.nodes.len() {
        stage.readiness(index, true, "Serving").await?;
    }
    let all = |status: &RedisClusterStatus| status.ready_nodes == i32::from(NODES);
    stage.until("all pods are counted", all).await?;

    // Its container ends, starts again, and listens before it is linked.
    let victim = stage.nodes.replica_of(1).await?;
    stage.nodes.kill(victim).await?;
    stage.ended(victim, 0).await?;
    let ended = stage.readiness(victim, false, "NotAnswering").await?;
    let since = |pod: &Pod| {
        let serving = pod_condition(pod, crds::CONDITION_SERVING);
        serving.and_then(|one| one.last_transition_time.clone())
    };
    // Times of conditions are in seconds.
    is_over(Timestamp::now().as_second()).await?;
    stage.nodes.wipe(victim)?;
    stage.nodes.restart(victim).await?;
    stage.started(victim, 1).await?;
    let again = stage.readiness(victim, true, "Serving").await?;
    ensure!(since(&again) > since(&ended), "{again:?}");

    // The spec is paused, and a replica loses its primary.
    stage.change(json!({"paused": true})).await?;
    let paused = |status: &RedisClusterStatus| status.phase.as_deref() == Some("Paused");
    stage.until("paused", paused).await?;
    let primary = stage.nodes.primary_of(1).await?;
    let on_primary = async |command| stage.nodes.server(primary).call::<()>(command).await;
    on_primary("ACL SETUSER default -psync -sync").await?;
    on_primary("CLIENT KILL TYPE replica").await?;
    stage.readiness(victim, false, "NotLinked").await?;
    on_primary("ACL SETUSER default +psync +sync").await?;
    stage.readiness(victim, true, "Serving").await?;
    stage.nodes.unharmed(&slots, KEYS).await?;
    replica.end(ReplicaEnd::Orderly)
}

/// The servers replace the primary themselves; the container that runs again is taken in once the API server is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_api_server_delays_repair_only() -> Result<()> {
    let mut stage = ClusterStage::new().await?;
    let mut proxy = ApiProxy::start()?;
    let replica = stage.replica("a", Some(&proxy));
    stage.create(json!({})).await?;
    stage.run_pods().await?;
    let slots = stage.fill().await?;
    proxy.leave();
    let back = tokio::time::Instant::now() + OUTAGE;
    let victim = stage.nodes.primary_of(0).await?;
    stage.nodes.kill(victim).await?;
    stage.ended(victim, 0).await?;
    stage.nodes.restart(victim).await?;
    stage.started(victim, 1).await?;
    eventually("the replica serves", async || {
        let primary = stage.nodes.primary_of(0).await;
        Ok(primary.is_ok_and(|primary| primary != victim))
    })
    .await?;
    stage.nodes.check(KEYS).await?;
    tokio::time::sleep_until(back).await;
    proxy.come_back()?;
    stage.repaired(victim).await?;
    stage.nodes.unharmed(&slots, KEYS).await?;
    replica.end(ReplicaEnd::Orderly)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overloaded_api_server_does_not_stop_formation_or_repair() -> Result<()> {
    let mut stage = ClusterStage::new().await?;
    let proxy = ApiProxy::start()?;
    proxy.overload();
    let replica = stage.replica("a", Some(&proxy));
    stage.create(json!({})).await?;
    stage.run_pods().await?;
    let slots = stage.fill().await?;
    let victim = stage.lose_a_replica().await?;
    stage.started(victim, 1).await?;
    stage.repaired(victim).await?;
    stage.nodes.unharmed(&slots, KEYS).await?;
    let refused = proxy.relieve();
    ensure!(refused > 20, "only {refused} requests were refused");
    replica.end(ReplicaEnd::Orderly)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_completes_what_a_killed_leader_began() -> Result<()> {
    let mut stage = ClusterStage::new().await?;
    let first = stage.replica("first", None);
    stage.leads("first").await?;
    let second = stage.replica("second", None);
    stage.create(json!({})).await?;
    stage.run_pods().await?;
    eventually("the formation has begun", async || {
        stage.any_was_sent("cluster|addslotsrange").await
    })
    .await?;
    first.end(ReplicaEnd::Kill)?;
    let status = stage.api::<RedisCluster>().get("shop").await?.status;
    let formed = status.is_some_and(|status| holds(&status.conditions, "Formed"));
    ensure!(!formed, "the leader was killed too late");
    let slots = stage.fill().await?;

    stage.leads("second").await?;
    let third = stage.replica("third", None);
    for index in 0..stage.nodes.len() {
        stage.nodes.nothing_destroyed().await?;
        let server = stage.nodes.server(index);
        server.call::<()>("CONFIG RESETSTAT").await?;
    }
    let victim = stage.lose_a_replica().await?;
    stage.started(victim, 1).await?;
    eventually("the repair has begun", async || {
        stage.any_was_sent("cluster|meet").await
    })
    .await?;
    second.end(ReplicaEnd::Kill)?;
    let status = stage.api::<RedisCluster>().get("shop").await?.status;
    let id = stage.nodes.ids().await?[victim].to_string();
    let mut replicas = status.iter().flat_map(|status| &status.shard_statuses);
    let linked = replicas.any(|shard| {
        shard
            .replicas
            .iter()
            .any(|one| one.node_id == id && one.linked)
    });
    ensure!(!linked, "the leader was killed too late");
    stage.repaired(victim).await?;
    stage.nodes.unharmed(&slots, KEYS).await?;
    third.end(ReplicaEnd::Orderly)
}

/// Nothing of a shard is left: its slots are served empty, and the status says so, also to a controller that begins later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_stays_in_the_status() -> Result<()> {
    let mut stage = ClusterStage::new().await?;
    let replica = stage.replica("a", None);
    stage.create(json!({})).await?;
    stage.run_pods().await?;
    stage.fill().await?;
    let is_ready = |status: &RedisClusterStatus| holds(&status.conditions, "Ready");
    let before = stage.until("ready", is_ready).await?;
    ensure!(before.last_loss.is_none(), "{:?}", before.last_loss);
    for index in [0, 1] {
        stage.nodes.kill(index).await?;
        stage.ended(index, 0).await?;
    }
    for index in [0, 1] {
        stage.nodes.wipe(index)?;
        stage.nodes.restart(index).await?;
        stage.started(index, 1).await?;
    }
    let after = stage.until("served again", |status| {
        is_ready(status) && status.last_loss.is_some()
    });
    let loss = after.await?.last_loss.context("no loss")?;
    ensure!(loss.message.contains("created again, empty"), "{loss:?}");
    let events: Api<Event> = stage.api();
    let named = async || {
        let events = events.list(&ListParams::default()).await?;
        let mut reasons = events.iter().filter_map(|event| event.reason.as_deref());
        Ok(reasons.any(|reason| reason == "SlotsRecreatedEmpty"))
    };
    within(LIMIT, "an Event says that it was done", named).await?;
    drop(replica);
    let successor = stage.replica("b", None);
    stage.leads("b").await?;
    let still = stage.until("ready", is_ready).await?.last_loss;
    ensure!(still.as_ref() == Some(&loss), "{still:?}");
    drop(successor);
    Ok(())
}

/// A single answer that is late is no outage: the look is left without consequences.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_late_once_changes_nothing() -> Result<()> {
    let stage = ClusterStage::new().await?;
    let replica = stage.replica("a", None);
    stage.create(json!({})).await?;
    stage.run_pods().await?;
    stage.fill().await?;
    let is_ready = |status: &RedisClusterStatus| holds(&status.conditions, "Ready");
    stage.until("ready", is_ready).await?;
    for round in 0..3 {
        let primary = stage.nodes.primary_of(0).await?;
        stage
            .nodes
            .server(primary)
            .call::<()>("CLIENT PAUSE 1300 ALL")
            .await?;
        // A change of the object is looked at once.
        let patch =
            Patch::Merge(json!({"metadata": {"annotations": {"round": round.to_string()}}}));
        let clusters = stage.api::<RedisCluster>();
        clusters
            .patch("shop", &PatchParams::default(), &patch)
            .await?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(4) {
            let cluster = clusters.get("shop").await?;
            let status = cluster.status.context("no status")?;
            ensure!(is_ready(&status), "{:?}", status.conditions);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    drop(replica);
    Ok(())
}

/// Ends the primaries of two shards, as of a moment ago by what Kubernetes says.
async fn lose_two_primaries(stage: &mut ClusterStage, since: &str) -> Result<[usize; 2]> {
    let victims = [
        stage.nodes.primary_of(0).await?,
        stage.nodes.primary_of(1).await?,
    ];
    for victim in victims {
        stage.nodes.kill(victim).await?;
        let unready = json!({"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": since}]});
        stage.reported(victim, unready).await?;
    }
    Ok(victims)
}

/// Two of three primaries are on a Kubernetes node that is cut off: their replicas wait until the node is deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_that_may_live_is_not_overruled() -> Result<()> {
    let mut stage = ClusterStage::new().await?;
    let now = Timestamp::now().to_string();
    let name = stage.create_kubernetes_node("Unknown", &now).await?;
    let replica = stage.replica("a", None);
    stage.create(json!({"recovery": {"after": "3s"}})).await?;
    stage.run_pods().await?;
    let slots = stage.fill().await?;
    let recorded = |status: &RedisClusterStatus| {
        let mut nodes = status.nodes.iter();
        status.nodes.len() == usize::from(NODES)
            && nodes.all(|node| node.pod_uid.is_some() && node.kubernetes_node.is_some())
    };
    stage
        .until("it is recorded where nodes run", recorded)
        .await?;
    let victims = lose_two_primaries(&mut stage, &now).await?;
    let fenced = |status: &RedisClusterStatus| reason(status, "Ready") == "PrimaryNotFenced";
    let waiting = stage.until("the doubt is named", fenced).await?;
    let words = message(&waiting, "Ready");
    ensure!(
        words.contains(&format!("its Kubernetes node {name} is not")),
        "{words}"
    );
    tokio::time::sleep(Duration::from_secs(5)).await;
    for (shard, victim) in victims.into_iter().enumerate() {
        let replica = (shard * 2 + (victim + 1) % 2, victim);
        let role = stage.nodes.server(replica.0).info("role").await?;
        ensure!(role == "slave", "{replica:?} is {role}");
    }
    let nodes: Api<Node> = Api::all(stage.server.client.clone());
    nodes.delete(&name, &DeleteParams::default()).await?;
    let serves_again = |status: &RedisClusterStatus| holds(&status.conditions, "Available");
    stage
        .until("the replicas have taken over", serves_again)
        .await?;
    stage.nodes.check(KEYS).await?;
    ensure!(stage.nodes.slot_map().await? == slots);
    replica.end(ReplicaEnd::Orderly)
}

/// The same, where primaries refuse writes without a replica: they cannot acknowledge any by now, so nothing is waited for but the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_that_refuses_writes_is_overruled() -> Result<()> {
    let mut stage = ClusterStage::new().await?;
    let now = Timestamp::now().to_string();
    let name = stage.create_kubernetes_node("Unknown", &now).await?;
    let replica = stage.replica("a", None);
    let timeout = NODE_TIMEOUT.as_millis().to_string();
    let config = json!({"cluster-node-timeout": timeout, "min-replicas-to-write": "1", "min-replicas-max-lag": "2"});
    stage
        .create(json!({"recovery": {"after": "3s"}, "config": config}))
        .await?;
    stage.run_pods().await?;
    stage.fill().await?;
    let recorded = |status: &RedisClusterStatus| {
        let mut nodes = status.nodes.iter();
        status.nodes.len() == usize::from(NODES) && nodes.all(|node| node.min_replicas.is_some())
    };
    stage
        .until("it is recorded when nodes refuse writes", recorded)
        .await?;
    let victims = lose_two_primaries(&mut stage, &now).await?;
    let has_taken_over = |status: &RedisClusterStatus| {
        let mut shards = victims.iter().zip(&status.shard_statuses);
        let others = shards.all(|(victim, shard)| {
            let primary = shard.primary.as_ref();
            primary.is_some_and(|primary| primary.pod != pod_name(*victim))
        });
        others && holds(&status.conditions, "Available")
    };
    stage
        .until("the replicas have taken over", has_taken_over)
        .await?;
    stage.nodes.check(KEYS).await?;
    let nodes: Api<Node> = Api::all(stage.server.client.clone());
    ensure!(nodes.get_opt(&name).await?.is_some());
    drop(replica);
    Ok(())
}

/// The pods of two of three primaries are deleted by force, with all that they had. Their replicas do not wait for two minutes: the kubelet
/// has started a later pod, so it has ended the earlier ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_deleted_by_force_is_replaced_early() -> Result<()> {
    let mut stage = ClusterStage::new().await?;
    let past = (Timestamp::now() - Duration::from_hours(1)).to_string();
    let name = stage.create_kubernetes_node("True", &past).await?;
    let replica = stage.replica("a", None);
    stage.create(json!({"recovery": {"after": "3s"}})).await?;
    stage.run_pods().await?;
    let slots = stage.fill().await?;
    let recorded = |status: &RedisClusterStatus| {
        let mut nodes = status.nodes.iter();
        status.nodes.len() == usize::from(NODES) && nodes.all(|node| node.grace_seconds == Some(1))
    };
    stage
        .until("it is recorded how long pods have to end", recorded)
        .await?;
    let pods = stage.api::<Pod>();
    let victims = [
        stage.nodes.primary_of(0).await?,
        stage.nodes.primary_of(1).await?,
    ];
    for (victim, place) in victims.into_iter().zip([None, Some(&name)]) {
        stage.nodes.kill(victim).await?;
        let by_force = DeleteParams::default().grace_period(0);
        pods.delete(&pod_name(victim), &by_force).await?;
        let created = Timestamp::now();
        // The first finds no place, and the second one ends as soon as it is started.
        let pod = json!({
            "metadata": {"name": pod_name(victim), "labels": {LABEL_CLUSTER: "shop"}},
            "spec": {"nodeName": place, "containers": [{"name": crds::CONTAINER, "image": "redis"}]},
        });
        let pod: Pod = serde_json::from_value(pod)?;
        pods.create(&PostParams::default(), &pod).await?;
        if place.is_some() {
            let run = json!({"exitCode": 1, "startedAt": Timestamp::now(), "finishedAt": Timestamp::now()});
            stage.reported(victim, json!({"containerStatuses": [
                {"name": crds::CONTAINER, "image": "redis", "imageID": "", "ready": false, "restartCount": 1,
                 "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": run}}]})).await?;
        }
        // What is created in the same second may be older than the end of the other one.
        is_over(created.as_second() + 1).await?;
    }
    let fenced = |status: &RedisClusterStatus| reason(status, "Ready") == "PrimaryNotFenced";
    stage.until("the doubt is named", fenced).await?;
    let began = Timestamp::now();
    let serves_again = |status: &RedisClusterStatus| holds(&status.conditions, "Available");
    stage
        .until("the replicas have taken over", serves_again)
        .await?;
    let took = Timestamp::now().duration_since(began).unsigned_abs();
    ensure!(took < Duration::from_mins(1), "took {took:?}");
    for (shard, victim) in victims.into_iter().enumerate() {
        ensure!(stage.nodes.primary_of(shard).await? != victim);
    }
    stage.nodes.check(KEYS).await?;
    ensure!(stage.nodes.slot_map().await? == slots);
    replica.end(ReplicaEnd::Orderly)
}

/// Two of three primaries are on one Kubernetes node. The other place of one is cordoned: it is handed over to once that has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn primaries_are_not_handed_over_to_cordoned_machines() -> Result<()> {
    let stage = ClusterStage::new().await?;
    let nodes: Api<Node> = Api::all(stage.server.client.clone());
    let [one, two, three] =
        ["one", "two", "three"].map(|name| format!("{name}-of-{}", stage.namespace));
    for (name, cordoned) in [(&one, false), (&two, true), (&three, false)] {
        let node = json!({"metadata": {"name": name}, "spec": {"unschedulable": cordoned}});
        let node: Node = serde_json::from_value(node)?;
        nodes.create(&PostParams::default(), &node).await?;
    }
    let replica = stage.replica("a", None);
    stage.create(json!({})).await?;
    let places = [&one, &one, &one, &two, &three, &three];
    stage.run_pods_on(|index| places[index].clone()).await?;
    let slots = stage.fill().await?;
    // A new cluster has a primary on each.
    let moved = 3;
    ensure!(stage.nodes.primary_of(1).await? == moved);
    let is_primary = async |index: usize| anyhow::Ok(stage.nodes.primary_of(1).await? == index);
    // A server gives it up after five seconds.
    let by_hand = async || {
        let done = is_primary(2).await?;
        if !done {
            let failover = "CLUSTER FAILOVER";
            stage.nodes.server(2).call::<()>(failover).await?;
        }
        Ok(done)
    };
    at_intervals(FAILOVER, LIMIT, "the failover by hand", by_hand).await?;
    let returned = within(Duration::from_secs(15), "a hand-over", async || {
        is_primary(moved).await
    });
    ensure!(returned.await.is_err(), "handed over to a cordoned machine");
    let uncordon = Patch::Merge(json!({"spec": {"unschedulable": null}}));
    let parameters = PatchParams::default();
    nodes.patch(&two, &parameters, &uncordon).await?;
    within(LIMIT, "the hand-over", async || is_primary(moved).await).await?;
    stage.until("healthy", serves).await?;
    ensure!(stage.nodes.slot_map().await? == slots);
    stage.nodes.check(KEYS).await?;
    let events = stage.api::<Event>();
    within(LIMIT, "the Event", async || {
        let events = events.list(&ListParams::default()).await?.items;
        let reasons = events.iter().filter_map(|one| one.reason.as_deref());
        Ok(reasons.filter(|one| *one == "PrimaryHandedOver").count() == 1)
    })
    .await?;
    replica.end(ReplicaEnd::Orderly)
}

/// A server was killed from outside several times: its pod is replaced instead of waiting for minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_kept_by_its_back_off_is_replaced() -> Result<()> {
    let mut stage = ClusterStage::new().await?;
    let replica = stage.replica("a", None);
    stage.create(json!({})).await?;
    stage.run_pods().await?;
    stage.fill().await?;
    stage.has_current_pods().await?;
    let victim = stage.nodes.replica_of(0).await?;
    stage.nodes.kill(victim).await?;
    let started = Timestamp::now();
    let ended = started + Duration::from_secs(20);
    let back_off = |exit_reason: &str| {
        json!({
            "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": started.to_string()}],
            "containerStatuses": [{"name": crds::CONTAINER, "image": "redis", "imageID": "", "ready": false, "restartCount": 5,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 2m40s"}},
                "lastState": {"terminated": {"exitCode": 137, "reason": exit_reason, "startedAt": started.to_string(),
                                             "finishedAt": ended.to_string()}}}],
        })
    };
    // One that is ended for its memory is not hurried: it is a minute old by the end of this.
    stage.reported(victim, back_off("OOMKilled")).await?;
    let pods = stage.api::<Pod>();
    let deleted = async || {
        let pod = pods.get(&pod_name(victim)).await?;
        anyhow::Ok(pod.metadata.deletion_timestamp.is_some())
    };
    tokio::time::sleep(Duration::from_secs(65)).await;
    ensure!(!deleted().await?, "a server without memory was hurried");
    stage.reported(victim, back_off("Error")).await?;
    within(LIMIT, "the pod is replaced", deleted).await?;
    let others = pods.list(&ListParams::default()).await?.items;
    let gone = others
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_some());
    ensure!(gone.count() == 1);
    let events = stage.api::<Event>();
    within(LIMIT, "the Event", async || {
        let events = events.list(&ListParams::default()).await?.items;
        Ok(events
            .iter()
            .any(|one| one.reason.as_deref() == Some("PodReplaced")))
    })
    .await?;
    replica.end(ReplicaEnd::Orderly)
}

/// Every pod has a Kubernetes node of its own, and all primaries are in one zone: all but one of them are handed over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_zone_keeps_the_majority_of_the_primaries() -> Result<()> {
    let stage = ClusterStage::new().await?;
    let machines: Api<Node> = Api::all(stage.server.client.clone());
    let name = |index: usize| format!("{}-{index}", stage.kubernetes_node());
    for index in 0..stage.nodes.len() {
        let zone = if index % 2 == 0 {
            "crowded".to_owned()
        } else {
            format!("zone-{index}")
        };
        let machine =
            json!({"metadata": {"name": name(index), "labels": {crds::LABEL_ZONE: zone}}});
        let machine: Node = serde_json::from_value(machine)?;
        machines.create(&PostParams::default(), &machine).await?;
    }
    let replica = stage.replica("a", None);
    stage.create(json!({})).await?;
    stage.run_pods_on(name).await?;
    let slots = stage.fill().await?;
    let events = stage.api::<Event>();
    within(LIMIT, "a primary is handed over", async || {
        let events = events.list(&ListParams::default()).await?.items;
        let why = "3 of 3 primaries are in zone crowded: ";
        Ok(events.iter().any(|event| {
            event.reason.as_deref() == Some("PrimaryHandedOver")
                && event.note.as_ref().is_some_and(|note| note.contains(why))
        }))
    })
    .await?;
    let one_is_left = |status: &RedisClusterStatus| {
        let primaries = status.shard_statuses.iter();
        let primaries = primaries.filter_map(|shard| shard.primary.as_ref());
        let crowded = primaries
            .filter(|primary| primary.pod.ends_with("-0"))
            .count();
        serves(status) && holds(&status.conditions, "Ready") && crowded == 1
    };
    stage
        .until("one primary is left there", one_is_left)
        .await?;
    stage.nodes.unharmed(&slots, KEYS).await?;
    for index in 0..stage.nodes.len() {
        machines
            .delete(&name(index), &DeleteParams::default())
            .await?;
    }
    replica.end(ReplicaEnd::Orderly)
}

//! A cluster that encrypts: the whole cluster-controller between a real API server, which has the certificates, and real servers, which start
//! with what their pods mount. What a kubelet does after a Secret has changed, the test does.

use anyhow::{Context, Result, ensure};
use common::{access, cluster::transport::Transport, kubernetes::conditions::holds};
use crds::{
    CLIENT_PORT, CONDITION_CERTIFICATES, Encryption, OwnUser, RedisCluster, RedisClusterStatus,
    TLS_PORT, VOLUME_CERTIFICATES, certificates_secret_name,
};
use k8s_openapi::{ByteString, api::core::v1::Secret, jiff::Timestamp};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};
use tests::{
    certificates::{Flaw, TestAuthority, TestCertificate},
    cluster_stage::{ClusterStage, KEYS, LIMIT, message, reason, serves},
    login::{self, ClientLogin},
    redis::PodCluster,
    replica::ReplicaEnd,
    wait::within,
    writer::Writer,
};

/// How long a certificate is valid that is to expire: a cluster forms within it.
const LIFE: Duration = Duration::from_secs(75);
/// A client waits no longer while servers are changed that run.
const PAUSE: Duration = Duration::from_secs(2);
/// The Secret that the spec names.
const GIVEN: &str = "shop-tls";

fn tls(client_auth: &str) -> Value {
    json!({"tls": {"secretName": GIVEN, "clientAuth": client_auth}})
}

/// Puts a certificate into the Secret of the spec, as cert-manager does.
async fn give(stage: &ClusterStage, one: &TestCertificate, by: &TestAuthority) -> Result<()> {
    let secret = one.secret(GIVEN, by);
    let api = stage.api::<Secret>();
    if api.get_opt(GIVEN).await?.is_some() {
        let patch = Patch::Merge(json!({"stringData": secret["stringData"]}));
        api.patch(GIVEN, &PatchParams::default(), &patch).await?;
        return Ok(());
    }
    let secret: Secret = serde_json::from_value(secret)?;
    api.create(&PostParams::default(), &secret).await?;
    Ok(())
}

/// What the pods mount, once it is there.
async fn mounted(stage: &ClusterStage) -> Result<BTreeMap<String, Vec<u8>>> {
    let name = certificates_secret_name("shop");
    let secret = within(LIMIT, "the Secret of the pods", async || {
        Ok(stage.api::<Secret>().get_opt(&name).await?)
    })
    .await?;
    let data = secret.data.unwrap_or_default().into_iter();
    Ok(data.map(|(key, ByteString(value))| (key, value)).collect())
}

async fn mount_everywhere(stage: &ClusterStage) -> Result<()> {
    let files = mounted(stage).await?;
    for index in 0..stage.nodes.len() {
        stage.nodes.server(index).mount_certificates(&files)?;
    }
    Ok(())
}

/// A cluster that serves, with this certificate. The test's own clients show it too.
async fn serving(
    client_auth: &str,
    one: &TestCertificate,
    by: &TestAuthority,
) -> Result<ClusterStage> {
    let mut stage = ClusterStage::new().await?;
    give(&stage, one, by).await?;
    stage.create(tls(client_auth)).await?;
    stage.nodes.kill_all().await?;
    let login = ClientLogin::encrypted(one.transport(&[one])?);
    stage.nodes.log_in(Some(&login));
    Ok(stage)
}

fn certificates_volume() -> Value {
    let name = certificates_secret_name("shop");
    json!([{"name": VOLUME_CERTIFICATES, "secret": {"secretName": name}}])
}

/// Starts every server with what its pod mounts, and creates the pods.
async fn start_pods(stage: &mut ClusterStage) -> Result<()> {
    mount_everywhere(stage).await?;
    let volumes = certificates_volume();
    let node = stage.kubernetes_node();
    for index in 0..stage.nodes.len() {
        stage.nodes.wipe(index)?;
        stage.nodes.restart(index).await?;
        stage.run_pod(index, &node, volumes.clone()).await?;
    }
    Ok(())
}

async fn run_pods(stage: &mut ClusterStage) -> Result<()> {
    start_pods(stage).await?;
    stage.until("formed, encrypted", is_encrypted).await?;
    stage.nodes.fill(KEYS).await?;
    stage.nodes.replicated().await
}

fn is_encrypted(status: &RedisClusterStatus) -> bool {
    serves(status) && holds(&status.conditions, CONDITION_CERTIFICATES)
}

fn serial(status: &RedisClusterStatus) -> Option<&str> {
    status.tls.as_ref().map(|tls| tls.serial.as_str())
}

fn address(stage: &ClusterStage, index: usize, port: u16) -> SocketAddr {
    SocketAddr::new(ip(stage, index), port)
}

fn ip(stage: &ClusterStage, index: usize) -> IpAddr {
    stage.nodes.server(index).address().ip()
}

/// Whether a client gets an answer.
async fn is_let_in(address: SocketAddr, transport: Transport) -> bool {
    let login = ClientLogin::encrypted(transport);
    let opened = login::connect(address, Some(&login), Duration::from_secs(5)).await;
    match opened {
        Ok(mut connection) => {
            let ping = redis::cmd("PING");
            let answer = ping.query_async::<String>(&mut connection).await;
            answer.is_ok()
        }
        Err(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_in_the_clear() -> Result<()> {
    let [authority, other] = [TestAuthority::new("a")?, TestAuthority::new("b")?];
    let certificate = authority.sign(0x0102, Flaw::None)?;
    let mut stage = serving("Required", &certificate, &authority).await?;
    let replica = stage.replica("a", None);
    run_pods(&mut stage).await?;
    let status = stage
        .until("the status has its certificate", |status| {
            serial(status).is_some()
        })
        .await?;
    ensure!(serial(&status) == Some("0102"), "{:?}", status.tls);
    let endpoint = status.endpoint.as_deref().unwrap_or_default();
    ensure!(endpoint.ends_with(":6380"), "{endpoint}");
    let primary = stage.nodes.primary_of(0).await?;
    let linked = stage.nodes.replica_of(0).await?;
    for index in [primary, linked] {
        let server = stage.nodes.server(index);
        for setting in ["tls-cluster", "tls-replication"] {
            let [_, value]: [String; 2] = server.call(&format!("CONFIG GET {setting}")).await?;
            ensure!(value == "yes", "{setting} {value}");
        }
        let plain = tokio::net::TcpStream::connect(address(&stage, index, CLIENT_PORT)).await;
        ensure!(plain.is_err(), "the port for clients in the clear is open");
    }
    let port = stage.nodes.server(linked).info("master_port").await?;
    ensure!(port == TLS_PORT.to_string(), "{port}");
    let at = address(&stage, primary, TLS_PORT);
    let own = |one: &TestCertificate| one.transport(&[&certificate]);
    ensure!(is_let_in(at, own(&certificate)?).await);
    let another = authority.sign(9, Flaw::None)?;
    ensure!(is_let_in(at, own(&another)?).await, "one of the authority");
    let foreign = other.sign(9, Flaw::None)?;
    ensure!(!is_let_in(at, own(&foreign)?).await, "another authority's");
    ensure!(
        !is_let_in(at, another.transport(&[&another])?).await,
        "a server that shows another one"
    );

    other_controllers_reach_it(&stage).await?;

    // A loss is repaired as ever.
    let victim = stage.lose_a_replica().await?;
    stage.repaired(victim).await?;
    stage.nodes.check(KEYS).await?;
    replica.end(ReplicaEnd::Orderly)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_change_while_a_writer_writes() -> Result<()> {
    let [authority, later] = [TestAuthority::new("a")?, TestAuthority::new("b")?];
    let before = authority.sign(1, Flaw::None)?;
    let after = later.sign(2, Flaw::None)?;
    let mut stage = serving("Off", &before, &authority).await?;
    let replica = stage.replica("a", None);
    run_pods(&mut stage).await?;
    let seeds: Vec<_> = (0..stage.nodes.len())
        .map(|index| address(&stage, index, TLS_PORT))
        .collect();
    let login = ClientLogin::encrypted(before.transport(&[&before, &after])?);
    stage.nodes.log_in(Some(&login));
    let writer = Writer::start_as(Some(login), seeds.clone(), 500);
    let links = stage.nodes.copies().await?;
    give(&stage, &after, &later).await?;
    // Another authority, too: trusted by all before any shows its certificate, and the earlier one until none does.
    within(
        LIMIT,
        "every server shows the new certificate",
        async || {
            mount_everywhere(&stage).await?;
            let cluster = stage.api::<RedisCluster>().get("shop").await?;
            let status = cluster.status.context("no status")?;
            Ok(serial(&status) == Some("02") && is_encrypted(&status))
        },
    )
    .await?;
    within(LIMIT, "nothing of before is left", async || {
        let files = mounted(&stage).await?;
        Ok(files.len() == 11)
    })
    .await?;
    for index in 0..stage.nodes.len() {
        let at = address(&stage, index, TLS_PORT);
        ensure!(is_let_in(at, after.transport(&[&after])?).await, "{at}");
        ensure!(!is_let_in(at, before.transport(&[&before])?).await, "{at}");
    }
    ensure!(stage.nodes.copies().await? == links, "a link was broken");
    // A client without a certificate of the new authority is let in: none is asked for.
    let report = writer.end(seeds).await?;
    report.is_right(100)?;
    ensure!(report.refusals.is_empty(), "{:?}", report.refusals);
    let secret = stage
        .api::<Secret>()
        .get(&certificates_secret_name("shop"))
        .await?;
    let cluster = stage.api::<RedisCluster>().get("shop").await?;
    let owner = secret.owner_references().first();
    ensure!(owner.map(|owner| owner.uid.clone()) == cluster.uid());
    replica.end(ReplicaEnd::Orderly)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_changes_nothing() -> Result<()> {
    let [authority, other] = [TestAuthority::new("a")?, TestAuthority::new("b")?];
    let certificate = authority.sign(7, Flaw::None)?;
    let expired = authority.sign(8, Flaw::Expired)?;
    // A new cluster is not begun with it.
    let mut stage = serving("Optional", &expired, &authority).await?;
    let replica = stage.replica("a", None);
    let found = stage
        .until("it is named", |status| {
            reason(status, "Ready") == "SecretExpired"
        })
        .await?;
    let words = message(&found, "Ready");
    ensure!(words.contains(GIVEN) && words.contains("2021"), "{words}");
    give(&stage, &certificate, &authority).await?;
    stage.nodes.log_in(Some(&ClientLogin::encrypted(
        certificate.transport(&[&certificate])?,
    )));
    run_pods(&mut stage).await?;

    let of_other_key = TestCertificate {
        key: expired.key.clone(),
        ..certificate.clone()
    };
    let only_for_servers = authority.sign(9, Flaw::OnlyForServers)?;
    for (wrong, by, part) in [
        (&expired, &authority, "expired"),
        (&of_other_key, &authority, "not the key"),
        (&certificate, &other, "none of the authorities"),
        (&only_for_servers, &authority, "client auth"),
    ] {
        give(&stage, wrong, by).await?;
        let named =
            |status: &RedisClusterStatus| message(status, CONDITION_CERTIFICATES).contains(part);
        let found = stage.until(part, named).await?;
        ensure!(serves(&found) && serial(&found) == Some("07"), "{part}");
    }
    for index in 0..stage.nodes.len() {
        let at = address(&stage, index, TLS_PORT);
        ensure!(
            is_let_in(at, certificate.transport(&[&certificate])?).await,
            "{at}"
        );
    }
    give(&stage, &certificate, &authority).await?;
    stage.until("it is as before", is_encrypted).await?;
    replica.end(ReplicaEnd::Orderly)
}

/// Makes a pod again, with its server, as its template has it now.
async fn replace(stage: &mut ClusterStage, index: usize) -> Result<()> {
    let template = stage.template(index).await?;
    if !cluster_controller::pods::has_secret(&template, VOLUME_CERTIFICATES) {
        let unmount = |nodes: &mut PodCluster| nodes.server(index).unmount_certificates();
        return stage.replace(index, json!([]), unmount).await;
    }
    let files = mounted(stage).await?;
    let mount = |nodes: &mut PodCluster| nodes.server(index).mount_certificates(&files);
    stage.replace(index, certificates_volume(), mount).await
}

async fn replace_all(stage: &mut ClusterStage) -> Result<()> {
    for index in 0..stage.nodes.len() {
        replace(stage, index).await?;
    }
    Ok(())
}

fn encryption(status: &RedisClusterStatus) -> Encryption {
    let tls = status.tls.as_ref();
    tls.map_or(Encryption::Off, |tls| tls.encryption)
}

/// Ends a writer to which pods were replaced: clients are refused while one is down.
async fn written(writer: Writer, seeds: &[SocketAddr]) -> Result<()> {
    let report = writer.end(seeds.to_vec()).await?;
    report.is_right(100)?;
    report.only_of_replacements()
}

/// Ends a writer that may have noticed nothing but attempts of this kind that failed.
async fn unnoticed(writer: Writer, seeds: &[SocketAddr], passing: Option<&str>) -> Result<()> {
    let mut report = writer.end(seeds.to_vec()).await?;
    passing.map(|word| report.refusals.remove(word));
    report.is_right(10)?;
    ensure!(report.refusals.is_empty(), "{:?}", report.refusals);
    ensure!(report.longest_gap < PAUSE, "{:?}", report.longest_gap);
    Ok(())
}

/// How the other controllers reach the cluster.
async fn other_controllers_reach_it(stage: &ClusterStage) -> Result<()> {
    let client = &stage.server.client;
    let nodes = access::nodes(client, &stage.namespace, "shop", OwnUser::Backup).await?;
    let seeds = nodes.seeds(None)?;
    for endpoint in seeds.endpoints(Duration::from_secs(5)) {
        let node = common::cluster::node::NodeClient::connect(&endpoint).await?;
        node.id().await?;
    }
    Ok(())
}

/// How clients reach the servers of a cluster that comes to encrypt.
struct Ways {
    plain: Vec<SocketAddr>,
    encrypted: Vec<SocketAddr>,
    login: ClientLogin,
}

fn allowing(plaintext: bool) -> Value {
    json!({"tls": {"secretName": GIVEN, "clientAuth": "Required", "allowPlaintext": plaintext}})
}

/// Whether servers encrypt so far, each with its certificate.
fn is_at(wanted: Encryption) -> impl Fn(&RedisClusterStatus) -> bool {
    move |status| encryption(status) == wanted && is_encrypted(status)
}

async fn an_expired_one_is_named(
    stage: &mut ClusterStage,
    authority: &TestAuthority,
) -> Result<()> {
    let expired = authority.sign(6, Flaw::Expired)?;
    give(stage, &expired, authority).await?;
    stage.change(allowing(true)).await?;
    let named = |status: &RedisClusterStatus| reason(status, "Ready") == "SecretExpired";
    stage.until("what cannot be used is named", named).await?;
    let victim = stage.lose_a_replica().await?;
    stage.repaired(victim).await?;
    stage.started(victim, 1).await?;
    other_controllers_reach_it(stage).await?;
    Ok(())
}

async fn servers_come_to_encrypt(stage: &mut ClusterStage, ways: &Ways) -> Result<()> {
    // A server tries it before pods are replaced.
    let prepared = |status: &RedisClusterStatus| encryption(status) == Encryption::Prepared;
    stage.until("the certificate is taken", prepared).await?;
    stage.tried(0, "").await?;
    stage.templates_mount(VOLUME_CERTIFICATES, true).await?;
    for index in 0..stage.nodes.len() - 1 {
        replace(stage, index).await?;
    }
    stage.nodes.encrypt(false).await?;
    other_controllers_reach_it(stage).await?;
    let (last, since) = (stage.nodes.len() - 1, Timestamp::now());
    replace(stage, last).await?;
    let status = stage
        .until("servers encrypt among each other", is_at(Encryption::Both))
        .await?;
    let endpoint = status.endpoint.unwrap_or_default();
    ensure!(endpoint.ends_with(":6380"), "{endpoint}");
    // Clients that encrypt can be moved from now on.
    stage.nodes.log_in(Some(&ways.login));
    for index in 0..stage.nodes.len() {
        let table: String = stage.nodes.server(index).call("CLUSTER NODES").await?;
        let plain = format!(":{CLIENT_PORT}@");
        ensure!(!table.contains(&plain), "server {index}: {table}");
    }
    stage.nodes.log_in(None);
    stage.nodes.encrypt(true).await?;
    stage.nodes.links_are_new(since).await?;
    other_controllers_reach_it(stage).await?;
    Ok(())
}

async fn plaintext_is_closed_and_let_in(stage: &mut ClusterStage, ways: &Ways) -> Result<()> {
    let writer = Writer::start_as(Some(ways.login.clone()), ways.encrypted.clone(), 500);
    let mut open = login::connect(ways.plain[0], None, Duration::from_secs(5)).await?;
    redis::cmd("PING").exec_async(&mut open).await?;

    stage.change(allowing(false)).await?;
    let only = is_at(Encryption::Only);
    stage.until("nothing is sent in the clear", &only).await?;
    ensure!(redis::cmd("PING").exec_async(&mut open).await.is_err());
    for address in &ways.plain {
        let refused = tokio::net::TcpStream::connect(address).await;
        ensure!(refused.is_err(), "{address} is open");
    }
    unnoticed(writer, &ways.encrypted, None).await?;
    stage.nodes.log_in(Some(&ways.login));
    // Its pod has still mounted the first step.
    let behind = stage.nodes.replica_of(1).await?;
    stage.nodes.kill(behind).await?;
    stage.ended(behind, 0).await?;
    stage.nodes.restart(behind).await?;
    stage.started(behind, 1).await?;
    let settled = |status: &RedisClusterStatus| only(status) && status.ready_nodes == 6;
    stage.until("a stale mount is corrected", settled).await?;
    stage.nodes.encrypt(true).await?;
    let refused = tokio::net::TcpStream::connect(ways.plain[behind]).await;
    ensure!(refused.is_err(), "the server with the stale mount is open");
    let primary = stage.nodes.primary_of(0).await?;
    stage.change(allowing(true)).await?;
    stage
        .until("clients are let in in the clear", is_at(Encryption::Both))
        .await?;
    ensure!(is_let_in(address(stage, primary, CLIENT_PORT), Transport::Plain).await);
    Ok(())
}

async fn servers_cease_to_encrypt(stage: &mut ClusterStage, ways: &Ways) -> Result<()> {
    // Clients have been moved back.
    let writer = Writer::start(ways.plain.clone(), 500);
    stage.change(json!({"tls": null})).await?;
    let what = "servers stop to encrypt once every pod has mounted a later step";
    within(LIMIT, what, async || {
        mount_everywhere(stage).await?;
        let cluster = stage.api::<RedisCluster>().get("shop").await?;
        let status = cluster.status.context("no status")?;
        Ok(encryption(&status) < Encryption::Both && serves(&status))
    })
    .await?;
    stage.nodes.log_in(None);
    stage.templates_mount(VOLUME_CERTIFICATES, false).await?;
    stage.nodes.encrypt(false).await?;
    // Redirects lead to the encrypted port until servers have heard of each other's ports.
    unnoticed(writer, &ways.plain, Some("connection")).await?;
    let writer = Writer::start(ways.plain.clone(), 500);
    replace_all(stage).await?;
    let off = |status: &RedisClusterStatus| status.tls.is_none() && serves(status);
    stage.until("nothing is encrypted", off).await?;
    written(writer, &ways.plain).await?;
    other_controllers_reach_it(stage).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_cluster_comes_to_encrypt_and_back() -> Result<()> {
    let authority = TestAuthority::new("a")?;
    let certificate = authority.sign(5, Flaw::None)?;
    let mut stage = ClusterStage::new().await?;
    let replica = stage.replica("a", None);
    stage.create(json!({})).await?;
    stage.run_pods().await?;
    stage.fill().await?;
    let at = |port| {
        let servers = 0..stage.nodes.len();
        servers.map(|index| address(&stage, index, port)).collect()
    };
    let ways = Ways {
        plain: at(CLIENT_PORT),
        encrypted: at(TLS_PORT),
        login: ClientLogin::encrypted(certificate.transport(&[&certificate])?),
    };
    let writer = Writer::start(ways.plain.clone(), 500);

    // A certificate that cannot be used keeps nothing from being repaired.
    an_expired_one_is_named(&mut stage, &authority).await?;
    give(&stage, &certificate, &authority).await?;
    servers_come_to_encrypt(&mut stage, &ways).await?;
    // Clients do as they like: each is sent on to ports of its kind.
    written(writer, &ways.plain).await?;
    plaintext_is_closed_and_let_in(&mut stage, &ways).await?;
    servers_cease_to_encrypt(&mut stage, &ways).await?;
    within(
        LIMIT,
        "the Secret with the certificates is gone",
        async || {
            let name = certificates_secret_name("shop");
            Ok(stage.api::<Secret>().get_opt(&name).await?.is_none())
        },
    )
    .await?;
    stage.nodes.nothing_destroyed().await?;
    replica.end(ReplicaEnd::Orderly)
}

/// Servers that check the certificates of clients refuse that of the controllers too, and each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_is_replaced() -> Result<()> {
    let authority = TestAuthority::new("a")?;
    let short = authority.sign(3, Flaw::Expires(LIFE))?;
    let mut stage = serving("Required", &short, &authority).await?;
    let replica = stage.replica("a", None);
    let begun = Instant::now();
    let warned =
        |status: &RedisClusterStatus| reason(status, CONDITION_CERTIFICATES) == "ExpiresSoon";
    start_pods(&mut stage).await?;
    stage
        .until("formed", |status| serves(status) && warned(status))
        .await?;
    stage.nodes.fill(KEYS).await?;
    stage.nodes.replicated().await?;
    ensure!(begun.elapsed() < LIFE, "too slow to see it expire");
    let expired = |status: &RedisClusterStatus| reason(status, CONDITION_CERTIFICATES) == "Expired";
    stage.until("it has expired", expired).await?;
    // No connection of before is left.
    let at = address(&stage, 0, TLS_PORT);
    let own = short.transport(&[&short])?;
    within(LIMIT, "the servers refuse it", async || {
        Ok(!is_let_in(at, own.clone()).await)
    })
    .await?;
    let after = authority.sign(4, Flaw::None)?;
    give(&stage, &after, &authority).await?;
    stage.nodes.log_in(Some(&ClientLogin::encrypted(
        after.transport(&[&short, &after])?,
    )));
    within(LIMIT, "every server presents another one", async || {
        mount_everywhere(&stage).await?;
        let cluster = stage.api::<RedisCluster>().get("shop").await?;
        let status = cluster.status.context("no status")?;
        Ok(serial(&status) == Some("04") && is_encrypted(&status))
    })
    .await?;
    stage.nodes.check(KEYS).await?;
    replica.end(ReplicaEnd::Orderly)
}

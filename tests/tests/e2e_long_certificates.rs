//! A cluster that encrypts, whose certificates change while a client writes to it, and which is backed up and restored.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::{
    certificates::{Flaw, TestAuthority, TestCertificate},
    kubectl::Kubectl,
    scenario::{self, Area, FilledCluster, ScenarioRow, Volumes, Writer, Writes, on_every_server},
};

const KEYS: u64 = 20_000;
/// A Secret is seen within half a minute, and a kubelet needs up to two minutes for what a pod mounts, three times.
const ROTATION: Duration = Duration::from_mins(10);
/// All pods are replaced, one after the other, and mounts are waited for.
const ROLLED: Duration = Duration::from_mins(8);
/// The Secret that the specs name.
const GIVEN: &str = "internal-tls";

async fn give(kubectl: &Kubectl, one: &TestCertificate, by: &TestAuthority) -> Result<()> {
    let mut secret = one.secret(GIVEN, by);
    secret["apiVersion"] = "v1".into();
    secret["kind"] = "Secret".into();
    kubectl.apply(&secret.to_string()).await.map(drop)
}

/// Clients need no password, and have to show a certificate.
fn encrypted(mut spec: Value) -> Value {
    spec["tls"] = json!({"secretName": GIVEN, "clientAuth": "Required"});
    spec
}

async fn shows(kubectl: &Kubectl, serial: &str) -> Result<Duration> {
    let what = format!("every server shows the certificate {serial}");
    let reported = async || {
        let shop = kubectl.get("rediscluster shop").await?;
        Ok(shop["status"]["tls"]["serial"] == serial)
    };
    let took = kubectl.until(&what, ROTATION, reported).await?;
    scenario::condition(kubectl, "shop", ("CertificatesValid", "True", "Valid")).await?;
    Ok(took)
}

#[tokio::test]
async fn certificates_change_under_a_writer() -> Result<()> {
    scenario::run("e2e-certificates", async |kubectl| {
        let [authority, later] = [TestAuthority::new("a")?, TestAuthority::new("b")?];
        give(kubectl, &authority.sign(1, Flaw::None)?, &authority).await?;
        let volumes = Volumes::DeletedWithCluster;
        let mut shop = scenario::cluster_object(kubectl, "shop", 3, volumes);
        shop["spec"] = encrypted(shop["spec"].take());
        kubectl.apply(&shop.to_string()).await?;
        let shop = FilledCluster::fill(kubectl, "shop", 6, KEYS).await?;
        shows(kubectl, "01").await?;
        let plain = "redis-cli -p 6379 ping 2>&1; command redis-cli ping 2>&1; true";
        for (pod, answer) in on_every_server(kubectl, "shop", plain).await? {
            ensure!(!answer.contains("PONG"), "{pod}: {answer}");
        }
        let before = scenario::links(kubectl, "shop").await?;
        let writer = Writer::start(kubectl, "shop").await?;
        let begun = Instant::now();
        give(kubectl, &later.sign(2, Flaw::None)?, &later).await?;
        shows(kubectl, "02").await?;
        let took = begun.elapsed();
        let after = scenario::links(kubectl, "shop").await?;
        give(kubectl, &later.sign(3, Flaw::Expired)?, &later).await?;
        let refused = ("CertificatesValid", "False", "SecretExpired");
        let words = scenario::condition(kubectl, "shop", refused).await?;
        ensure!(words.contains(GIVEN), "{words}");
        give(kubectl, &later.sign(2, Flaw::None)?, &later).await?;
        let seen = writer.finish().await?;
        ensure!(after == before, "a link was broken: {before:?} {after:?}");
        ensure!(seen.refused() == 0, "{seen}");
        shop.is_intact("certificates-changed").await?;
        let done = "certificate and authority of an encrypted cluster are replaced by editing the Secret; an expired one changes nothing";
        ScenarioRow::new(Area::Users, "certificates", done)
            .healthy_after(took)
            .lost(0)
            .writes(&seen)
            .note("until every server shows the new one; no link broken")
            .record()?;

        kubectl.apply(&scenario::backup("now", "shop").to_string()).await?;
        scenario::ended(kubectl, "redisbackup", "now").await?;
        let copy = encrypted(scenario::cluster_spec(4, 0));
        let target = json!({"newCluster": {"name": "copy", "spec": copy}});
        let restore = scenario::restore("copy", &json!({"backupRef": {"name": "now"}}), &target);
        kubectl.apply(&restore.to_string()).await?;
        scenario::ended(kubectl, "redisrestore", "copy").await?;
        let keys = KEYS.to_string();
        let verify = ["verify", "copy:6379", "--keys", &keys];
        scenario::workload(kubectl, "verify-copy", &verify).await?;

        // Every pod at once: the scripts, the bus and the replicas find each other again.
        let recovered = shop.lose_all_pods(false).await?;
        shop.is_intact("all-pods-lost").await?;
        let done = "all pods of an encrypted cluster with volumes are deleted";
        ScenarioRow::new(Area::Pods, "encrypted", done)
            .healthy_after(recovered)
            .lost(0)
            .record()
    })
    .await
}

async fn encrypts(kubectl: &Kubectl, wanted: &str, limit: Duration) -> Result<Duration> {
    let what = format!("status.tls.encryption is {wanted}");
    let reported = async || {
        let shop = kubectl.get("rediscluster shop").await?;
        let encryption = shop["status"]["tls"]["encryption"].as_str();
        Ok(encryption.unwrap_or("Off") == wanted)
    };
    kubectl.until(&what, limit, reported).await
}

fn tls(allow_plaintext: bool) -> Value {
    json!({"tls": {"secretName": GIVEN, "clientAuth": "Required", "allowPlaintext": allow_plaintext}})
}

/// A client of a pod that is replaced loses its connection, and is refused nothing.
fn only_connections_of_pods(seen: &Writes) -> Result<()> {
    let words: Vec<&String> = seen.refusals.keys().collect();
    ensure!(words.iter().all(|word| *word == "connection"), "{seen}");
    Ok(())
}

#[tokio::test]
async fn encryption_comes_and_goes_under_a_writer() -> Result<()> {
    scenario::run("e2e-encryption", async |kubectl| {
        let authority = TestAuthority::new("a")?;
        give(kubectl, &authority.sign(1, Flaw::None)?, &authority).await?;
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, KEYS).await?;
        let writer = Writer::start(kubectl, "shop").await?;
        let begun = Instant::now();
        scenario::spec(kubectl, "shop", tls(true)).await?;
        encrypts(kubectl, "Both", ROLLED).await?;
        scenario::condition(kubectl, "shop", ("CertificatesValid", "True", "Valid")).await?;
        let took = begun.elapsed();
        let seen = writer.finish().await?;
        only_connections_of_pods(&seen)?;
        let done = "a cluster in the clear comes to encrypt, clients as they like";
        ScenarioRow::new(Area::Users, "encryption-on", done)
            .healthy_after(took)
            .lost(0)
            .writes(&seen)
            .note("all pods are replaced for it; writer in the clear")
            .record()?;

        scenario::spec(kubectl, "shop", tls(false)).await?;
        encrypts(kubectl, "Only", ROLLED).await?;
        scenario::condition(kubectl, "shop", ("CertificatesValid", "True", "Valid")).await?;
        let plain = "command redis-cli ping 2>&1; true";
        for (pod, answer) in on_every_server(kubectl, "shop", plain).await? {
            ensure!(!answer.contains("PONG"), "{pod}: {answer}");
        }
        shop.is_intact("encrypted").await?;
        let recovered = shop.lose_all_pods(false).await?;
        ensure!(recovered < ROLLED, "{recovered:?}");

        scenario::spec(kubectl, "shop", tls(true)).await?;
        encrypts(kubectl, "Both", ROLLED).await?;
        scenario::spec(kubectl, "shop", json!({"tls": null})).await?;
        encrypts(kubectl, "Off", ROLLED).await?;
        let writer = Writer::start(kubectl, "shop").await?;
        kubectl
            .until("no pod has certificates", ROLLED, async || {
                let left = kubectl.list("secrets").await?;
                let name = |secret: &Value| secret["metadata"]["name"] == "shop-certificates";
                Ok(!left.iter().any(name))
            })
            .await?;
        let seen = writer.finish().await?;
        only_connections_of_pods(&seen)?;
        shop.is_intact("in-the-clear").await
    })
    .await
}

//! The alerts of deploy/kustomize/monitoring: promtool of Debian 13 reads them, and they fire for what they are there for and for nothing else.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};
use tests::{
    packages::{DebianRelease, debian_program},
    rules::{ALERTS, groups, metrics},
};

/// A folder with the groups as Prometheus reads them.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("rules-{}-{name}", std::process::id()));
        fs::create_dir_all(&path)?;
        fs::write(path.join("rules.yaml"), groups()?)?;
        Ok(Self(path))
    }

    /// What promtool says of a file in it.
    fn promtool(&self, command: &str, file: &str) -> Result<(bool, String)> {
        let program = debian_program(DebianRelease::Trixie, "promtool", "promtool")?;
        let mut run = Command::new(program);
        run.args([command, "rules", file]).current_dir(&self.0);
        let run = run.output()?;
        let said = [run.stdout, run.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        Ok((run.status.success(), said))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn prometheus_takes_the_rules() -> Result<()> {
    let folder = Folder::new("check")?;
    let (taken, said) = folder.promtool("check", "rules.yaml")?;
    ensure!(taken && said.contains("SUCCESS"), "{said}");
    Ok(())
}

#[test]
fn the_controllers_have_every_metric_of_the_rules() -> Result<()> {
    let page = include_str!("../../common/METRICS.md");
    let names = metrics("redis_operator_")?;
    ensure!(names.len() > 6, "{names:?}");
    for name in names {
        ensure!(
            page.contains(&format!("| `{name}` |")),
            "no controller has {name}"
        );
    }
    Ok(())
}

/// Names of the alerts in the file.
fn alerts() -> BTreeSet<String> {
    let lines = ALERTS.lines();
    let names = lines.filter_map(|line| line.trim().strip_prefix("- alert: "));
    names.map(ToOwned::to_owned).collect()
}

const CLUSTER: &str = r#"{namespace="web",name="shop"}"#;
const SERVER: &str = r#"{namespace="web",cluster="shop",shard="0",pod="shop-0-1"}"#;
const LINK: &str =
    r#"{namespace="web",cluster="shop",shard="0",pod="shop-0-1",master_host="10.0.0.7"}"#;
const POLICY: &str = r#"{namespace="web",pod="shop-0-1",maxmemory_policy="noeviction"}"#;
const EVICTS: &str = r#"{namespace="web",pod="shop-0-1",maxmemory_policy="allkeys-lru"}"#;
const RECONCILES: &str =
    r#"{controller="cluster-controller",kind="RedisCluster",outcome="failed",reason="ApiTimeout"}"#;
const BACKUPS: &str = r#"{controller="backup-controller",outcome="failed",reason="StorageDenied"}"#;

/// An hour of series, all that is well in it, and over them those that are given.
fn hour(over: &[Series]) -> Value {
    let leading = |name: &str| format!(r#"redis_operator_leading{{controller="{name}"}}"#);
    let mut series = vec![
        (leading("cluster-controller"), "1x60"),
        (leading("backup-controller"), "1x60"),
        (leading("restore-controller"), "1x60"),
        (format!("redis_operator_cluster_ready{CLUSTER}"), "1x60"),
        (
            format!("redis_operator_cluster_slots_ok{CLUSTER}"),
            "16384x60",
        ),
        (
            format!("redis_operator_cluster_hibernates{CLUSTER}"),
            "0x60",
        ),
        (
            format!("redis_operator_cluster_certificate_expiry_timestamp_seconds{CLUSTER}"),
            "2592000x60",
        ),
        (format!("redis_up{SERVER}"), "1x60"),
        (format!("redis_master_link_up{LINK}"), "1x60"),
        (format!("redis_memory_used_bytes{SERVER}"), "95x60"),
        (format!("redis_memory_max_bytes{SERVER}"), "100x60"),
        (format!("redis_instance_info{EVICTS}"), "1x60"),
        (
            format!("redis_operator_reconciles_total{RECONCILES}"),
            "7x60",
        ),
    ];
    series.retain(|(name, _)| !over.iter().any(|(other, _)| other == name));
    series.extend(over.iter().cloned());
    let series: Vec<Value> = series
        .into_iter()
        .map(|(series, values)| json!({"series": series, "values": values}))
        .collect();
    json!(series)
}

/// A series and its values, minute by minute, as promtool writes them.
type Series = (String, &'static str);

/// What is wrong in an hour, and the alert that says so with these labels.
fn cases() -> Vec<(&'static str, Vec<Series>, Value)> {
    let of = |metric: &str, labels: &str| format!("{metric}{labels}");
    let cluster = json!({"namespace": "web", "name": "shop"});
    let server = json!({"namespace": "web", "cluster": "shop", "shard": "0", "pod": "shop-0-1"});
    let ready = "redis_operator_cluster_ready";
    let slots = "redis_operator_cluster_slots_ok";
    let expiry = "redis_operator_cluster_certificate_expiry_timestamp_seconds";
    let leads = r#"redis_operator_leading{controller="cluster-controller"}"#;
    let failed = "redis_operator_reconciles_total";
    let backups = "redis_operator_backups_total";
    vec![
        (
            "RedisClusterNotReady",
            vec![(of(ready, CLUSTER), "0x60")],
            cluster.clone(),
        ),
        (
            "RedisClusterSlotsNotServed",
            vec![(of(slots, CLUSTER), "10923x60")],
            cluster.clone(),
        ),
        (
            "RedisClusterCertificateExpires",
            vec![(of(expiry, CLUSTER), "86400x60")],
            cluster,
        ),
        (
            "RedisServerDown",
            vec![(of("redis_up", SERVER), "0x60")],
            server.clone(),
        ),
        (
            "RedisReplicaLinkDown",
            vec![(of("redis_master_link_up", LINK), "0x60")],
            server.clone(),
        ),
        (
            "RedisMemoryAlmostFull",
            vec![(of("redis_instance_info", POLICY), "1x60")],
            server,
        ),
        (
            "RedisControllerDown",
            vec![(leads.to_owned(), "0x60")],
            json!({"controller": "cluster-controller"}),
        ),
        (
            "RedisControllerDown",
            vec![(leads.to_owned(), "_x60")],
            json!({"controller": "cluster-controller"}),
        ),
        (
            "RedisReconcilesFail",
            vec![(of(failed, RECONCILES), "7+1x60")],
            json!({"controller": "cluster-controller", "kind": "RedisCluster", "reason": "ApiTimeout"}),
        ),
        (
            "RedisBackupFailed",
            vec![(of(backups, BACKUPS), "_x29 1x30")],
            json!({}),
        ),
    ]
}

/// The alerts that fire after an hour, as promtool is to find them.
fn expected(fires: &[(&str, &Value)]) -> Vec<Value> {
    let tests = alerts().into_iter().map(|alert| {
        let fires = fires.iter().filter(|(name, _)| *name == alert);
        let labels: Vec<Value> = fires
            .map(|(_, labels)| json!({"exp_labels": labels}))
            .collect();
        json!({"eval_time": "59m", "alertname": alert, "exp_alerts": labels})
    });
    tests.collect()
}

/// The rules without the labels and annotations that they add, which promtool would compare too.
fn bare(groups: &str) -> String {
    let mut text = String::new();
    for line in groups.lines() {
        let is_added = ["labels:", "annotations:", "summary:", "description:"]
            .iter()
            .any(|word| line.trim().starts_with(word));
        if !is_added {
            text.extend([line, "\n"]);
        }
    }
    text
}

#[test]
fn each_alert_fires_for_its_cause_alone() -> Result<()> {
    let folder = Folder::new("fire")?;
    fs::write(folder.0.join("rules.yaml"), bare(&groups()?))?;
    let hibernates = [
        (format!("redis_operator_cluster_ready{CLUSTER}"), "0x60"),
        (format!("redis_operator_cluster_slots_ok{CLUSTER}"), "0x60"),
        (
            format!("redis_operator_cluster_hibernates{CLUSTER}"),
            "1x60",
        ),
    ];
    let quiet = [Vec::new(), hibernates.to_vec()];
    let mut tests: Vec<Value> = quiet
        .iter()
        .map(|over| json!({"interval": "1m", "input_series": hour(over), "alert_rule_test": expected(&[])}))
        .collect();
    let mut tried = BTreeSet::new();
    for (alert, over, labels) in cases() {
        let expected = expected(&[(alert, &labels)]);
        tried.insert(alert.to_owned());
        tests.push(
            json!({"interval": "1m", "input_series": hour(&over), "alert_rule_test": expected}),
        );
    }
    ensure!(tried == alerts(), "{tried:?} are not all of {:?}", alerts());
    let test = json!({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests});
    fs::write(folder.0.join("test.yaml"), test.to_string())?;
    let (fires, said) = folder.promtool("test", "test.yaml")?;
    ensure!(fires, "{said}");
    let none = tests.first_mut().context("no test")?;
    none["alert_rule_test"] = json!(expected(&[("RedisServerDown", &json!({}))]));
    let test = json!({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests});
    fs::write(folder.0.join("test.yaml"), test.to_string())?;
    let (fires, _) = folder.promtool("test", "test.yaml")?;
    ensure!(!fires, "an alert that does not fire is seen");
    Ok(())
}

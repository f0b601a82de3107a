//! The users of a cluster: the whole cluster-controller between a real API server, which has the Secrets, and real servers, which start with
//! what their pods mount.

use anyhow::{Context, Result, bail, ensure};
use common::{cluster::endpoint::NodeAccess, kubernetes::conditions::holds};
use crds::{
    Authentication, CONDITION_USERS, KEY_ACCEPTED, KEY_PASSWORD, OwnUser, RedisCluster,
    RedisClusterStatus, VOLUME_USERS, users_secret_name,
};
use k8s_openapi::{
    ByteString,
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Pod, Secret},
        events::v1::Event,
    },
};
use kube::{
    ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use secrecy::SecretString;
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use tests::{
    cluster_stage::{ClusterStage, KEYS, LIMIT, message, reason, serves},
    kubernetes::status_within,
    login::ClientLogin,
    redis::{MountedUsers, executed, own_users::replicas_log_in},
    replica::ReplicaEnd,
    wait::within,
    writer::Writer,
};

/// A user of the test itself, which may do everything.
const TESTER: &str = "tester";
/// A user with few rights.
const APP: &str = "app";
/// The Secret with their passwords, under their names.
const PASSWORDS: &str = "passwords";

fn login(user: &str, password: &str) -> ClientLogin {
    ClientLogin::new(user, password)
}

fn user(name: &str, rules: &str) -> Value {
    json!({"name": name, "rules": rules, "passwordSecretRefs": [{"name": PASSWORDS, "key": name}]})
}

fn auth(app_rules: &str) -> Value {
    json!({"auth": {"enabled": true, "overlap": "30m", "users": [user(TESTER, "~* &* +@all"), user(APP, app_rules)]}})
}

/// A new password is used two minutes after it was written, and seen within one.
const ROTATION: Duration = Duration::from_mins(6);
const APP_RULES: &str = "~written:* +get +set +ping +asking";

/// The stage with the Secret of the clients' passwords.
async fn stage() -> Result<ClusterStage> {
    let stage = ClusterStage::new().await?;
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {"name": PASSWORDS},
        "stringData": {TESTER: "tester-1", APP: "app-1\n"},
    }))?;
    stage
        .api::<Secret>()
        .create(&PostParams::default(), &secret)
        .await?;
    Ok(stage)
}

async fn data(stage: &ClusterStage, name: &str) -> Result<BTreeMap<String, Vec<u8>>> {
    let secret = stage.api::<Secret>().get(name).await?;
    let data = secret.data.unwrap_or_default().into_iter();
    Ok(data.map(|(key, ByteString(value))| (key, value)).collect())
}

async fn text(stage: &ClusterStage, name: &str, key: &str) -> Result<String> {
    let data = data(stage, name).await?;
    let value = data
        .get(key)
        .with_context(|| format!("{name} has no {key}"))?;
    Ok(String::from_utf8(value.clone())?)
}

/// What the pods mount, once it is there.
async fn mounted(stage: &ClusterStage) -> Result<MountedUsers> {
    let name = users_secret_name("shop");
    let found = within(LIMIT, "the Secret of the pods", async || {
        Ok(stage.api::<Secret>().get_opt(&name).await?.is_some())
    });
    found.await?;
    Ok(MountedUsers::Files(data(stage, &name).await?))
}

fn users_volume() -> Value {
    json!([{"name": VOLUME_USERS, "secret": {"secretName": users_secret_name("shop")}}])
}

/// Starts every server with what the pods mount now, and creates the pods.
async fn run_pods_with_users(stage: &mut ClusterStage) -> Result<()> {
    let users = mounted(stage).await?;
    let node = stage.kubernetes_node();
    stage.nodes.kill_all().await?;
    stage.nodes.log_in(Some(&login(TESTER, "tester-1")));
    for index in 0..stage.nodes.len() {
        stage.nodes.wipe(index)?;
        stage.nodes.mount(index, users.clone());
        stage.nodes.restart(index).await?;
        stage.run_pod(index, &node, users_volume()).await?;
    }
    Ok(())
}

fn has_users(status: &RedisClusterStatus) -> bool {
    status.authentication == Authentication::Required && holds(&status.conditions, CONDITION_USERS)
}

/// A new cluster that serves, with users.
async fn formed() -> Result<ClusterStage> {
    let stage = stage().await?;
    stage.create(auth(APP_RULES)).await?;
    Ok(stage)
}

async fn serving(stage: &mut ClusterStage) -> Result<()> {
    run_pods_with_users(stage).await?;
    stage
        .until("formed, with its users", |status| {
            serves(status) && has_users(status)
        })
        .await?;
    Ok(())
}

/// The code of the error that a client gets for a command; empty where it gets an answer.
async fn refusal(
    stage: &ClusterStage,
    login: Option<&ClientLogin>,
    index: usize,
    command: &str,
) -> Result<String> {
    let server = stage.nodes.server(index);
    server.log_in(login.cloned());
    let answer = server.call::<redis::Value>(command).await;
    server.log_in(Some(ClientLogin::new(TESTER, "tester-1")));
    match answer {
        Ok(_) => Ok(String::new()),
        Err(error) => {
            let words = format!("{error:#}");
            let codes = [
                ("NOAUTH", "NOAUTH"),
                ("NOPERM", "NOPERM"),
                ("no permissions", "NOPERM"),
                ("MOVED", "MOVED"),
                ("WRONGPASS", "WRONGPASS"),
                ("uthentication", "WRONGPASS"),
            ];
            let known = codes.into_iter().find(|(part, _)| words.contains(part));
            known.map(|(_, code)| code.to_owned()).ok_or(error)
        }
    }
}

/// Everything that people with few rights can read must not have a password.
async fn has_no_password(stage: &ClusterStage, passwords: &[String]) -> Result<()> {
    let all = ListParams::default();
    let texts = [
        serde_json::to_string(&stage.api::<RedisCluster>().list(&all).await?)?,
        serde_json::to_string(&stage.api::<ConfigMap>().list(&all).await?)?,
        serde_json::to_string(&stage.api::<StatefulSet>().list(&all).await?)?,
        serde_json::to_string(&stage.api::<Pod>().list(&all).await?)?,
        serde_json::to_string(&stage.api::<Event>().list(&all).await?)?,
    ];
    for password in passwords {
        ensure!(password.len() > 4, "{password:?} would be found by chance");
        for text in &texts {
            ensure!(!text.contains(password.as_str()), "{password} is in {text}");
        }
        for index in 0..stage.nodes.len() {
            let log = stage.nodes.server(index).log();
            ensure!(!log.contains(password.as_str()), "{password} is in a log");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_let_in_as_their_users_alone() -> Result<()> {
    let mut stage = formed().await?;
    let replica = stage.replica("a", None);
    serving(&mut stage).await?;
    let app = login(APP, "app-1");
    let primary = stage.nodes.primary_of(0).await?;
    for (who, command, code) in [
        (None, "GET written:1", "NOAUTH"),
        (Some(login(APP, "app-2")), "GET written:1", "WRONGPASS"),
        (Some(app.clone()), "PING", ""),
        (Some(app.clone()), "GET other:1", "NOPERM"),
        (Some(app.clone()), "FLUSHALL", "NOPERM"),
        (Some(login(TESTER, "tester-1")), "DBSIZE", ""),
    ] {
        let found = refusal(&stage, who.as_ref(), primary, command).await?;
        ensure!(found == code, "{who:?} {command}: {found:?}");
    }
    ensure!(replicas_log_in(stage.nodes.server(primary)).await?);
    let cluster = stage.api::<RedisCluster>().get("shop").await?;
    let uid = cluster.uid();
    let mut passwords = vec!["tester-1".to_owned(), "app-1".to_owned()];
    for own in OwnUser::ALL {
        let name = own.secret_name("shop");
        let secret = stage.api::<Secret>().get(&name).await?;
        let owner = secret.owner_references().first();
        ensure!(owner.map(|owner| owner.uid.clone()) == uid, "{name}");
        let password = text(&stage, &name, KEY_ACCEPTED).await?;
        ensure!(!passwords.contains(&password), "two users, one password");
        let own = ClientLogin::new(own.name(), &password);
        let found = refusal(&stage, Some(&own), primary, "FLUSHALL").await?;
        ensure!(found == "NOPERM", "{name}: {found:?}");
        passwords.push(password);
    }
    has_no_password(&stage, &passwords).await?;

    // By hand on one server: the controller sets it back.
    let server = stage.nodes.server(primary);
    server.call::<()>("ACL SETUSER app +@all").await?;
    server
        .call::<()>("ACL SETUSER default on nopass ~* +@all")
        .await?;
    server
        .call::<()>("ACL SETUSER other on nopass ~* +@all")
        .await?;
    within(LIMIT, "the users are as before", async || {
        let code = refusal(&stage, None, primary, "GET written:1").await?;
        let rights = refusal(&stage, Some(&app), primary, "GET other:1").await?;
        let users: Vec<String> = stage.nodes.server(primary).call("ACL USERS").await?;
        let other = users.iter().any(|user| user == "other");
        Ok(code == "NOAUTH" && rights == "NOPERM" && !other)
    })
    .await?;
    replica.end(ReplicaEnd::Orderly)
}

/// Puts another password into a Secret, as a person or another program does.
async fn set_password(stage: &ClusterStage, secret: &str, key: &str, value: &str) -> Result<()> {
    let patch = Patch::Merge(json!({"stringData": {key: value}}));
    let parameters = PatchParams::default();
    stage
        .api::<Secret>()
        .patch(secret, &parameters, &patch)
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_change_while_a_writer_writes() -> Result<()> {
    let mut stage = formed().await?;
    let replica = stage.replica("a", None);
    serving(&mut stage).await?;
    let seeds: Vec<_> = (0..stage.nodes.len())
        .map(|index| stage.nodes.server(index).address())
        .collect();
    let writer = Writer::start_as(Some(login(APP, "app-1")), seeds.clone(), 500);
    let before = stage.nodes.copies().await?;
    set_password(&stage, PASSWORDS, APP, "app-2").await?;
    for own in OwnUser::ALL {
        let new = format!("new password of {}", own.name());
        set_password(&stage, &own.secret_name("shop"), KEY_PASSWORD, &new).await?;
    }
    for own in OwnUser::ALL {
        let new = format!("new password of {}", own.name());
        let name = own.secret_name("shop");
        within(
            ROTATION,
            "every server has accepted the password",
            async || Ok(text(&stage, &name, KEY_ACCEPTED).await? == new),
        )
        .await?;
    }
    let all = |status: &RedisClusterStatus| serves(status) && has_users(status);
    stage.until("every password is replaced", all).await?;
    for index in 0..stage.nodes.len() {
        for (user, password) in [
            (APP, "app-1"),
            (APP, "app-2"),
            (
                OwnUser::Probe.name(),
                "new password of redis-operator-probe",
            ),
        ] {
            let client = ClientLogin::new(user, password);
            let code = refusal(&stage, Some(&client), index, "CLUSTER MYID").await?;
            let wanted = if user == APP { "NOPERM" } else { "" };
            ensure!(code == wanted, "{user} {password}: {code:?}");
        }
        let server = stage.nodes.server(index);
        let [_, by]: [String; 2] = server.call("CONFIG GET masterauth").await?;
        ensure!(by == "new password of redis-operator-replication", "{by}");
    }
    ensure!(stage.nodes.copies().await? == before, "a link was broken");
    let report = writer.end(seeds).await?;
    println!("{} writes, {:?}", report.acknowledged, report.longest_gap);
    ensure!(report.wrong.is_empty(), "{:?}", report.wrong);
    ensure!(report.refusals.is_empty(), "{:?}", report.refusals);
    ensure!(report.acknowledged > 100, "{}", report.acknowledged);
    // A pod that starts now has the new ones.
    let MountedUsers::Files(files) = mounted(&stage).await? else {
        bail!("no files");
    };
    ensure!(files["probe"] == b"new password of redis-operator-probe");
    replica.end(ReplicaEnd::Orderly)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_that_servers_refuse_change_nothing() -> Result<()> {
    let mut stage = formed().await?;
    let replica = stage.replica("a", None);
    serving(&mut stage).await?;
    let list = async |index: usize| -> Result<Vec<String>> {
        stage.nodes.server(index).call("ACL LIST").await
    };
    let before = list(0).await?;
    stage.change(auth("~written:* +gett")).await?;
    let refused = stage
        .until("the rules are named", |status| {
            reason(status, CONDITION_USERS) == "RulesRefused"
        })
        .await?;
    let words = message(&refused, CONDITION_USERS);
    ensure!(
        words.contains("user app") && words.contains("gett"),
        "{words}"
    );
    ensure!(holds(&refused.conditions, "Ready") || serves(&refused));
    ensure!(list(0).await? == before, "{before:?}");
    let MountedUsers::Files(files) = mounted(&stage).await? else {
        bail!("no files");
    };
    ensure!(!String::from_utf8_lossy(&files["users.conf"]).contains("gett"));
    stage.change(auth("~written:* +get +set +del")).await?;
    stage.until("corrected", has_users).await?;
    let app = login(APP, "app-1");
    let code = refusal(&stage, Some(&app), 0, "DEL other").await?;
    ensure!(code == "NOPERM", "{code}");
    let code = refusal(&stage, Some(&app), 0, "DEL written:1").await?;
    ensure!(["", "MOVED"].contains(&code.as_str()), "{code}");
    // A password that is not there.
    let missing = json!({"auth": {"users": [user(TESTER, "~* &* +@all"),
        {"name": APP, "rules": "+ping", "passwordSecretRefs": [{"name": "nowhere"}]}]}});
    stage.change(missing).await?;
    let named = stage
        .until("the Secret is named", |status| {
            reason(status, CONDITION_USERS) == "PasswordMissing"
        })
        .await?;
    let words = message(&named, CONDITION_USERS);
    ensure!(words.contains("Secret nowhere"), "{words}");
    let code = refusal(&stage, Some(&app), 0, "PING").await?;
    ensure!(code.is_empty(), "{code}");
    replica.end(ReplicaEnd::Orderly)
}

/// A server that does not know the user of this controller is not this cluster's: it gets no command, whatever it says of itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_the_controller_gets_no_command() -> Result<()> {
    let mut stage = formed().await?;
    let replica = stage.replica("a", None);
    serving(&mut stage).await?;
    let victim = stage.nodes.replica_of(1).await?;
    let server = stage.nodes.server(victim);
    server
        .call::<()>("ACL SETUSER redis-operator resetpass >another")
        .await?;
    server.call::<()>("CLIENT KILL USER redis-operator").await?;
    stage
        .until("the refusal is reported", |status| {
            let words = status.message.as_deref().unwrap_or_default();
            words.contains("redis-operator") && !holds(&status.conditions, "Ready")
        })
        .await?;
    let commands = async || -> Result<BTreeMap<String, u64>> {
        let mut counted = executed(stage.nodes.server(victim)).await?;
        // By other servers, and by the test.
        for name in [
            "ping",
            "replconf",
            "info",
            "auth",
            "slowlog|get",
            "slowlog|len",
            "config|get",
        ] {
            counted.remove(name);
        }
        Ok(counted)
    };
    let before = commands().await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(commands().await? == before, "{before:?}");
    let access = NodeAccess {
        login: common::cluster::endpoint::Login::Required(
            common::cluster::endpoint::NodeCredentials::new(
                OwnUser::Operator.name(),
                SecretString::from("another"),
            ),
        ),
        ..NodeAccess::default()
    };
    let address = stage.nodes.server(victim).address();
    let endpoint = access.endpoint(address, Duration::from_secs(2));
    common::cluster::node::NodeClient::connect(&endpoint).await?;
    // A restart brings the users back that its pod mounts.
    stage.nodes.kill(victim).await?;
    stage.ended(victim, 0).await?;
    stage.nodes.wipe(victim)?;
    stage.nodes.restart(victim).await?;
    stage.started(victim, 1).await?;
    stage.until("healthy again", serves).await?;
    replica.end(ReplicaEnd::Orderly)
}

/// Makes a pod again, with its server, as the StatefulSet's template has it now.
async fn replace(stage: &mut ClusterStage, index: usize) -> Result<()> {
    let template = stage.template(index).await?;
    let (users, volumes) = if cluster_controller::pods::has_secret(&template, VOLUME_USERS) {
        (mounted(stage).await?, users_volume())
    } else {
        (MountedUsers::None, json!([]))
    };
    stage
        .replace(index, volumes, |nodes| {
            nodes.mount(index, users);
            Ok(())
        })
        .await
}

async fn replace_all(stage: &mut ClusterStage) -> Result<()> {
    for index in 0..stage.nodes.len() {
        replace(stage, index).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_gets_users_and_loses_them() -> Result<()> {
    let mut stage = stage().await?;
    let replica = stage.replica("a", None);
    stage.create(json!({})).await?;
    stage.run_pods().await?;
    let slots = stage.fill().await?;
    let secrets = ListParams::default().labels(crds::LABEL_CLUSTER);
    ensure!(stage.api::<Secret>().list(&secrets).await?.items.is_empty());
    let seeds: Vec<_> = (0..stage.nodes.len())
        .map(|index| stage.nodes.server(index).address())
        .collect();
    // It gives no name all the time while that is allowed.
    let writer = Writer::start(seeds.clone(), 500);
    stage.change(auth(APP_RULES)).await?;
    stage
        .until("the servers know the users", |status| {
            status.authentication == Authentication::Introducing
                && reason(status, CONDITION_USERS) == "Introducing"
        })
        .await?;
    stage.templates_mount(VOLUME_USERS, true).await?;
    let app = login(APP, "app-1");
    let code = refusal(&stage, Some(&app), 0, "PING").await?;
    ensure!(code.is_empty(), "{code}");
    stage.nodes.log_in(Some(&login(TESTER, "tester-1")));
    for index in 0..stage.nodes.len() - 1 {
        replace(&mut stage, index).await?;
    }
    let status = stage.api::<RedisCluster>().get("shop").await?.status;
    let open = status.is_some_and(|one| one.authentication == Authentication::Introducing);
    ensure!(open, "closed although a pod starts without users");
    let report = writer.end(seeds.clone()).await?;
    ensure!(report.wrong.is_empty(), "{:?}", report.wrong);
    report.only_of_replacements()?;
    let last = stage.nodes.len() - 1;
    replace(&mut stage, last).await?;
    stage.until("only users are let in", has_users).await?;
    let code = refusal(&stage, None, 0, "GET written:1").await?;
    ensure!(code == "NOAUTH", "{code}");
    stage.nodes.unharmed(&slots, KEYS).await.or_else(|error| {
        // The writer's keys are there as well.
        let words = format!("{error:#}");
        if words.contains("keys instead of") {
            Ok(())
        } else {
            Err(error)
        }
    })?;

    stage.change(json!({"auth": {"enabled": false}})).await?;
    let withdraws =
        |status: &RedisClusterStatus| status.authentication == Authentication::Withdrawing;
    let what = "every client is let in, also by a server that restarts";
    status_within(ROTATION, (&stage.api(), "shop"), what, withdraws).await?;
    stage.templates_mount(VOLUME_USERS, false).await?;
    let code = refusal(&stage, None, 0, "PING").await?;
    ensure!(code.is_empty(), "{code}");
    replace_all(&mut stage).await?;
    stage.nodes.log_in(None);
    stage
        .until("no users are left", |status| {
            status.authentication == Authentication::Off && serves(status)
        })
        .await?;
    for index in 0..stage.nodes.len() {
        let server = stage.nodes.server(index);
        let users: Vec<String> = server.call("ACL USERS").await?;
        ensure!(users == ["default"], "{users:?}");
        let [_, by]: [String; 2] = server.call("CONFIG GET masterauth").await?;
        ensure!(by.is_empty(), "{by}");
    }
    ensure!(stage.api::<Secret>().list(&secrets).await?.items.is_empty());
    replica.end(ReplicaEnd::Orderly)
}

//! Users and their passwords change on a cluster that a client writes to.

use anyhow::{Result, ensure};
use crds::{KEY_PASSWORD, OwnUser};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::{
    kubectl::Kubectl,
    scenario::{self, Area, FilledCluster, ScenarioRow, Volumes, Writer, on_every_server},
};

const KEYS: u64 = 20_000;
/// A Secret is seen within a minute, its password used two minutes after, and the one before goes three minutes after that.
const ROTATION: Duration = Duration::from_mins(10);
/// All pods are replaced, one after the other.
const ROLLED: Duration = Duration::from_mins(6);

/// What clients may do while all this goes on: everything without a name, and a user with a password besides.
fn auth(enabled: bool) -> Value {
    let password = json!([{"name": "passwords", "key": "app"}]);
    let app = json!({"name": "app", "rules": "~* +get +ping", "passwordSecretRefs": password});
    json!({"auth": {"enabled": enabled, "overlap": "3m", "defaultUser": {"noPassword": true}, "users": [app]}})
}

async fn set_password(kubectl: &Kubectl, secret: &str, key: &str, value: &str) -> Result<()> {
    let change = json!({"stringData": {key: value}});
    kubectl.patch(&format!("secret {secret}"), &change).await
}

/// Whether every server lets a user in by a password.
async fn lets_in(kubectl: &Kubectl, user: &str, password: &str) -> Result<bool> {
    let script =
        format!("REDISCLI_AUTH='{password}' redis-cli --user {user} acl whoami 2>&1; true");
    let answers = on_every_server(kubectl, "shop", &script).await?;
    // One that may not ask who it is has logged in.
    let refused = |answer: &String| answer.contains("WRONGPASS") || answer.contains("AUTH failed");
    Ok(!answers.values().any(refused))
}

async fn authentication(kubectl: &Kubectl, wanted: &str, limit: Duration) -> Result<Duration> {
    let what = format!("authentication is {wanted}");
    let reported = async || {
        let shop = kubectl.get("rediscluster shop").await?;
        Ok(shop["status"]["authentication"] == wanted)
    };
    kubectl.until(&what, limit, reported).await
}

#[tokio::test]
async fn every_password_changes_under_a_writer() -> Result<()> {
    scenario::run("e2e-passwords", async |kubectl| {
        let passwords = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "passwords"}, "stringData": {"app": "app-one"}});
        kubectl.apply(&passwords.to_string()).await?;
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, KEYS).await?;
        scenario::spec(kubectl, "shop", auth(true)).await?;
        scenario::condition(kubectl, "shop", ("UsersApplied", "True", "Applied")).await?;
        ensure!(lets_in(kubectl, "app", "app-one").await?);
        let before = scenario::links(kubectl, "shop").await?;
        let writer = Writer::start(kubectl, "shop").await?;
        let begun = Instant::now();
        set_password(kubectl, "passwords", "app", "app-two").await?;
        for own in OwnUser::ALL {
            let (secret, new) = (own.secret_name("shop"), format!("first-{}", own.name()));
            set_password(kubectl, &secret, KEY_PASSWORD, &new).await?;
        }
        kubectl
            .until("every server knows the new passwords", ROTATION, async || {
                for own in OwnUser::ALL {
                    if !lets_in(kubectl, own.name(), &format!("first-{}", own.name())).await? {
                        return Ok(false);
                    }
                }
                lets_in(kubectl, "app", "app-two").await
            })
            .await?;
        ensure!(lets_in(kubectl, "app", "app-one").await?, "no overlap");
        let (user, old) = ("app", "app-one");
        kubectl
            .until("the password before is refused", ROTATION, async || {
                Ok(!lets_in(kubectl, user, old).await?)
            })
            .await?;
        scenario::condition(kubectl, "shop", ("UsersApplied", "True", "Applied")).await?;
        let took = begun.elapsed();
        let after = scenario::links(kubectl, "shop").await?;
        let seen = writer.finish().await?;
        ensure!(after == before, "a link was broken: {before:?} {after:?}");
        ensure!(seen.refused() == 0, "{seen}");
        shop.is_intact("passwords-changed").await?;
        let done = "the passwords of all own users and of a client's are replaced by editing their Secrets";
        ScenarioRow::new(Area::Users, "passwords", done)
            .healthy_after(took)
            .lost(0)
            .writes(&seen)
            .note("until the passwords before are refused; no link broken")
            .record()
    })
    .await
}

#[tokio::test]
async fn users_go_and_come_under_a_writer() -> Result<()> {
    scenario::run("e2e-users", async |kubectl| {
        let passwords = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "passwords"}, "stringData": {"app": "app-one"}});
        kubectl.apply(&passwords.to_string()).await?;
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, KEYS).await?;
        let writer = Writer::start(kubectl, "shop").await?;
        scenario::spec(kubectl, "shop", auth(false)).await?;
        authentication(kubectl, "Off", ROLLED).await?;
        let secrets = format!("secrets -l {}=shop", crds::LABEL_CLUSTER);
        let left = kubectl.list(&secrets).await?;
        ensure!(left.is_empty(), "{} Secrets are left", left.len());
        let lists = on_every_server(kubectl, "shop", "redis-cli acl users").await?;
        ensure!(lists.values().all(|list| list.trim() == "default"), "{lists:?}");
        let begun = Instant::now();
        scenario::spec(kubectl, "shop", auth(true)).await?;
        authentication(kubectl, "Introducing", ROLLED).await?;
        authentication(kubectl, "Required", ROLLED).await?;
        let took = begun.elapsed();
        scenario::condition(kubectl, "shop", ("UsersApplied", "True", "Applied")).await?;
        scenario::condition(kubectl, "shop", ("Ready", "True", "Healthy")).await?;
        let seen = writer.finish().await?;
        ensure!(lets_in(kubectl, "app", "app-one").await?);
        shop.is_intact("users-came").await?;
        ensure!(seen.longest_gap < scenario::NODE_TIMEOUT, "{seen}");
        let done = "spec.auth.enabled is set to false, which removes all users, and back to true";
        ScenarioRow::new(Area::Users, "users of a running cluster", done)
            .healthy_after(took)
            .lost(0)
            .writes(&seen)
            .note("since it was set back")
            .record()
    })
    .await
}

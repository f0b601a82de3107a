//! A running cluster changes while a client writes to it: its configuration, its image, its size.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tests::{
    kubectl::Kubectl,
    scenario::{self, Area, FilledCluster, LIMIT, ScenarioRow, Volumes, Writer},
};

const KEYS: u64 = 20_000;

async fn reports(kubectl: &Kubectl, condition: (&str, &str, &str)) -> Result<String> {
    scenario::condition(kubectl, "shop", condition).await
}

async fn spec(kubectl: &Kubectl, change: Value) -> Result<()> {
    scenario::spec(kubectl, "shop", change).await
}

/// Uids of the pods by name.
async fn uids(kubectl: &Kubectl) -> Result<BTreeMap<String, String>> {
    scenario::uids_by_name(&scenario::pods(kubectl, "shop").await?)
}

/// How many pods are the same.
fn unchanged(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> usize {
    let same = after
        .iter()
        .filter(|(pod, uid)| before.get(*pod) == Some(*uid));
    same.count()
}

/// The value of a setting on every server.
async fn settings(kubectl: &Kubectl, name: &str) -> Result<Vec<String>> {
    let mut values = Vec::new();
    for pod in scenario::pod_names(kubectl, "shop").await? {
        let answer = kubectl
            .exec(&pod, &format!("redis-cli config get {name}"))
            .await?;
        values.push(answer.lines().nth(1).unwrap_or_default().trim().to_owned());
    }
    Ok(values)
}

async fn updated(kubectl: &Kubectl) -> Result<()> {
    reports(kubectl, ("UpToDate", "True", "UpToDate")).await?;
    reports(kubectl, ("Ready", "True", "Healthy")).await?;
    let status = kubectl.get("rediscluster shop").await?["status"].clone();
    ensure!(status.get("operation").is_none(), "{}", status["operation"]);
    Ok(())
}

/// Every pod is replaced, no acknowledged write is lost, and the client waits for no election.
#[tokio::test]
async fn a_setting_rolls_through_a_cluster_under_load() -> Result<()> {
    scenario::run("e2e-rolling", async |kubectl| {
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, KEYS).await?;
        let before = uids(kubectl).await?;
        let writer = Writer::start(kubectl, "shop").await?;
        let timeout = scenario::NODE_TIMEOUT.as_millis().to_string();
        let config = json!({"databases": "20", "cluster-node-timeout": timeout});
        let begun = Instant::now();
        spec(kubectl, json!({ "config": config })).await?;
        let progress = reports(kubectl, ("Ready", "False", "Updating")).await?;
        ensure!(progress.contains("of 6 pods"), "{progress}");
        updated(kubectl).await?;
        let rolled = begun.elapsed();
        reports(kubectl, ("ConfigApplied", "True", "Applied")).await?;
        let seen = writer.finish().await?;
        let after = uids(kubectl).await?;
        let kept = before
            .iter()
            .filter(|(pod, uid)| after.get(*pod) == Some(*uid));
        ensure!(
            kept.count() == 0 && after.len() == 6,
            "{before:?} {after:?}"
        );
        let values = settings(kubectl, "databases").await?;
        ensure!(values.iter().all(|value| value == "20"), "{values:?}");
        shop.is_intact("rolled").await?;
        let done = "a setting that needs a restart rolls through 6 pods";
        ScenarioRow::new(Area::Change, "configuration", done)
            .healthy_after(rolled)
            .lost(0)
            .writes(&seen)
            .record()?;
        ensure!(
            seen.longest_gap < scenario::NODE_TIMEOUT,
            "an election was waited for: {seen}"
        );
        let maps = kubectl
            .list("configmaps -l redis.danieldorado.github.io/cluster=shop")
            .await?;
        ensure!(maps.len() == 1, "{} configurations are left", maps.len());
        Ok(())
    })
    .await
}

/// A setting that a server can change reaches every one without a restart, and again after another client has changed it; one that it
/// refuses is named and changes nothing; a process that starts again has what the spec says.
#[tokio::test]
async fn a_setting_changes_on_the_running_servers() -> Result<()> {
    scenario::run("e2e-settings", async |kubectl| {
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, KEYS).await?;
        let before = uids(kubectl).await?;
        let writer = Writer::start(kubectl, "shop").await?;
        let timeout = scenario::NODE_TIMEOUT.as_millis().to_string();
        let config = |maxclients: &str| json!({"config": {"maxclients": maxclients, "cluster-node-timeout": timeout}});
        let all_have = async |value: &str| {
            let wait = format!("maxclients {value} on every server");
            let has = async || {
                let values = settings(kubectl, "maxclients").await?;
                Ok(values.len() == 6 && values.iter().all(|one| one == value))
            };
            kubectl.until(&wait, LIMIT, has).await
        };
        spec(kubectl, config("5000")).await?;
        let took = all_have("5000").await?;
        reports(kubectl, ("ConfigApplied", "True", "Applied")).await?;
        updated(kubectl).await?;

        kubectl.exec("shop-1-0", "redis-cli config set maxclients 4000").await?;
        all_have("5000").await?;

        spec(kubectl, config("many")).await?;
        let words = reports(kubectl, ("ConfigApplied", "False", "SettingRefused")).await?;
        ensure!(words.contains("maxclients many: argument"), "{words}");
        reports(kubectl, ("Available", "True", "AllSlotsServed")).await?;
        all_have("5000").await?;
        spec(kubectl, config("6000")).await?;
        all_have("6000").await?;
        updated(kubectl).await?;

        let after = uids(kubectl).await?;
        ensure!(after == before, "pods were replaced: {before:?} {after:?}");
        let trials = async || {
            let trials = kubectl.list(&format!("pods -l {}", crds::LABEL_TRIAL)).await?;
            Ok(trials.is_empty())
        };
        kubectl.until("no pod that tries is left", LIMIT, trials).await?;
        let seen = writer.finish().await?;
        shop.is_intact("settings").await?;
        ScenarioRow::new(Area::Change, "live settings", "a setting changes on 6 running servers")
            .healthy_after(took)
            .lost(0)
            .writes(&seen)
            .record()?;
        ensure!(seen.longest_gap < Duration::from_secs(1), "{seen}");
        Ok(())
    })
    .await
}

/// No pod of the cluster gets an image that cannot be pulled. A request that finds no room stops at the first pod. The cluster serves on, and
/// taking the change back repairs it.
#[tokio::test]
async fn a_wrong_change_stops_until_it_is_corrected() -> Result<()> {
    scenario::run("e2e-wrong", async |kubectl| {
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, KEYS).await?;
        let cluster = kubectl.get("rediscluster shop").await?;
        let before = uids(kubectl).await?;
        let image =
            json!({"version": null, "image": format!("{}/no-such-image:1", scenario::registry())});
        spec(kubectl, image).await?;
        let named = async || {
            let status = kubectl.get("rediscluster shop").await?["status"].clone();
            Ok(status.to_string().contains("cannot pull image"))
        };
        kubectl.until("the image is named", LIMIT, named).await?;
        reports(kubectl, ("Available", "True", "AllSlotsServed")).await?;
        let same = unchanged(&before, &uids(kubectl).await?);
        ensure!(same == 6, "{same} of 6 pods are the same");
        let version = json!({"image": null, "version": cluster["spec"]["version"]});
        let begun = Instant::now();
        spec(kubectl, version).await?;
        updated(kubectl).await?;
        shop.recovered().await?;
        let corrected = begun.elapsed();
        shop.is_intact("corrected").await?;
        let stopped = "no pod is replaced by one that has no image";
        corrected_row("wrong image", stopped, corrected).record()?;

        let running = uids(kubectl).await?;
        let too_much = json!({"resources": {"requests": {"memory": "999Gi"}}});
        spec(kubectl, too_much).await?;
        let named = async || {
            let status = kubectl.get("rediscluster shop").await?["status"].clone();
            Ok(status.to_string().contains("not scheduled"))
        };
        kubectl
            .until("the missing room is named", LIMIT, named)
            .await?;
        reports(kubectl, ("Available", "True", "AllSlotsServed")).await?;
        let same = unchanged(&running, &uids(kubectl).await?);
        ensure!(same == 5, "{same} of 6 pods are the same");
        let begun = Instant::now();
        spec(kubectl, json!({"resources": null})).await?;
        updated(kubectl).await?;
        shop.recovered().await?;
        let corrected = begun.elapsed();
        shop.is_intact("room").await?;
        let stopped = "the first pod stops the update";
        corrected_row("memory request of 999 GiB", stopped, corrected).record()
    })
    .await
}

fn corrected_row(wrong: &str, stopped: &str, time: Duration) -> ScenarioRow {
    let done = format!("{stopped}; the spec is set back, which is where the time begins");
    ScenarioRow::new(Area::Change, wrong, &done)
        .healthy_after(time)
        .lost(0)
}

/// A cluster that never came up because of its image comes up with the right one: no pod has to be deleted by hand.
#[tokio::test]
async fn a_new_cluster_with_a_wrong_image_is_corrected() -> Result<()> {
    scenario::run("e2e-image", async |kubectl| {
        let mut cluster = scenario::cluster_object(kubectl, "shop", 3, Volumes::None);
        let fields = cluster["spec"].as_object_mut().context("no spec")?;
        let version = fields.remove("version").context("no version")?;
        let missing = format!("{}/no-such-image:1", scenario::registry());
        fields.insert("image".into(), json!(missing));
        kubectl.apply(&cluster.to_string()).await?;
        let named = async || {
            let status = kubectl.get("rediscluster shop").await?["status"].clone();
            Ok(status["message"].to_string().contains("cannot pull image"))
        };
        kubectl.until("the image is named", LIMIT, named).await?;
        let begun = Instant::now();
        spec(kubectl, json!({"image": null, "version": version})).await?;
        scenario::formed(kubectl, "shop", 6).await?;
        let done =
            "a new cluster with an image that does not exist; the time begins with the correction";
        ScenarioRow::new(Area::Change, "wrong image from the start", done)
            .healthy_after(begun.elapsed())
            .record()
    })
    .await
}

/// Bytes a second: slow enough that a move is paused in the middle.
const SLOWLY: u64 = 100_000;
/// For so long slots are looked at that must not move.
const WATCHED: Duration = Duration::from_secs(3);

/// Scales to three shards, pauses when the first slots have moved, and goes on: in between the status says what is waited for, and no slot moves.
async fn stays_while_paused(kubectl: &Kubectl) -> Result<()> {
    let before = scenario::slot_map(kubectl, "shop").await?;
    let slowly = json!({"shards": 3, "migration": {"maxBytesPerSecond": SLOWLY}});
    spec(kubectl, slowly).await?;
    let moves = async || Ok(scenario::slot_map(kubectl, "shop").await? != before);
    kubectl.until("slots move", LIMIT, moves).await?;
    spec(kubectl, json!({"migration": {"paused": true}})).await?;
    let named = async || {
        let operation = kubectl.get("rediscluster shop").await?["status"]["operation"].clone();
        let message = operation["message"].as_str().unwrap_or_default();
        Ok(message.starts_with("spec.migration.paused is true"))
    };
    kubectl.until("the pause is named", LIMIT, named).await?;
    let paused = scenario::slot_map(kubectl, "shop").await?;
    tokio::time::sleep(WATCHED).await;
    ensure!(
        scenario::slot_map(kubectl, "shop").await? == paused,
        "slots moved while moves were paused"
    );
    ensure!(paused.contains_key("shop-3"), "the shard has left already");
    spec(kubectl, json!({"migration": null})).await
}

/// The size changes both ways: values stay, no acknowledged write is lost, and what is not needed any more is gone.
#[tokio::test]
async fn a_cluster_changes_its_size_under_load() -> Result<()> {
    scenario::run("e2e-scaling", async |kubectl| {
        let volumes = Volumes::DeletedWithCluster;
        let shop = FilledCluster::create(kubectl, "shop", 3, volumes, KEYS).await?;
        let writer = Writer::start(kubectl, "shop").await?;
        kubectl.run("scale rediscluster shop --replicas=4").await?;
        let more = scenario::has_shards(kubectl, "shop", 4, 1).await?;
        counts_its_primaries(kubectl, 4).await?;
        shop.has_its_values("four").await?;
        stays_while_paused(kubectl).await?;
        let fewer = scenario::has_shards(kubectl, "shop", 3, 1).await?;
        let released = async || {
            let leases = "get leases --namespace redis-operator-system --output name";
            let leases = kubectl.run(leases).await?;
            Ok(!leases.contains("e2e-scaling.shop-operation"))
        };
        kubectl
            .until("the operation is over", LIMIT, released)
            .await?;
        shop.has_its_values("three").await?;
        let sets = kubectl.list("statefulsets").await?.len();
        ensure!(sets == 3, "{sets} StatefulSets");
        let claims = async || Ok(kubectl.list("persistentvolumeclaims").await?.len() == 6);
        kubectl.until("six volumes are left", LIMIT, claims).await?;

        let replicas = Instant::now();
        spec(kubectl, json!({"replicasPerShard": 2})).await?;
        scenario::has_shards(kubectl, "shop", 3, 2).await?;
        spec(kubectl, json!({"replicasPerShard": 1})).await?;
        scenario::has_shards(kubectl, "shop", 3, 1).await?;
        kubectl.until("six volumes are left", LIMIT, claims).await?;
        let seen = writer.finish().await?;
        println!(
            "3 to 4 shards in {:.1} s, 4 to 3 in {:.1} s; {seen}",
            more.as_secs_f64(),
            fewer.as_secs_f64()
        );
        shop.has_its_values("scaled").await?;
        let done = "1 to 2 replicas a shard, and back";
        ScenarioRow::new(Area::Size, "replicas", done)
            .healthy_after(replicas.elapsed())
            .lost(0)
            .writes(&seen)
            .record()?;
        ensure!(
            seen.longest_gap < scenario::NODE_TIMEOUT,
            "an election was waited for: {seen}"
        );
        scenario::no_data_was_dropped(kubectl, "shop").await?;
        scenario::roles_are_labelled(kubectl, "shop").await
    })
    .await
}

/// What an autoscaler counts by the selector of the scale subresource is one pod a shard.
async fn counts_its_primaries(kubectl: &Kubectl, shards: usize) -> Result<()> {
    let selector = "get rediscluster shop --output jsonpath={.status.selector}";
    let selector = kubectl.run(selector).await?;
    let counted = async || {
        let names = format!("get pods --selector {} --output name", selector.trim());
        Ok(kubectl.run(&names).await?.lines().count() == shards)
    };
    let wait = format!("{selector} selects {shards} pods");
    kubectl.until(&wait, LIMIT, counted).await?;
    Ok(())
}

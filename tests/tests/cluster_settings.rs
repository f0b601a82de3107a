//! Settings of real servers: changed while they run, found again when another client changes them, refused in the server's own words; and
//! the script by which a server tries a configuration.

use anyhow::{Context, Result, ensure};
use cluster_controller::{
    build::{configuration_name, redis_conf, trial_pod},
    live_settings::set,
    pods::Pods,
    redis::{
        identity::recognize,
        member::{Member, Wanted},
        observe::observe_settings,
    },
    settings::{
        answer::{LiveOutcome, LiveResult},
        assess::{ClusterSettings, SettingState, SettingsGoal, assess},
        file::{Configuration, Configurations},
        live::{changes, events},
        tracker::SettingsTracker,
        trial::{TrialState, judge},
    },
    validate::{ValidatedCluster, validate},
};
use common::cluster::kept_connections::ClusterConnections;
use crds::{CONTAINER, RedisCluster, RedisClusterSpec};
use k8s_openapi::{
    api::core::v1::{Pod, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
    jiff::Timestamp,
};
use serde_json::json;
use std::{fs, net::TcpListener, path::Path, process::ExitStatus, sync::Arc, time::Duration};
use tests::{
    drive::drive_pods,
    redis::{NODE_TIMEOUT, PodCluster, PodStorage},
};
use tokio::process::Command;

const PLACE: (&str, &str) = ("test", "test");
const TIMEOUT: Duration = Duration::from_secs(1);
/// Memory limit of the pods.
const LIMIT: &str = "64Mi";

fn cluster(config: &[(&str, &str)]) -> Result<ValidatedCluster> {
    let timeout = NODE_TIMEOUT.as_millis().to_string();
    let config = config.iter().copied();
    let config = config.chain([("cluster-node-timeout", timeout.as_str())]);
    let config = config.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut object = RedisCluster::new(
        "test",
        RedisClusterSpec {
            image: Some("redis".into()),
            shards: 3,
            replicas_per_shard: 0,
            config: config.collect(),
            resources: Some(ResourceRequirements {
                limits: Some([("memory".to_owned(), Quantity(LIMIT.to_owned()))].into()),
                ..ResourceRequirements::default()
            }),
            ..RedisClusterSpec::default()
        },
    );
    object.metadata.namespace = Some("test".into());
    object.metadata.uid = Some("uid".into());
    Ok(validate(&object, None, Timestamp::now())?)
}

/// A formed cluster whose pods were started without settings of the user.
struct Stage {
    servers: PodCluster,
    wanted: Wanted,
    cluster: ValidatedCluster,
    configurations: Configurations,
    pods: Pods,
    tracker: SettingsTracker,
    connections: ClusterConnections,
}

impl Stage {
    async fn new() -> Result<Self> {
        let servers = PodCluster::start(0, PodStorage::Volume).await?;
        let wanted = Wanted {
            patience: Duration::from_secs(4),
            ..Wanted::new((3, 0), true, NODE_TIMEOUT)
        };
        let drive = drive_pods(&servers, &wanted, Duration::from_secs(40)).await;
        ensure!(drive.assessment.is_healthy(), "{:?}", drive.assessment);
        let cluster = cluster(&[])?;
        // As the harness rendered it: without a memory limit.
        let text = redis_conf(&cluster);
        let text = text.lines().filter(|line| !line.starts_with("maxmemory "));
        let started = Configuration {
            text: text.flat_map(|line| [line, "\n"]).collect(),
            trials: Vec::new(),
        };
        let pod = |name: &str| {
            let limits = json!({"limits": {"memory": LIMIT}});
            let pod = json!({"metadata": {"name": name}, "spec": {
                "containers": [{"name": CONTAINER, "resources": limits}],
                "volumes": [{"name": "config", "configMap": {"name": "started"}}],
            }});
            anyhow::Ok(Arc::new(serde_json::from_value::<Pod>(pod)?))
        };
        let expected = servers.expected().into_iter();
        let pods = expected.map(|one| Ok((one.pod.clone(), pod(&one.pod)?)));
        Ok(Self {
            wanted: Wanted {
                known: drive.known,
                ..wanted
            },
            servers,
            cluster,
            configurations: [("started".to_owned(), started)].into(),
            pods: pods.collect::<Result<_>>()?,
            tracker: SettingsTracker::default(),
            connections: ClusterConnections::default(),
        })
    }

    fn change(&mut self, config: &[(&str, &str)]) -> Result<()> {
        self.cluster = cluster(config)?;
        Ok(())
    }

    fn goal(&self) -> SettingsGoal {
        let text = redis_conf(&self.cluster);
        SettingsGoal::of(&self.cluster, text, self.configurations.clone())
    }

    async fn look(&self) -> (Vec<Member>, ClusterSettings) {
        let goal = self.goal();
        let names = goal.names(&self.pods);
        let mut members =
            observe_settings(&self.servers.expected(), &names, &self.connections, TIMEOUT).await;
        recognize(&self.wanted, &mut members);
        let answers = self.tracker.answers(PLACE);
        let found = assess(&goal, &members, &self.pods, &answers, Timestamp::now());
        (members, found)
    }

    /// One reconcile: what was sent, and what came of it.
    async fn reconcile(&self) -> Result<Vec<LiveOutcome>> {
        let (members, found) = self.look().await;
        ensure!(found.nodes.len() == 3, "{found:?}");
        let wanted = changes(&found);
        let count = wanted.len();
        let outcomes = set(wanted, &members, &self.connections).await;
        ensure!(outcomes.len() == count, "{outcomes:?}");
        self.tracker.note(PLACE, &outcomes, Timestamp::now());
        Ok(outcomes)
    }

    /// A setting on every server.
    async fn values(&self, name: &str) -> Result<Vec<String>> {
        let mut values = Vec::new();
        for index in 0..self.servers.len() {
            let answer: Vec<String> = self
                .servers
                .server(index)
                .call(&format!("CONFIG GET {name}"))
                .await?;
            values.push(answer.get(1).cloned().context("no such setting")?);
        }
        Ok(values)
    }

    async fn all_have(&self, name: &str, value: &str) -> Result<()> {
        let values = self.values(name).await?;
        ensure!(values.iter().all(|one| one == value), "{name}: {values:?}");
        Ok(())
    }
}

/// Values that servers report otherwise are sent once, and once more to a controller that has just started.
#[tokio::test]
async fn settings_reach_every_server_without_a_restart() -> Result<()> {
    let mut stage = Stage::new().await?;
    stage.change(&[
        ("maxmemory-policy", "allkeys-lru"),
        ("maxclients", "200"),
        ("client-output-buffer-limit", "replica 256mb 64mb 60"),
        ("save", "900 1  300 10"),
        ("notify-keyspace-events", "AKE"),
    ])?;
    let outcomes = stage.reconcile().await?;
    ensure!(outcomes.len() == 3 * 6, "{outcomes:#?}");
    let taken = |one: &LiveOutcome| matches!(one.result, LiveResult::Reads(_));
    ensure!(outcomes.iter().all(taken), "{outcomes:#?}");
    ensure!(stage.reconcile().await?.is_empty());
    // Three quarters of the limit.
    stage.all_have("maxmemory", "50331648").await?;
    stage.all_have("maxmemory-policy", "allkeys-lru").await?;
    stage.all_have("save", "900 1 300 10").await?;
    let (_, found) = stage.look().await;
    ensure!(found.restart.is_empty(), "{found:?}");
    stage.tracker = SettingsTracker::default();
    let again = stage.reconcile().await?;
    let names: Vec<&str> = again.iter().map(|one| one.change.name.as_str()).collect();
    ensure!(
        !names.contains(&"maxclients") && names.len() < 3 * 6,
        "{names:?}"
    );
    ensure!(events(&again).is_empty(), "nothing has changed: {again:#?}");
    ensure!(stage.reconcile().await?.is_empty());

    // Another client changes one server; another server starts again with the redis.conf of its pod.
    let other = stage.servers.server(1);
    other
        .call::<()>("CONFIG SET maxmemory-policy noeviction")
        .await?;
    let drift = stage.reconcile().await?;
    ensure!(
        drift.len() == 1 && drift[0].change.pod == "test-1-0",
        "{drift:?}"
    );
    stage.all_have("maxmemory-policy", "allkeys-lru").await?;
    stage.servers.kill(2).await?;
    stage.servers.restart(2).await?;
    stage.wanted.formed_before = true;
    let drive = drive_pods(&stage.servers, &stage.wanted, Duration::from_secs(40)).await;
    ensure!(drive.assessment.is_healthy(), "{:?}", drive.assessment);
    let restarted = stage.reconcile().await?;
    ensure!(
        restarted.iter().all(|one| one.change.pod == "test-2-0"),
        "{restarted:?}"
    );
    stage.all_have("maxclients", "200").await?;
    stage.all_have("save", "900 1 300 10").await?;
    ensure!(stage.reconcile().await?.is_empty());
    Ok(())
}

/// Which settings need a restart is the server's word; a value that it refuses is named, and restarts nothing.
#[tokio::test]
async fn servers_say_what_they_refuse_and_take_at_start() -> Result<()> {
    let mut stage = Stage::new().await?;
    stage.change(&[("maxmemory-policy", "nonsense"), ("hz", "50")])?;
    stage.reconcile().await?;
    let (_, found) = stage.look().await;
    ensure!(found.restart.is_empty());
    stage.all_have("hz", "50").await?;
    for node in &found.nodes {
        let [one] = node.differing.as_slice() else {
            anyhow::bail!("{node:?}");
        };
        let SettingState::Refused { words } = &one.state else {
            anyhow::bail!("{one:?}");
        };
        ensure!(
            one.name == "maxmemory-policy" && words.contains("argument"),
            "{words}"
        );
    }
    ensure!(
        stage.reconcile().await?.is_empty(),
        "it is not asked in every reconcile"
    );

    stage.change(&[("databases", "20"), ("hz", "50")])?;
    stage.reconcile().await?;
    let (_, found) = stage.look().await;
    ensure!(found.restart.len() == 3, "{found:?}");
    ensure!(stage.reconcile().await?.is_empty());
    stage.change(&[])?;
    let (_, found) = stage.look().await;
    ensure!(found.restart.is_empty(), "{found:?}");
    Ok(())
}

/// The pod's own script with a real server, its files in a directory of the test.
async fn try_out(config: &[(&str, &str)]) -> Result<(ExitStatus, String)> {
    let cluster = cluster(config)?;
    let pod = trial_pod(&cluster, "test-trial-0", &configuration_name(&cluster));
    let spec = pod.spec.context("no spec")?;
    let command = spec.containers[0].command.clone().context("no command")?;
    let port = free_port()?.to_string();
    let root = std::env::temp_dir().join(format!("trial-{}-{port}", std::process::id()));
    let [files, data] = ["config", "data"].map(|name| root.join(name));
    for directory in [&files, &data] {
        fs::create_dir_all(directory)?;
    }
    fs::write(files.join("redis.conf"), redis_conf(&cluster))?;
    let path = |path: &Path| path.to_str().map(ToOwned::to_owned).context("no UTF-8");
    let script = command[2]
        .replace("/config", &path(&files)?)
        .replace("/data", &path(&data)?)
        .replace(
            "--bind 127.0.0.1",
            &format!("--bind 127.0.0.1 --port {port}"),
        )
        .replace("-h 127.0.0.1", &format!("-h 127.0.0.1 -p {port}"));
    let identity = ["POD_NAMESPACE", "POD_NAME", "POD_UID"].map(|name| (name, "x"));
    let log = fs::File::create(root.join("log"))?;
    let mut run = Command::new("sh");
    run.args(["-c", &script])
        .env("POD_IP", "127.0.0.1")
        .envs(identity);
    run.stdout(log.try_clone()?).stderr(log);
    // The end of a container ends its server; here that of a process group does.
    let mut child = run.process_group(0).spawn()?;
    let group = child.id().context("it has ended")?;
    let status = tokio::time::timeout(Duration::from_mins(1), child.wait()).await;
    Command::new("kill")
        .args(["-9", "--", &format!("-{group}")])
        .output()
        .await?;
    let said = fs::read_to_string(root.join("log"))?;
    fs::remove_dir_all(&root)?;
    Ok((status??, said))
}

/// A port of the loopback interface whose cluster bus port exists as well.
fn free_port() -> Result<u16> {
    loop {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        if port < 50_000 {
            return Ok(port);
        }
    }
}

/// What Kubernetes would report of the pod.
fn pod_of((status, said): &(ExitStatus, String)) -> Result<Pod> {
    let end = json!({"exitCode": status.code(), "reason": "Error", "message": said});
    let state = json!({"name": CONTAINER, "image": "redis", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": end}});
    let phase = if status.success() {
        "Succeeded"
    } else {
        "Failed"
    };
    let pod = json!({"metadata": {"name": "test-trial-0"}, "spec": {"containers": []}, "status": {"phase": phase, "containerStatuses": [state]}});
    Ok(serde_json::from_value(pod)?)
}

#[tokio::test]
async fn a_server_tries_a_configuration_and_names_what_it_refuses() -> Result<()> {
    let good = try_out(&[("maxmemory-policy", "allkeys-lru"), ("databases", "20")]).await?;
    ensure!(judge(&pod_of(&good)?) == TrialState::Accepted, "{good:?}");
    for (name, value, cause) in [
        (
            "maxmemory-policy",
            "nonsense",
            "argument(s) must be one of the following",
        ),
        (
            "no-such-setting",
            "1",
            "Bad directive or wrong number of arguments",
        ),
    ] {
        let TrialState::Refused { words } = judge(&pod_of(&try_out(&[(name, value)]).await?)?)
        else {
            anyhow::bail!("{name} {value} is not refused");
        };
        let expected = format!("{name} {value}: ");
        ensure!(
            words.starts_with(&expected) && words.contains(cause),
            "{words}"
        );
    }
    // Settings that make a server end later, while it starts.
    let late = try_out(&[("loadmodule", "/no/such/module.so")]).await?;
    let TrialState::Refused { words } = judge(&pod_of(&late)?) else {
        anyhow::bail!("{late:?}");
    };
    ensure!(words.contains("module"), "{words}");
    Ok(())
}

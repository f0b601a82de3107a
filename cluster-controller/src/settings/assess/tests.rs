use super::*;
use crate::{
    build::{configuration_name, redis_conf},
    redis::member::{Answer, ExpectedNode, WriteRefusal},
    settings::{answer::LiveOutcome, file::Configuration, live::changes, tracker::SettingsTracker},
    validate::{tests::example, validate},
};
use common::cluster::{
    info::{PersistenceInfo, ReplicationInfo, ServerInfo},
    topology::{ClusterInfo, NodesView},
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use proptest::prelude::*;
use serde_json::json;
use std::{sync::Arc, time::Duration};

const PLACE: (&str, &str) = ("team", "shop");
const POD: &str = "shop-0-0";
const GIBIBYTE: u64 = 1 << 30;

type Values = BTreeMap<String, String>;

fn values<const N: usize>(pairs: [(&str, &str); N]) -> Values {
    let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Values::from(pairs)
}

/// A cluster with one server, and what that server is like.
struct Stage {
    cluster: ValidatedCluster,
    configurations: Configurations,
    /// The ConfigMap of its pod.
    started: String,
    /// Memory limit of its pod, in bytes.
    limit: Option<u64>,
    annotation: Option<Values>,
    is_ending: bool,
    reported: Values,
    used_memory: u64,
    tracker: SettingsTracker,
    now: Timestamp,
}

impl Stage {
    fn new(config: &Values, limit: Option<u64>) -> Self {
        let cluster = cluster(config, limit);
        let mut stage = Self {
            started: configuration_name(&cluster),
            cluster,
            configurations: Configurations::new(),
            limit,
            annotation: None,
            is_ending: false,
            reported: Values::new(),
            used_memory: 0,
            tracker: SettingsTracker::default(),
            now: Timestamp::UNIX_EPOCH,
        };
        stage.remember();
        stage.start();
        stage
    }

    /// As `children::apply` does.
    fn remember(&mut self) {
        let configuration = Configuration {
            text: redis_conf(&self.cluster),
            trials: Vec::new(),
        };
        self.configurations
            .insert(configuration_name(&self.cluster), configuration);
    }

    fn change(&mut self, config: &Values, limit: Option<u64>) {
        self.cluster = cluster(config, limit);
        self.remember();
    }

    /// The process starts with the redis.conf of its pod.
    fn start(&mut self) {
        self.reported = DEFAULT_VALUES
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect();
        for (name, text) in settings(&self.configurations[&self.started].text) {
            self.reported
                .insert(name.clone(), normal(&name, &unquoted(&text)));
        }
    }

    /// A new pod.
    fn replace(&mut self) {
        self.started = configuration_name(&self.cluster);
        self.limit = memory(&self.cluster);
        self.annotation = None;
        self.start();
    }

    fn pods(&self) -> Pods {
        let limits = self
            .limit
            .map(|bytes| json!({"limits": {"memory": bytes.to_string()}}));
        let mut metadata = json!({"name": POD, "uid": "1"});
        if let Some(annotation) = &self.annotation {
            metadata["annotations"] =
                json!({ANNOTATION_LIVE_SETTINGS: json!(annotation).to_string()});
        }
        if self.is_ending {
            metadata["deletionTimestamp"] = json!(self.now);
        }
        let pod = json!({
            "metadata": metadata,
            "spec": {
                "containers": [{"name": CONTAINER, "resources": limits.unwrap_or_else(|| json!({}))}],
                "volumes": [{"name": "config", "configMap": {"name": self.started}}],
            },
        });
        [(
            POD.to_owned(),
            Arc::new(serde_json::from_value(pod).unwrap()),
        )]
        .into()
    }

    fn goal(&self) -> SettingsGoal {
        let text = redis_conf(&self.cluster);
        SettingsGoal::of(&self.cluster, text, self.configurations.clone())
    }

    fn look(&self) -> ClusterSettings {
        let (goal, pods) = (self.goal(), self.pods());
        let names = goal.names(&pods);
        let mut known = self.reported.clone();
        known.retain(|name, _| names.contains(name));
        let members = [member(known, self.used_memory)];
        assess(
            &goal,
            &members,
            &pods,
            &self.tracker.answers(PLACE),
            self.now,
        )
    }

    /// As `live_settings` does. How many values were sent.
    fn set(&mut self) -> usize {
        let found = self.look();
        if let Some(annotation) = &found.nodes[0].annotation {
            self.annotation = Some(annotation.clone());
        }
        let changes = changes(&found);
        let sent = changes.len();
        for change in changes {
            let result = answer(&change.name, &change.value);
            if let LiveResult::Reads(value) = &result {
                self.reported.insert(change.name.clone(), value.clone());
            }
            self.tracker
                .note(PLACE, &[LiveOutcome { change, result }], self.now);
        }
        sent
    }

    /// Until nothing is sent any more.
    fn settle(&mut self) -> ClusterSettings {
        for _ in 0..3 {
            if self.set() == 0 {
                return self.look();
            }
        }
        panic!("it never ends: {:?}", self.look());
    }

    fn states(&self) -> Vec<(String, SettingState)> {
        let node = self.look().nodes.remove(0);
        let states = node.differing.into_iter();
        states.map(|one| (one.name, one.state)).collect()
    }
}

fn cluster(config: &Values, limit: Option<u64>) -> ValidatedCluster {
    let mut object = example();
    object.spec.config = config.clone();
    object.spec.resources = limit.map(|bytes| ResourceRequirements {
        limits: Some([("memory".to_owned(), Quantity(bytes.to_string()))].into()),
        ..ResourceRequirements::default()
    });
    validate(&object, None, Timestamp::UNIX_EPOCH).unwrap()
}

fn memory(cluster: &ValidatedCluster) -> Option<u64> {
    crate::settings::values::memory_limit(cluster.resources.as_ref())
}

fn member(settings: Values, used_memory: u64) -> Member {
    let nodes = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 10.0.0.1:6379@16379 myself,master - 0 0 1 connected 0-5461\n";
    Member {
        expected: ExpectedNode::new(POD.into(), 0, 0),
        answer: Answer::Report(Box::new(Report {
            view: NodesView::parse(nodes).unwrap(),
            cluster: ClusterInfo::default(),
            server: ServerInfo::default(),
            replication: ReplicationInfo::default(),
            keys: 0,
            node_timeout: Duration::from_secs(5),
            proof: String::new(),
            feeds: true,
            users: crate::redis::users::ReportedUsers::default(),
            unserved: None,
            strays: 0,
            imports: false,
            settings,
            used_memory,
            persistence: PersistenceInfo::default(),
            refusal: WriteRefusal::default(),
        })),
    }
}

/// What the server has without a redis.conf.
const DEFAULT_VALUES: [(&str, &str); 4] = [
    ("maxmemory", "0"),
    ("maxclients", "10000"),
    ("databases", "16"),
    ("client-output-buffer-limit", "normal 0 0 0"),
];

/// How the server reports a value.
fn normal(name: &str, value: &str) -> String {
    match name {
        "client-output-buffer-limit" => format!("all of them: {value}"),
        "maxmemory" => value.replace("mb", "000000"),
        _ => value.to_owned(),
    }
}

/// What the server answers to `CONFIG SET`.
fn answer(name: &str, value: &str) -> LiveResult {
    match (name, value) {
        ("databases" | "loadmodule" | "io-threads", _) => LiveResult::OnlyAtStart,
        (_, "bad") => LiveResult::Refused("argument couldn't be parsed into an integer".into()),
        _ => LiveResult::Reads(normal(name, value)),
    }
}

fn differs(was: &str, drifted: bool) -> SettingState {
    SettingState::Differs {
        was: Some(was.into()),
        drifted,
    }
}

#[test]
fn a_changed_setting_is_set_once_and_needs_no_restart() {
    let mut stage = Stage::new(&values([]), None);
    assert!(stage.states().is_empty());
    stage.change(
        &values([("client-output-buffer-limit", "replica 1 2 3")]),
        None,
    );
    let name = "client-output-buffer-limit".to_owned();
    assert_eq!(stage.states(), [(name, differs("normal 0 0 0", false))]);
    assert_eq!((stage.set(), stage.set()), (1, 0));
    assert!(stage.states().is_empty() && stage.look().restart.is_empty());
}

#[test]
fn what_another_client_sets_is_drift() {
    let mut stage = Stage::new(&values([("maxclients", "99")]), None);
    stage.change(&values([("maxclients", "98")]), None);
    stage.settle();
    stage.reported.insert("maxclients".into(), "7".into());
    let drift = ("maxclients".to_owned(), differs("7", true));
    assert_eq!(stage.states(), [drift]);
    stage.settle();
    assert_eq!(stage.reported["maxclients"], "98");
    // The process starts again with what its pod was made with.
    stage.start();
    assert_eq!(stage.reported["maxclients"], "99");
    stage.settle();
    assert_eq!(stage.reported["maxclients"], "98");
}

#[test]
fn a_setting_for_the_start_replaces_the_pod() {
    let mut stage = Stage::new(&values([]), None);
    let wanted = values([("databases", "20"), ("loadmodule", "/a.so")]);
    stage.change(&wanted, None);
    let found = stage.settle();
    assert!(found.restart.contains(POD));
    let needs =
        ["databases", "loadmodule"].map(|name| (name.to_owned(), SettingState::NeedsRestart));
    assert_eq!(stage.states(), needs);
    stage.replace();
    // The server reports nothing of modules; its redis.conf has it.
    stage.reported.remove("loadmodule");
    assert_eq!(stage.settle(), {
        let mut same = found.clone();
        same.restart.clear();
        same.nodes[0].differing.clear();
        same
    });
}

#[test]
fn a_removed_setting_becomes_what_it_was() {
    let mut stage = Stage::new(&values([("maxclients", "99")]), None);
    stage.change(&values([]), None);
    let found = stage.settle();
    assert!(found.restart.contains(POD) && found.nodes[0].removed == ["maxclients"]);
    stage.replace();
    assert!(stage.settle().restart.is_empty());
    // One that was never in the redis.conf of the pod needs no restart.
    stage.change(&values([("maxclients", "99")]), None);
    stage.settle();
    assert_eq!(stage.annotation, Some(values([("maxclients", "10000")])));
    stage.change(&values([]), None);
    assert!(stage.settle().restart.is_empty());
    assert_eq!(stage.reported["maxclients"], "10000");
    stage.settle();
    assert_eq!(stage.annotation, Some(Values::new()));
}

#[test]
fn a_refused_value_is_tried_again_after_a_minute() {
    let mut stage = Stage::new(&values([]), None);
    stage.change(&values([("maxclients", "bad")]), None);
    let found = stage.settle();
    let words = "argument couldn't be parsed into an integer".to_owned();
    assert_eq!(
        stage.states(),
        [("maxclients".to_owned(), SettingState::Refused { words })]
    );
    assert!(found.restart.is_empty());
    stage.now += TRY_AGAIN;
    assert_eq!(stage.set(), 1);
    stage.change(&values([]), None);
    assert!(stage.settle().restart.is_empty());
}

/// The upgrade to a version that knows the default: it is set, and nothing is restarted.
#[test]
fn the_default_of_maxmemory_is_set_live() {
    let mut stage = Stage::new(&values([]), Some(GIBIBYTE));
    let configuration = stage.configurations.get_mut(&stage.started).unwrap();
    configuration.text = configuration.text.replace("maxmemory 805306368\n", "");
    stage.start();
    assert_eq!(stage.reported["maxmemory"], "0");
    stage.used_memory = 900_000_000;
    assert_eq!(
        stage.states(),
        [("maxmemory".to_owned(), SettingState::TooFull)]
    );
    stage.used_memory = 800_000_000;
    assert!(stage.settle().restart.is_empty());
    assert_eq!(stage.reported["maxmemory"], "805306368");
    // Another limit counts once the pod has it.
    stage.change(&values([]), Some(2 * GIBIBYTE));
    assert_eq!(stage.set(), 0);
    stage.limit = None;
    assert_eq!(stage.set(), 0);
    stage.replace();
    assert_eq!(
        (stage.set(), stage.reported["maxmemory"].as_str()),
        (0, "1610612736")
    );
}

/// A later version may write a setting into redis.conf that servers take only at their start.
#[test]
fn settings_of_the_controller_itself_replace_no_pod() {
    let stage = Stage::new(&values([]), None);
    let text = redis_conf(&stage.cluster) + "io-threads 2\n";
    let goal = SettingsGoal::of(&stage.cluster, text, stage.configurations.clone());
    let (members, pods) = ([member(stage.reported.clone(), 0)], stage.pods());
    let look = || {
        assess(
            &goal,
            &members,
            &pods,
            &stage.tracker.answers(PLACE),
            stage.now,
        )
    };
    for change in changes(&look()) {
        let result = answer(&change.name, &change.value);
        stage
            .tracker
            .note(PLACE, &[LiveOutcome { change, result }], stage.now);
    }
    let found = look();
    assert!(
        found.restart.is_empty() && found.nodes[0].differing.is_empty(),
        "{found:?}"
    );
}

/// While a configuration is held back, servers are compared with the one that their StatefulSet names.
#[test]
fn held_shards_keep_their_settings() {
    let mut stage = Stage::new(&values([("maxclients", "99")]), None);
    let held = crate::settings::template::NamedTemplate {
        image: "a:1".into(),
        resources: None,
        restart_hash: String::new(),
        configuration: stage.started.clone(),
        set: Arc::default(),
    };
    stage.change(&values([("maxclients", "bad"), ("databases", "20")]), None);
    stage.cluster.held = [(0, held.clone())].into();
    assert_eq!(stage.set(), 0);
    stage.reported.insert("maxclients".into(), "7".into());
    stage.settle();
    assert_eq!(stage.reported["maxclients"], "99");
    stage.cluster.held = [(
        0,
        crate::settings::template::NamedTemplate {
            configuration: "gone".into(),
            ..held
        },
    )]
    .into();
    assert!(stage.look().nodes.is_empty() && stage.look().restart.is_empty());
}

/// A rollout is not over while the server of its last pod still answers.
#[test]
fn a_pod_that_ends_is_outdated_and_gets_no_command() {
    let mut stage = Stage::new(&values([]), None);
    stage.change(&values([("databases", "20")]), None);
    assert!(stage.settle().restart.contains(POD));
    stage.is_ending = true;
    let found = stage.look();
    assert!(
        found.restart.contains(POD) && found.nodes.is_empty(),
        "{found:?}"
    );
}

#[derive(Clone, Debug)]
enum Happening {
    Change(Values),
    Drift(String, String),
    Restart,
    /// Memory of the controller is lost.
    Forget,
}

fn happening() -> impl Strategy<Value = Happening> {
    let name = prop::sample::select(vec![
        "maxclients",
        "databases",
        "client-output-buffer-limit",
        "maxmemory",
    ]);
    let value = prop::sample::select(vec!["1", "2mb", "16", "bad"]);
    let config = prop::collection::btree_map(name.clone(), value.clone(), 0..4);
    let config = config.prop_map(|config| {
        let pairs = config.into_iter();
        Happening::Change(
            pairs
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    });
    prop_oneof![
        3 => config,
        2 => (name, value).prop_map(|(name, value)| Happening::Drift(name.into(), value.into())),
        1 => Just(Happening::Restart),
        1 => Just(Happening::Forget),
    ]
}

/// A value that only a server's own redis.conf can have.
fn is_fixed(name: &str) -> bool {
    name == "databases"
}

proptest! {
    /// Whatever happens, values are sent a few times only; afterwards every server has what is wanted, or is to be replaced, or refuses
    /// it; and a spec that is taken back is in force again without a restart.
    #[test]
    fn every_setting_is_applied_refused_or_needs_a_restart(happenings in prop::collection::vec(happening(), 1..8)) {
        let first = values([("maxclients", "5"), ("databases", "8")]);
        let mut stage = Stage::new(&first, None);
        let mut config = first.clone();
        for happening in happenings {
            match happening {
                Happening::Change(next) => {
                    config = next;
                    stage.change(&config, None);
                }
                Happening::Drift(name, value) if !is_fixed(&name) && config.contains_key(&name) => {
                    let value = normal(&name, &value);
                    stage.reported.insert(name, value);
                }
                Happening::Drift(..) => {}
                Happening::Restart => stage.start(),
                Happening::Forget => stage.tracker = SettingsTracker::default(),
            }
            let found = stage.settle();
            let started = settings(&stage.configurations[&stage.started].text);
            let is_removed = started.keys().any(|name| !config.contains_key(name) && !DEFAULTS.contains(&name.as_str()));
            let is_due = config.iter().any(|(name, value)| is_fixed(name) && stage.reported[name] != *value);
            prop_assert_eq!(!found.restart.is_empty(), is_removed || is_due);
            for (name, value) in &config {
                let refuses = value == "bad" || is_fixed(name);
                prop_assert!(refuses || stage.reported[name] == normal(name, value), "{} {:?}", name, stage.reported);
            }
        }
        stage.change(&first, None);
        let found = stage.settle();
        prop_assert!(found.restart.is_empty() && found.nodes[0].differing.is_empty(), "{:?}", found);
        prop_assert_eq!(&stage.reported["maxclients"], "5");
    }
}

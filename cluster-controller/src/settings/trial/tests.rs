use super::*;
use crate::settings::{file::Configuration, template::NamedTemplate};
use serde_json::Value;
use std::collections::BTreeMap;

const OLD: &str = "maxclients 9\nsave \"\"\n";
const NEW: &str = "maxclients 99\nsave \"\"\n";

struct Stage {
    formed: bool,
    image: &'static str,
    text: &'static str,
    memory_by_limit: bool,
    certificates: bool,
    pod: &'static str,
    templates: NamedTemplates,
    configurations: Configurations,
    trials: Vec<Arc<Pod>>,
    pods: Pods,
}

fn now() -> Timestamp {
    "2026-01-01T10:00:00Z".parse().unwrap()
}

fn pod(name: &str, age: i64, status: &Value) -> Arc<Pod> {
    let created = now() - SignedDuration::from_secs(age);
    let metadata = json!({"name": name, "uid": "1", "creationTimestamp": created});
    let spec = json!({"containers": [{"name": crds::CONTAINER}]});
    let pod = json!({"metadata": metadata, "spec": spec, "status": status});
    Arc::new(serde_json::from_value(pod).unwrap())
}

/// A pod whose container has ended.
fn ended(code: i32, reason: &str, message: &str) -> Value {
    let end = json!({"exitCode": code, "reason": reason, "message": message});
    let state = json!({"name": crds::CONTAINER, "image": "a:1", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": end}});
    json!({"phase": "Failed", "containerStatuses": [state]})
}

fn unscheduled() -> Value {
    let why = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"});
    json!({"phase": "Pending", "conditions": [why]})
}

fn accepted() -> Value {
    json!({"phase": "Succeeded"})
}

impl Stage {
    /// Pods that run with `OLD`; `NEW` is wanted, and its ConfigMap is there.
    fn new() -> Self {
        let template = NamedTemplate {
            image: "a:1".into(),
            resources: None,
            restart_hash: "1".into(),
            configuration: "old".into(),
            set: Arc::default(),
        };
        let configuration = |text: &str| Configuration {
            text: text.into(),
            trials: Vec::new(),
        };
        Self {
            formed: true,
            image: "a:1",
            text: NEW,
            memory_by_limit: false,
            certificates: false,
            pod: "one",
            templates: BTreeMap::from([(0, template.clone()), (1, template)]),
            configurations: BTreeMap::from([
                ("old".into(), configuration(OLD)),
                ("new".into(), configuration(NEW)),
            ]),
            trials: Vec::new(),
            pods: Pods::new(),
        }
    }

    fn decide(&self) -> TrialDecision {
        let inputs = TrialInputs {
            cluster: "shop",
            formed: self.formed,
            image: self.image,
            name: "new",
            text: self.text,
            memory_by_limit: self.memory_by_limit,
            certificates: self.certificates,
            pod: &|| self.pod.to_owned(),
            templates: &self.templates,
            configurations: &self.configurations,
            trials: &self.trials,
            pods: &self.pods,
        };
        decide(&inputs, now())
    }

    /// Makes the pod that is asked for. Its name.
    fn create(&mut self, age: i64, status: &Value) -> String {
        self.trials.clear();
        let name = self.decide().create.unwrap();
        self.trials = vec![pod(&name, age, status)];
        name
    }

    /// As the ConfigMap remembers it.
    fn remember(&mut self, record: TrialRecord) {
        let new = self.configurations.get_mut("new").unwrap();
        new.trials = with_record(&new.trials, record);
    }
}

#[test]
fn only_a_new_configuration_or_image_is_tried() {
    let mut stage = Stage::new();
    stage.formed = false;
    assert_eq!(stage.decide(), TrialDecision::default());
    stage.formed = true;
    let first = stage.decide();
    let name = first.create.clone().unwrap();
    assert_eq!(first.gate, Gate::Trying(name.clone()));
    assert!(name.starts_with("shop-trial-") && name.len() == "shop-trial-".len() + DIGITS);
    stage.text = OLD;
    assert_eq!(stage.decide(), TrialDecision::default());
    // Another image is another trial of the same configuration.
    stage.image = "b:2";
    let other = stage.decide().create.unwrap();
    assert_ne!(other, name);
    // One StatefulSet of two is enough.
    stage.image = "a:1";
    stage.templates.get_mut(&1).unwrap().configuration = "gone".into();
    assert!(!stage.decide().gate.is_open());
    stage.templates.clear();
    assert!(stage.decide().gate.is_open());
}

#[test]
fn a_deleted_configuration_is_not_tried_again() {
    let mut stage = Stage::new();
    for template in stage.templates.values_mut() {
        template.configuration = "new".into();
    }
    stage.configurations.clear();
    assert_eq!(stage.decide(), TrialDecision::default());
}

#[test]
fn the_default_of_maxmemory_is_not_tried() {
    let mut stage = Stage::new();
    stage.text = "maxclients 9\nmaxmemory 805306368\nsave \"\"\n";
    assert!(!stage.decide().gate.is_open());
    stage.memory_by_limit = true;
    assert!(stage.decide().gate.is_open());
    stage.text = NEW;
    assert!(!stage.decide().gate.is_open());
}

#[test]
fn an_accepted_configuration_is_remembered_and_its_pod_deleted() {
    let mut stage = Stage::new();
    stage.create(5, &json!({"phase": "Running"}));
    assert!(!stage.decide().gate.is_open() && stage.decide().create.is_none());
    stage.create(5, &accepted());
    let decision = stage.decide();
    assert!(decision.gate.is_open() && decision.delete.is_empty());
    stage.remember(decision.record.unwrap());
    let decision = stage.decide();
    assert!(decision.gate.is_open() && decision.record.is_none());
    assert_eq!(decision.delete, stage.trials);
    // For another image that says nothing.
    stage.image = "b:2";
    assert!(!stage.decide().gate.is_open());
}

/// A server without TLS would not start with them, and one that was not built with it neither.
#[test]
fn certificates_are_tried_before_pods_get_them() {
    let mut stage = Stage::new();
    stage.create(5, &accepted());
    let record = stage.decide().record.unwrap();
    stage.remember(record);
    assert!(stage.decide().gate.is_open());
    (stage.certificates, stage.pod) = (true, "with certificates");
    assert!(!stage.decide().gate.is_open());
    stage.create(5, &accepted());
    let record = stage.decide().record.unwrap();
    stage.remember(record);
    assert!(stage.decide().gate.is_open());
}

/// What Redis 7.0.15 writes.
const REFUSAL: &str = "\n*** FATAL CONFIG FILE ERROR (Redis 7.0.15) ***\nReading the configuration file, at line 2\n>>> 'maxclients bad'\nargument couldn't be parsed into an integer\n";

#[test]
fn a_refused_configuration_is_named_until_it_is_corrected() {
    let mut stage = Stage::new();
    stage.create(5, &ended(REFUSED, "Error", REFUSAL));
    let decision = stage.decide();
    let error = decision.gate.error().unwrap().to_string();
    let words = "maxclients bad: argument couldn't be parsed into an integer";
    assert!(error.contains(words), "{error}");
    stage.remember(decision.record.unwrap());
    let known = stage.decide();
    assert_eq!(known.gate, decision.gate);
    assert!(known.create.is_none() && known.delete == stage.trials);
    stage.text = OLD;
    assert!(stage.decide().gate.is_open());
}

#[test]
fn a_pod_without_an_answer_is_made_again() {
    let mut stage = Stage::new();
    let name = stage.create(
        5,
        &ended(2, "Error", "no answer within 150 fifths of a second"),
    );
    let decision = stage.decide();
    assert!(decision.record.is_none() && decision.delete.is_empty());
    let error = decision.gate.error().unwrap().to_string();
    assert!(
        error.contains(&name) && error.contains("did not answer"),
        "{error}"
    );
    stage.create(90, &ended(137, "OOMKilled", ""));
    let decision = stage.decide();
    assert_eq!(decision.delete, stage.trials);
    let error = decision.gate.error().unwrap().to_string();
    assert!(
        error.contains("raise spec.resources.limits.memory"),
        "{error}"
    );
    stage.create(90, &json!({"phase": "Failed", "reason": "Evicted"}));
    assert!(
        stage
            .decide()
            .gate
            .error()
            .unwrap()
            .to_string()
            .contains("Evicted")
    );
}

/// A full Kubernetes keeps the pods as they are, unless none of them runs.
#[test]
fn without_room_the_pods_that_run_are_kept() {
    let mut stage = Stage::new();
    stage.create(90, &unscheduled());
    let runs = json!({"running": {"startedAt": "2026-01-01T09:00:00Z"}});
    let container = json!({"name": crds::CONTAINER, "image": "a:1", "imageID": "", "ready": true, "restartCount": 0, "state": runs});
    let running = json!({"phase": "Running", "containerStatuses": [container]});
    stage.pods = [("shop-0-0".to_owned(), pod("shop-0-0", 900, &running))].into();
    assert!(matches!(
        stage.decide().gate,
        Gate::Closed(TrialError::Stuck { .. })
    ));
    stage.pods = [("shop-0-0".to_owned(), pod("shop-0-0", 900, &unscheduled()))].into();
    assert!(stage.decide().gate.is_open());
}

#[test]
fn pods_of_earlier_trials_are_deleted() {
    let mut stage = Stage::new();
    stage.create(5, &json!({"phase": "Running"}));
    let earlier = pod("shop-trial-00000000", 5, &json!({"phase": "Running"}));
    stage.trials.push(Arc::clone(&earlier));
    assert_eq!(stage.decide().delete, [earlier]);
}

/// With other mounts, another user or other Kubernetes nodes the server may start.
#[test]
fn another_pod_tries_again_what_did_not_start() {
    let mut stage = Stage::new();
    let stuck = stage.create(900, &unscheduled());
    stage.pod = "two";
    let decision = stage.decide();
    assert_ne!(decision.create, Some(stuck.clone()));
    assert!(decision.create.is_some());
    assert_eq!(decision.delete[0].name_any(), stuck);

    stage.pod = "one";
    stage.create(5, &ended(REFUSED, "Error", REFUSAL));
    let record = stage.decide().record.unwrap();
    stage.remember(record);
    stage.trials.clear();
    assert!(stage.decide().gate.error().is_some());
    stage.pod = "two";
    assert!(stage.decide().create.is_some());
}

#[test]
fn a_configuration_remembers_a_few_images() {
    let record = |image: usize| TrialRecord {
        image: image.to_string(),
        refused: None,
        pod: String::new(),
    };
    let mut records = Vec::new();
    for image in 0..9 {
        records = with_record(&records, record(image % 6));
    }
    let images: Vec<&str> = records.iter().map(|one| one.image.as_str()).collect();
    assert_eq!(images, ["5", "0", "1", "2"]);
}

#[test]
fn a_refusal_keeps_the_words_of_the_server() {
    let log = "1:C 26 Nov 2026 10:00:00.000 # Fatal error, can't open config file '/config/redis.conf': No such file\n";
    for (said, expected) in [
        (
            REFUSAL,
            "maxclients bad: argument couldn't be parsed into an integer",
        ),
        (
            log,
            "Fatal error, can't open config file '/config/redis.conf': No such file",
        ),
        ("", "it says nothing"),
        (">>> 'open'", ">>> 'open'"),
    ] {
        assert_eq!(words(said), expected);
    }
}

use super::*;
use crate::{
    errors::ReconcileError,
    redis::{
        assess::assess,
        identity::known_nodes,
        member::{
            Answer, ExpectedNode, ForeignNode, Member, Report, TakeoverRequest, Wanted,
            WriteRefusal, ZoneLabel,
        },
        plan::{Blocker, Plan, plan},
        survey::Survey,
    },
    requeue,
    rollout::RolloutInputs,
    settings::{assess::ClusterSettings, trial::Gate},
    validate::{shape, tests::example, validate},
};
use common::{
    cluster::{
        info::{PersistenceInfo, ReplicationInfo, ServerInfo, UpstreamLink},
        topology::{ClusterInfo, NodeAddress, NodeId, NodesView},
    },
    kubernetes::{
        conditions::find,
        kstatus::{self, Kstatus},
    },
    sentence::LIMIT,
};
use crds::{ANNOTATION_RESTART_HASH, UpdateStrategy};
use k8s_openapi::{
    api::core::v1::{Pod, PodCondition, PodStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

const IDS: [&str; 6] = [
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
    "cccccccccccccccccccccccccccccccccccccccc",
    "dddddddddddddddddddddddddddddddddddddddd",
    "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee",
    "ffffffffffffffffffffffffffffffffffffffff",
];
const RANGES: [&str; 3] = ["0-5461", "5462-10922", "10923-16383"];

fn line(index: usize, myself: bool) -> String {
    let (shard, ordinal) = (index / 2, index % 2);
    let me = if myself { "myself," } else { "" };
    let address = format!("10.0.0.{}:6379@16379", index + 1);
    let id = IDS[index];
    match ordinal {
        0 => format!(
            "{id} {address} {me}master - 0 1 {shard} connected {}\n",
            RANGES[shard]
        ),
        _ => format!(
            "{id} {address} {me}slave {} 0 1 {shard} connected\n",
            IDS[index - 1]
        ),
    }
}

fn member(index: usize) -> Member {
    let view: String = (0..6).map(|other| line(other, other == index)).collect();
    Member {
        expected: ExpectedNode {
            address: Some(NodeAddress::new(
                format!("10.0.0.{}", index + 1).parse().unwrap(),
                6379,
            )),
            zone: ZoneLabel::Absent,
            ..ExpectedNode::new(
                format!("shop-{}-{}", index / 2, index % 2),
                index / 2,
                index % 2,
            )
        },
        answer: Answer::Report(Box::new(Report {
            view: NodesView::parse(&view).unwrap(),
            cluster: ClusterInfo {
                ok: true,
                slots_assigned: 16384,
                slots_ok: 16384,
                known_nodes: 6,
                size: 3,
                ..ClusterInfo::default()
            },
            server: ServerInfo {
                version: "7.0.15".into(),
                ..ServerInfo::default()
            },
            replication: ReplicationInfo {
                upstream: (index % 2 == 1).then(|| UpstreamLink {
                    up: true,
                    ..UpstreamLink::default()
                }),
                ..ReplicationInfo::default()
            },
            keys: 5,
            node_timeout: Duration::from_secs(5),
            persistence: PersistenceInfo::default(),
            refusal: WriteRefusal::default(),
            proof: String::new(),
            feeds: true,
            users: crate::redis::users::ReportedUsers::default(),
            unserved: None,
            strays: 0,
            imports: false,
            settings: BTreeMap::new(),
            used_memory: 0,
        })),
    }
}

fn observed(hash: &str) -> Observed {
    let pod = |name: String| {
        let annotations = [(ANNOTATION_RESTART_HASH.to_owned(), hash.to_owned())];
        let ready = PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            ..PodCondition::default()
        };
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                uid: Some(format!("uid-of-{name}")),
                annotations: Some(annotations.into()),
                ..ObjectMeta::default()
            },
            status: Some(PodStatus {
                conditions: Some(vec![ready]),
                ..PodStatus::default()
            }),
            ..Pod::default()
        };
        (name, Arc::new(pod))
    };
    let members: Vec<Member> = (0..6).map(member).collect();
    let names = members.iter().map(|member| member.expected.pod.clone());
    Observed {
        pods: names.map(pod).collect::<HashMap<_, _>>(),
        members,
        passed_over: false,
    }
}

/// A node is gone: it does not answer, and no other one has a link to it.
fn lose(observed: &mut Observed, lost: &[usize]) {
    for (index, member) in observed.members.iter_mut().enumerate() {
        let Answer::Report(report) = &mut member.answer else {
            continue;
        };
        let lines = (0..6).map(|other| {
            let line = line(other, other == index);
            if lost.contains(&other) {
                line.replace("master - ", "master,fail - ")
                    .replace(" connected", " disconnected")
            } else {
                line
            }
        });
        report.view = NodesView::parse(&lines.collect::<String>()).unwrap();
    }
    for index in lost {
        observed.members[*index].answer = Answer::Unresponsive("no route".into());
    }
}

fn status_of(object: &RedisCluster, observed: &Observed, second: i64) -> RedisClusterStatus {
    look(object, observed, second, None, None).0
}

/// The status, and how soon to look again. `failed`: what keeps the spec from being acted upon; `blocker`: all that is left to do.
fn look(
    object: &RedisCluster,
    observed: &Observed,
    second: i64,
    failed: Option<&Failure>,
    blocker: Option<Blocker>,
) -> (RedisClusterStatus, Duration) {
    let (status, again, _) = explain(object, observed, second, failed, blocker);
    (status, again)
}

/// As [`look`], with what is logged.
fn explain(
    object: &RedisCluster,
    observed: &Observed,
    second: i64,
    failed: Option<&Failure>,
    blocker: Option<Blocker>,
) -> (RedisClusterStatus, Duration, Vec<String>) {
    let now = Timestamp::from_second(second).unwrap();
    let shape = shape(object).unwrap();
    let validated = validate(object, None, now);
    let wrong = validated.as_ref().err();
    let wrong = wrong.map(|error| Failure::of(&ReconcileError::from(error.clone())));
    let known = known_before(object);
    let wanted: Wanted = crate::observe::wanted(&shape, formed_before(object), known);
    let survey = Survey::of(&wanted, &observed.members);
    let known = known_nodes(&wanted, &observed.members);
    let assessment = assess(&survey);
    let plan = match blocker {
        Some(blocker) => Plan {
            blockers: vec![blocker],
            ..Plan::default()
        },
        None => plan(&survey, now),
    };
    let rollout = validated.as_ref().map(|cluster| {
        RolloutInputs {
            cluster,
            observed,
            survey: &survey,
            assessment: &assessment,
            plan: &plan,
            restart: &BTreeSet::new(),
            written: &(0..cluster.shape.shards).collect(),
            now,
        }
        .decide()
    });
    let rollout = rollout.unwrap_or_default();
    let operation = Operation::of_rollout(&rollout, 6, None);
    let found = StatusInputs {
        shape: &shape,
        cluster: validated.as_ref().ok(),
        failure: wrong.as_ref().or(failed),
        observed,
        known: &known,
        assessment: &assessment,
        plan: &plan,
        rollout: &rollout,
        operation: operation.as_ref(),
        growth: None,
        gate: &Gate::Open,
        settings: &ClusterSettings::default(),
        loss: None,
        users: &UsersReport::default(),
        certificates: &CertificatesReport::default(),
        access: &AccessReport::default(),
    };
    let status = compute(object, &found, now);
    let outcome = match found.failure {
        Some(failure) => requeue::failed(failure.reason, &status, &found, now),
        None => requeue::outcome(&status, &found, now),
    };
    let texts = new_texts(object, &status, &found, now);
    (status, outcome.again.unwrap(), texts)
}

fn hash(object: &RedisCluster) -> String {
    let cluster = validate(object, None, Timestamp::UNIX_EPOCH).unwrap();
    cluster.restart_hash
}

fn condition_of(status: &RedisClusterStatus, kind: &str) -> (String, String) {
    let condition = find(&status.conditions, kind).unwrap();
    (condition.status.clone(), condition.reason.clone())
}

#[test]
fn a_healthy_cluster_is_ready_and_its_status_stays() {
    let mut object = example();
    let observed = observed(&hash(&object));
    let status = status_of(&object, &observed, 10);
    assert_eq!(status.phase.as_deref(), Some("Ready"));
    assert_eq!(
        (status.size, status.ready_shards, status.ready_nodes),
        (6, 3, 6)
    );
    assert_eq!(status.slots.ok, 16384);
    assert_eq!(status.version.running.as_deref(), Some("Redis 7.0.15"));
    assert_eq!(status.shard_statuses[1].slot_ranges, ["5462-10922"]);
    for kind in [
        "Ready",
        "Available",
        "Formed",
        "SlotsCovered",
        "ReplicationHealthy",
        "QuorumHealthy",
        "UpToDate",
    ] {
        assert_eq!(condition_of(&status, kind).0, "True", "{kind}");
    }
    object.status = Some(status.clone());
    let again = status_of(&object, &observed, 99);
    assert_eq!(again, status);
}

#[test]
fn a_lost_primary_is_down_and_stays_formed() {
    let mut object = example();
    let mut observed = observed(&hash(&object));
    object.status = Some(status_of(&object, &observed, 10));
    lose(&mut observed, &[2]);
    let status = status_of(&object, &observed, 20);
    assert_eq!(status.phase.as_deref(), Some("Down"));
    assert_eq!(status.slots.ok, 16384 - 5461);
    assert_eq!(condition_of(&status, "Formed").0, "True");
    assert_eq!(condition_of(&status, "QuorumHealthy").0, "True");
    assert_eq!(
        condition_of(&status, "Ready"),
        ("False".into(), "NotHealthy".into())
    );
    lose(&mut observed, &[2, 4]);
    let status = status_of(&object, &observed, 30);
    assert_eq!(
        condition_of(&status, "QuorumHealthy"),
        ("False".into(), "MajorityLost".into())
    );
}

/// The controller is not a witness that counts more than the node's peers.
#[test]
fn a_primary_that_its_peers_reach_is_not_down() {
    let mut object = example();
    let mut observed = observed(&hash(&object));
    object.status = Some(status_of(&object, &observed, 10));
    observed.members[2].answer = Answer::Unresponsive("no answer in time".into());
    let status = status_of(&object, &observed, 20);
    assert_eq!(status.phase.as_deref(), Some("Degraded"));
    assert_eq!(status.slots.ok, 16384);
    assert_eq!(condition_of(&status, "Available").0, "True");
}

#[test]
fn a_foreign_server_is_named_in_ready() {
    let mut object = example();
    let mut observed = observed(&hash(&object));
    object.status = Some(status_of(&object, &observed, 10));
    let known = &object.status.as_ref().unwrap().nodes;
    assert_eq!(known.len(), 6);
    let report = observed.members[2].report().unwrap();
    let foreign = ForeignNode {
        id: NodeId::from_bytes([7; 20]),
        known_nodes: report.view.nodes().len(),
    };
    lose(&mut observed, &[2]);
    observed.members[2].answer = Answer::Foreign(foreign);
    let status = status_of(&object, &observed, 20);
    let ready = find(&status.conditions, "Ready").unwrap();
    assert_eq!(ready.reason, "ForeignNode");
    assert!(
        ready.message.starts_with("pod shop-1-0:"),
        "{}",
        ready.message
    );
    assert!(ready.message.len() <= 256, "{}", ready.message);
    let still = status.nodes.iter().any(|node| node.pod == "shop-1-0");
    assert!(still, "the node that is away is forgotten");
}

#[test]
fn outdated_pods_are_named_with_the_cure() {
    let mut object = example();
    let observed = observed(&hash(&object));
    object.status = Some(status_of(&object, &observed, 10));
    object.spec.image = Some("other:2".into());
    object.spec.update.strategy = UpdateStrategy::OnDelete;
    let status = status_of(&object, &observed, 20);
    assert_eq!(
        condition_of(&status, "UpToDate"),
        ("False".into(), "PodsOutdated".into())
    );
    assert_eq!(status.operation, None);
    let message = &find(&status.conditions, "UpToDate").unwrap().message;
    assert!(
        message.contains("shop-0-0") && message.contains("one at a time"),
        "{message}"
    );
    assert_eq!(status.phase.as_deref(), Some("Ready"));
}

#[test]
fn an_update_is_an_operation_until_it_ends() {
    let mut object = example();
    let observed = observed(&hash(&object));
    object.status = Some(status_of(&object, &observed, 10));
    object.spec.image = Some("other:2".into());
    let status = status_of(&object, &observed, 20);
    assert_eq!(status.phase.as_deref(), Some("Updating"));
    for condition in ["Ready", "UpToDate"] {
        let found = condition_of(&status, condition);
        assert_eq!(found, ("False".into(), "Updating".into()), "{condition}");
    }
    assert_eq!(condition_of(&status, "Available").0, "True");
    let operation = status.operation.clone().unwrap();
    assert_eq!((operation.done, operation.total), (0, 6));
    assert!(
        operation.message.contains("shop-0-1"),
        "{}",
        operation.message
    );
    // It keeps its beginning.
    object.status = Some(status);
    let later = status_of(&object, &observed, 30).operation.unwrap();
    assert_eq!(later.start_time, operation.start_time);
}

/// A scheduler names the cause of every Kubernetes node.
#[test]
fn the_cure_survives_many_pods_and_long_causes() {
    let mut object = example();
    object.spec.update.strategy = UpdateStrategy::OnDelete;
    let mut observed = observed("older");
    let status = status_of(&object, &observed, 10);
    let outdated = &find(&status.conditions, "UpToDate").unwrap().message;
    assert!(
        outdated.starts_with("6 pods (shop-0-0, shop-0-1, …)"),
        "{outdated}"
    );
    assert!(
        outdated.ends_with("each when the cluster is Ready again"),
        "{outdated}"
    );
    let cure = "make room for it, or correct the resources and the storage";
    let cause = "0/12 nodes are available: ".to_owned() + &"1 node(s) were away, ".repeat(13);
    assert!(cause.len() > 290, "{}", cause.len());
    let why = format!("not scheduled: {cause}; {cure}");
    for member in &mut observed.members {
        member.answer = Answer::Absent(why.clone());
    }
    let status = status_of(&object, &observed, 10);
    for condition in &status.conditions {
        let message = &condition.message;
        assert!(message.chars().count() <= LIMIT, "{message}");
    }
    for message in [
        status.message.as_ref().unwrap(),
        &find(&status.conditions, "Ready").unwrap().message,
    ] {
        assert!(
            message.contains("6 pods (shop-0-0, shop-0-1, …): not scheduled: 0/12"),
            "{message}"
        );
        assert!(message.contains(cure), "{message}");
    }
}

/// Six pods whose image cannot be pulled: one sentence with their names; the log has all of it, once.
#[test]
fn one_cause_of_six_pods_is_one_short_sentence() {
    let mut object = example();
    let mut observed = observed(&hash(&object));
    let cause = "x".repeat(400);
    for member in &mut observed.members {
        member.answer = Answer::Absent(format!("cannot pull image {cause}; correct spec.image"));
    }
    let (status, _, texts) = explain(&object, &observed, 10, None, None);
    let message = status.message.clone().unwrap();
    assert_eq!(message.chars().count(), LIMIT, "{message}");
    assert_eq!(message.matches("cannot pull").count(), 1, "{message}");
    let object_and_cause = "6 pods (shop-0-0, shop-0-1, …): cannot pull image ";
    assert!(message.contains(object_and_cause), "{message}");
    assert!(message.ends_with("xxx…; correct spec.image"), "{message}");
    let full = format!("{object_and_cause}{cause}; correct spec.image");
    assert!(texts.iter().any(|text| text.ends_with(&full)), "{texts:?}");
    object.status = Some(status);
    let (_, _, texts) = explain(&object, &observed, 20, None, None);
    assert!(texts.is_empty(), "{texts:?}");
}

#[test]
fn a_spec_that_cannot_be_acted_upon_is_said_so() {
    let object = example();
    let error = InvalidSpec::UnknownVersion("redis-9".into());
    let status = invalid(&object, &error, Timestamp::UNIX_EPOCH);
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(
        condition_of(&status, "Ready"),
        ("False".into(), "VersionNotFound".into())
    );
    assert!(status.message.unwrap().contains("redis-9"));
}

/// Also of a node whose pod is not there while the spec does not ask for it.
#[test]
fn until_when_a_node_had_everything_is_kept() {
    let mut object = example();
    let mut observed = observed(&hash(&object));
    object.status = Some(status_of(&object, &observed, 10));
    let id = observed.members[5].report().unwrap().id();
    let (last, time) = (
        observed.members.len() - 1,
        Timestamp::from_second(5).unwrap(),
    );
    observed.members[last].answer = Answer::Absent("there is no such pod".into());
    observed.members[last].expected.current_until = [(id, time)].into();
    let until = |status: &RedisClusterStatus| {
        let mut nodes = status.nodes.iter();
        let node = nodes.find(|node| node.node_id == id.to_string());
        node.unwrap().current_until.as_ref().map(|time| time.0)
    };
    let status = status_of(&object, &observed, 20);
    assert_eq!(until(&status), Some(time));
    object.status = Some(status);
    let mut gone = observed.clone();
    gone.members.truncate(last);
    assert_eq!(until(&status_of(&object, &gone, 30)), Some(time));
    observed.members[last] = member(last);
    assert_eq!(until(&status_of(&object, &observed, 40)), None);
}

/// The nodes are described as they are, whatever is wrong with the spec.
#[test]
fn a_wrong_edit_hides_nothing_of_the_nodes() {
    let mut object = example();
    let mut observed = observed(&hash(&object));
    object.status = Some(status_of(&object, &observed, 10));
    object.spec.image = None;
    object.spec.version = Some("redis-9".into());
    object.metadata.generation = Some(2);
    let wrong = status_of(&object, &observed, 20);
    let refused = ("False".to_owned(), "VersionNotFound".to_owned());
    assert_eq!(condition_of(&wrong, "Ready"), refused);
    assert_eq!(condition_of(&wrong, "Progressing"), refused);
    assert_eq!(condition_of(&wrong, "Available").0, "True");
    assert_eq!(condition_of(&wrong, "UpToDate").0, "Unknown");
    assert_eq!(wrong.phase.as_deref(), Some("Degraded"));
    assert_eq!(wrong.observed_generation, Some(2));
    assert!(wrong.message.unwrap().contains("redis-9"));
    let image = object.status.as_ref().unwrap().version.image.clone();
    assert_eq!(wrong.version.image, image);
    lose(&mut observed, &[2]);
    let down = status_of(&object, &observed, 30);
    assert_eq!(down.phase.as_deref(), Some("Down"));
    assert_eq!(condition_of(&down, "Available").0, "False");
    assert_eq!(down.slots.ok, 16384 - 5461);
}

#[test]
fn a_refusal_is_an_answer_and_a_hiccup_is_none() {
    let mut object = example();
    let observed = observed(&hash(&object));
    object.status = Some(status_of(&object, &observed, 10));
    object.metadata.generation = Some(2);
    let failure = |transient| Failure {
        reason: "RefusedByServer",
        message: "apply StatefulSet team/shop-0: refused".into(),
        transient,
    };
    let (refused, again) = look(&object, &observed, 20, Some(&failure(false)), None);
    let ready = ("False".to_owned(), "RefusedByServer".to_owned());
    assert_eq!(condition_of(&refused, "Ready"), ready);
    assert_eq!(refused.observed_generation, Some(2));
    assert!(refused.message.unwrap().contains("StatefulSet team/shop-0"));
    assert_eq!(again.as_secs(), 30);
    let (hiccup, _) = look(&object, &observed, 20, Some(&failure(true)), None);
    assert_eq!(condition_of(&hiccup, "Ready").0, "True");
    assert_eq!(condition_of(&hiccup, "Progressing").0, "True");
    assert_eq!(hiccup.observed_generation, Some(1));
}

/// A replica that finds no room must not keep the cluster from being called what it is, nor its data from being protected.
#[test]
fn a_cluster_that_serves_is_formed() {
    let mut object = example();
    let mut observed = observed(&hash(&object));
    observed.members[5].answer = Answer::Absent("not scheduled: no room".into());
    let first = status_of(&object, &observed, 10);
    assert_eq!(condition_of(&first, "Formed").0, "True");
    assert_eq!(first.phase.as_deref(), Some("Forming"));
    object.status = Some(first);
    let later = status_of(&object, &observed, 100);
    assert_eq!(later.phase.as_deref(), Some("Degraded"));
    let words = later.message.as_deref().unwrap();
    assert!(
        words.contains("shop-2-1") && words.contains("no room"),
        "{words}"
    );
    // It stays formed whatever comes.
    object.status = Some(later);
    observed.members[0].answer = Answer::Unresponsive("no route".into());
    let down = status_of(&object, &observed, 200);
    assert_eq!(condition_of(&down, "Formed").0, "True");
    // Nodes that do not serve yet have not formed a cluster.
    let mut young = example();
    let Answer::Report(report) = &mut observed.members[4].answer else {
        unreachable!()
    };
    report.cluster.ok = false;
    let status = status_of(&young, &observed, 10);
    assert_eq!(condition_of(&status, "Formed").0, "False");
    young.status = Some(status);
}

#[test]
fn looks_become_seldom_when_nothing_happens() {
    let mut object = example();
    let mut observed = observed(&hash(&object));
    let (ready, again) = look(&object, &observed, 10, None, None);
    assert_eq!(again.as_secs(), 5);
    object.status = Some(ready);
    observed.members[5].answer = Answer::Absent("not scheduled".into());
    let again = |object: &RedisCluster, observed: &Observed, second| {
        let (status, again) = look(object, observed, second, None, None);
        (status, again.as_millis())
    };
    let (status, first) = again(&object, &observed, 100);
    assert_eq!(first, 300);
    object.status = Some(status);
    assert_eq!(again(&object, &observed, 159).1, 300);
    assert_eq!(again(&object, &observed, 161).1, 2000);
    assert_eq!(again(&object, &observed, 100 + 601).1, 10_000);
    // A container that has just started is an event.
    let pod = Arc::make_mut(observed.pods.get_mut("shop-2-1").unwrap());
    let container = serde_json::json!({"name": crds::CONTAINER, "image": "", "imageID": "", "ready": false, "restartCount": 0,
                                       "state": {"running": {"startedAt": "1970-01-01T00:11:40Z"}}});
    pod.status.as_mut().unwrap().container_statuses =
        Some(vec![serde_json::from_value(container).unwrap()]);
    assert_eq!(again(&object, &observed, 100 + 601).1, 300);
    // What only a person can end.
    let lost = Blocker::SlotsLost {
        slots: "0-5461".into(),
        count: 5462,
        holders: Vec::new(),
    };
    let (_, stuck) = look(&object, &observed, 5000, None, Some(lost));
    assert_eq!(stuck.as_secs(), 30);
}

/// The moment when its link comes up raises no event, and its pod is to be ready then.
#[test]
fn an_unlinked_replica_is_polled_until_it_is_linked() {
    let mut object = example();
    let mut observed = observed(&hash(&object));
    object.status = Some(status_of(&object, &observed, 10));
    let Answer::Report(report) = &mut observed.members[5].answer else {
        unreachable!()
    };
    report.replication.upstream = Some(UpstreamLink::default());
    let again = |object: &RedisCluster, observed: &Observed, second, failed| {
        let (status, again) = look(object, observed, second, failed, None);
        (status, again.as_millis())
    };
    let (status, first) = again(&object, &observed, 100, None);
    assert!(first <= 300, "{first}");
    object.status = Some(status);
    assert_eq!(again(&object, &observed, 100 + 7200, None).1, 2000);
    let refused = Failure {
        reason: "RefusedByServer",
        message: "apply StatefulSet team/shop-0: refused".into(),
        transient: false,
    };
    let later = 100 + 7200;
    assert_eq!(again(&object, &observed, later, Some(&refused)).1, 2000);
    object.spec.paused = true;
    assert_eq!(again(&object, &observed, later, None).1, 2000);
    // The last nodes load their data while the spec is refused.
    object.spec.paused = false;
    for member in &mut observed.members {
        member.answer = Answer::Loading;
    }
    assert_eq!(again(&object, &observed, later, Some(&refused)).1, 2000);
}

/// What only a person ends is a reason of its own, which makes an Event.
#[test]
fn what_a_person_has_to_end_is_named() {
    let object = example();
    let healthy = observed(&hash(&object));
    let ready = |observed: &Observed| {
        let status = status_of(&object, observed, 20);
        let condition = find(&status.conditions, "Ready").unwrap();
        (condition.reason.clone(), condition.message.clone())
    };
    let mut loading = healthy.clone();
    loading.members[3].answer = Answer::Loading;
    assert_eq!(ready(&loading).0, NOT_HEALTHY);
    loading.members[3].expected.why_loading = Some("for more than an hour".into());
    let (reason, words) = ready(&loading);
    assert_eq!(reason, "LoadingSlow");
    assert_eq!(
        words,
        "pod shop-1-1: loading its data for more than an hour"
    );
    let mut full = healthy.clone();
    let Answer::Report(report) = &mut full.members[0].answer else {
        panic!("no report")
    };
    report.persistence.append_failed = true;
    let (reason, words) = ready(&full);
    assert_eq!(reason, "DiskRefusesWrites");
    assert!(
        words.contains("shop-0-0") && words.contains("make room"),
        "{words}"
    );
    let mut memory = healthy;
    memory.members[3].answer = Answer::Unresponsive("crash-looping (OOMKilled)".into());
    let pod = Arc::make_mut(memory.pods.get_mut("shop-1-1").unwrap());
    pod.status = Some(
        serde_json::from_value(serde_json::json!({"containerStatuses": [
            {"name": crds::CONTAINER, "image": "", "imageID": "", "ready": false, "restartCount": 3,
             "state": {"waiting": {"reason": "CrashLoopBackOff"}},
             "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]}))
        .unwrap(),
    );
    assert_eq!(ready(&memory).0, "OutOfMemory");
}

#[test]
fn kstatus_reads_every_state() {
    let read = |object: &RedisCluster, status: RedisClusterStatus| {
        let mut object = object.clone();
        object.status = Some(status);
        kstatus::evaluate(&serde_json::to_value(&object).unwrap())
    };
    let mut object = example();
    let healthy = observed(&hash(&object));
    let ready = status_of(&object, &healthy, 10);
    assert_eq!(read(&object, ready.clone()), Kstatus::Current);
    object.status = Some(ready);

    let mut lost = observed(&hash(&object));
    lose(&mut lost, &[2]);
    assert_eq!(
        read(&object, status_of(&object, &lost, 20)),
        Kstatus::InProgress
    );
    let blocker = Blocker::SlotsLost {
        slots: "0-5461".into(),
        count: 5462,
        holders: Vec::new(),
    };
    let (stuck, _) = look(&object, &lost, 20, None, Some(blocker));
    assert_eq!(read(&object, stuck), Kstatus::Failed);

    let failure = |transient| Failure {
        reason: "RefusedByServer",
        message: "apply StatefulSet team/shop-0: refused".into(),
        transient,
    };
    object.metadata.generation = Some(2);
    let (refused, _) = look(&object, &healthy, 20, Some(&failure(false)), None);
    assert_eq!(read(&object, refused), Kstatus::Failed);
    let (retried, _) = look(&object, &healthy, 20, Some(&failure(true)), None);
    assert_eq!(read(&object, retried), Kstatus::InProgress);
    let error = InvalidSpec::UnknownVersion("redis-9".into());
    let unknown = invalid(&object, &error, Timestamp::UNIX_EPOCH);
    assert_eq!(read(&object, unknown), Kstatus::Failed);

    object.spec.paused = true;
    assert_eq!(
        read(&object, status_of(&object, &healthy, 20)),
        Kstatus::Current
    );
    assert_eq!(
        read(&object, status_of(&object, &lost, 20)),
        Kstatus::Failed
    );
}

/// A node is recorded with its pod and its Kubernetes node, and stays so while it is away.
#[test]
fn a_node_keeps_where_it_was_last_seen() {
    let mut object = example();
    let mut observed = observed(&hash(&object));
    for (name, pod) in &mut observed.pods {
        let pod = Arc::make_mut(pod);
        pod.metadata.uid = Some(format!("uid of {name}"));
        let spec = serde_json::json!({"nodeName": "n1", "containers": [], "terminationGracePeriodSeconds": 20});
        pod.spec = Some(serde_json::from_value(spec).unwrap());
    }
    object.status = Some(status_of(&object, &observed, 10));
    lose(&mut observed, &[2]);
    let pod = Arc::make_mut(observed.pods.get_mut("shop-1-0").unwrap());
    pod.metadata.uid = Some("another".into());
    pod.spec.as_mut().unwrap().node_name = Some("n2".into());
    object.status = Some(status_of(&object, &observed, 20));
    let seen = last_seen_before(&object);
    let seen = &seen[&IDS[2].parse().unwrap()];
    assert_eq!(seen.pod_uid.as_deref(), Some("uid of shop-1-0"));
    assert_eq!(seen.kubernetes_node.as_deref(), Some("n1"));
    assert_eq!(seen.grace, Some(20));
}

/// The annotation counts for a loss that is there, once, and never for one that is yet to come.
#[test]
fn a_takeover_is_asked_for_once() {
    let annotate = |object: &mut RedisCluster, value: &str| {
        let annotations = object.metadata.annotations.get_or_insert_default();
        annotations.insert(crds::ANNOTATION_TAKEOVER.to_owned(), value.to_owned());
    };
    let requested = |object: &RedisCluster| shape(object).unwrap().recovery.requested;
    let mut object = example();
    let mut observed = observed(&hash(&object));
    object.status = Some(status_of(&object, &observed, 10));
    let whole = observed.clone();
    lose(&mut observed, &[2, 4]);
    annotate(&mut object, "all");
    object.status = Some(status_of(&object, &observed, 20));
    assert_eq!(
        requested(&object),
        TakeoverRequest::All,
        "it is still to be done"
    );
    object.status = Some(status_of(&object, &whole, 30));
    assert_eq!(requested(&object), TakeoverRequest::None);
    object.status = Some(status_of(&object, &observed, 40));
    assert_eq!(requested(&object), TakeoverRequest::None, "it counted once");
    annotate(&mut object, "all@2");
    assert_eq!(requested(&object), TakeoverRequest::All);
}

/// The Event is gone after an hour, and the cluster is Ready again.
#[test]
fn given_up_keys_stay_in_the_status() {
    let now = Timestamp::from_second(10).unwrap();
    let lost = LossStatus {
        time: Time(now),
        message: "slots 0-9 are served empty".to_owned(),
    };
    let mut object = example();
    let observed = observed(&hash(&object));
    object.status = Some(status_of(&object, &observed, 10));
    if let Some(status) = &mut object.status {
        status.last_loss = Some(lost.clone());
    }
    assert_eq!(status_of(&object, &observed, 20).last_loss, Some(lost));
}

/// Hand-overs improve a cluster that is healthy.
#[test]
fn a_cluster_that_is_being_spread_is_ready() {
    let object = example();
    let mut observed = observed(&hash(&object));
    for (index, member) in observed.members.iter_mut().enumerate() {
        let node = if index % 2 == 0 { "one" } else { "two" };
        member.expected.kubernetes_node = Some(node.into());
    }
    let status = status_of(&object, &observed, 10);
    assert_eq!(condition_of(&status, "Ready").0, "True");
    let mut formed = object.clone();
    formed.status = Some(status);
    let (again, delay) = look(&formed, &observed, 20, None, None);
    assert_eq!(condition_of(&again, "Ready").0, "True");
    assert_eq!(
        delay,
        requeue::SOON,
        "one of three primaries moves to the other node"
    );
}

/// Until its pods start, nothing happens to a cluster that has yet to be formed.
#[test]
fn missing_pods_are_not_polled_for() {
    let object = example();
    let mut observed = observed(&hash(&object));
    lose(&mut observed, &[2]);
    let delay = |observed: &Observed| {
        let waiting = Blocker::WaitingForNodes {
            pods: Vec::new(),
            absent: 0,
        };
        look(&object, observed, 10, None, Some(waiting)).1
    };
    assert_eq!(delay(&observed), requeue::SOON);
    observed.members[2].expected.address = None;
    assert!(delay(&observed) > requeue::SOON);
}

/// A node that has met the others becomes a replica in the next reconcile.
#[test]
fn the_step_after_an_introduction_follows_at_once() {
    let object = example();
    let mut observed = observed(&hash(&object));
    let Answer::Report(report) = &mut observed.members[5].answer else {
        panic!("no report");
    };
    let line = line(5, true).replace(&format!("slave {}", IDS[4]), "master -");
    report.view = NodesView::parse(&line).unwrap();
    report.keys = 0;
    let (_, again) = look(&object, &observed, 10, None, None);
    assert!(again < requeue::SOON, "{again:?}");
    // What does not come about by itself is not tried ten times a second.
    let (status, _) = look(&object, &observed, 10, None, None);
    let old = RedisCluster {
        status: Some(status),
        ..object
    };
    let (_, again) = look(&old, &observed, 200, None, None);
    assert!(again > requeue::SOON, "{again:?}");
}

#[test]
fn a_cluster_hibernates_and_resumes() {
    let mut object = example();
    let mut seen = observed(&hash(&object));
    object.status = Some(status_of(&object, &seen, 10));
    let ids = object.status.as_ref().map(|status| status.nodes.clone());
    object.spec.hibernate = true;
    object.metadata.generation = Some(2);
    let (stopping, again) = look(&object, &seen, 20, None, None);
    assert_eq!(stopping.phase.as_deref(), Some("Hibernating"));
    assert!(again > Duration::from_secs(1), "{again:?}");
    let words = stopping.message.clone().unwrap();
    assert!(
        words.starts_with("6 pods (shop-0-0, shop-0-1, …)"),
        "{words}"
    );
    assert_eq!(
        condition_of(&stopping, "Progressing"),
        ("True".into(), "Hibernating".into())
    );

    object.status = Some(stopping);
    seen.pods.clear();
    for member in &mut seen.members {
        member.expected.exists = false;
        member.expected.address = None;
        member.answer = Answer::Absent("the pod does not exist".into());
    }
    let (asleep, again) = look(&object, &seen, 30, None, None);
    assert_eq!(again, Duration::from_secs(30));
    assert_eq!(asleep.phase.as_deref(), Some("Hibernated"));
    assert_eq!(asleep.observed_generation, Some(2));
    assert_eq!(Some(asleep.nodes.clone()), ids, "the identity of the nodes");
    assert_eq!((asleep.shards, asleep.ready_nodes), (3, 0));
    let words = asleep.message.clone().unwrap();
    assert!(words.contains("set spec.hibernate to false"), "{words}");
    for (kind, status) in [
        ("Ready", "False"),
        ("Reconciling", "False"),
        ("Stalled", "True"),
        ("Progressing", "False"),
        ("Available", "False"),
        ("SlotsCovered", "Unknown"),
        ("ReplicationHealthy", "Unknown"),
        ("QuorumHealthy", "Unknown"),
    ] {
        let expected = (status.to_owned(), "Hibernated".to_owned());
        assert_eq!(condition_of(&asleep, kind), expected, "{kind}");
    }
    assert_eq!(condition_of(&asleep, "Formed").0, "True");

    object.status = Some(asleep);
    object.spec.hibernate = false;
    let resuming = status_of(&object, &seen, 40);
    assert_eq!(resuming.phase.as_deref(), Some("Resuming"));
    assert_eq!(condition_of(&resuming, "Available").0, "False");
    object.status = Some(resuming);
    let ready = status_of(&object, &observed(&hash(&object)), 50);
    assert_eq!(ready.phase.as_deref(), Some("Ready"));
    object.status = Some(ready);
    let down = status_of(&object, &seen, 60);
    assert_eq!(down.phase.as_deref(), Some("Down"));
}

/// A backup is under way, or the API server refuses something.
#[test]
fn what_delays_a_hibernation_is_named() {
    let waiting = Operation::of_hibernation(6, "RedisBackup team/nightly");
    let words = waiting.next.clone().unwrap();
    assert_eq!(
        words,
        "waiting for RedisBackup team/nightly, which needs the pods to stay"
    );
    assert_eq!(waiting.progress(), "0 of 6 pods are stopped");

    let mut object = example();
    let seen = observed(&hash(&object));
    object.spec.hibernate = true;
    let refused = Failure {
        reason: "RefusedByServer",
        message: "StatefulSet team/shop-0: no".into(),
        transient: false,
    };
    let status = look(&object, &seen, 20, Some(&refused), None).0;
    let (holds, reason) = condition_of(&status, "Ready");
    assert_eq!(
        (holds.as_str(), reason.as_str()),
        ("False", "RefusedByServer")
    );
    assert_eq!(condition_of(&status, "Progressing").0, "False");
}

use super::*;
use crate::redis::member::{ExpectedNode, ForeignNode, WriteRefusal, ZoneLabel};
use common::cluster::{
    info::{Info, PersistenceInfo},
    topology::{ClusterInfo, NodeId, NodesView},
};
use serde_json::{Value, json};
use std::{collections::HashMap, sync::Arc};

const PRIMARY: &str = "loading:0\nasync_loading:0\nrole:master\n";
const SERVES: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 10.0.0.1:6379@16379 myself,master - 0 0 1 connected 0-5461\n";
const BLANK: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 10.0.0.1:6379@16379 myself,master - 0 0 0 connected\n\
                     bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb 10.0.0.2:6379@16379 master - 0 0 1 connected 0-9\n";
const FOLLOWS: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 10.0.0.1:6379@16379 myself,slave bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb 0 0 1 connected\n";

fn now() -> Timestamp {
    "2026-01-01T10:00:00Z".parse().unwrap()
}

/// The answer of a server that says this.
fn answer(info: &str, nodes: &str) -> Answer {
    let info = Info::parse(info);
    if info.server().loading {
        return Answer::Loading;
    }
    Answer::Report(Box::new(Report {
        view: NodesView::parse(nodes).unwrap(),
        cluster: ClusterInfo::default(),
        server: info.server(),
        replication: info.replication(),
        keys: 0,
        node_timeout: Duration::from_secs(5),
        proof: String::new(),
        feeds: true,
        users: crate::redis::users::ReportedUsers::default(),
        unserved: None,
        strays: 0,
        imports: false,
        settings: std::collections::BTreeMap::new(),
        used_memory: 0,
        persistence: PersistenceInfo::default(),
        refusal: WriteRefusal::default(),
    }))
}

fn silent() -> Answer {
    Answer::Unresponsive("no answer in time".into())
}

fn member(index: usize, answer: Answer) -> Member {
    let address = format!("10.0.0.{}", index + 1).parse().unwrap();
    Member {
        expected: ExpectedNode {
            address: Some(NodeAddress::new(address, 6379)),
            zone: ZoneLabel::Absent,
            ..ExpectedNode::new(format!("shop-{index}-0"), index, 0)
        },
        answer,
    }
}

/// A pod with the gate that has run since 9:00.
fn pod(conditions: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "shop-0-0", "creationTimestamp": "2026-01-01T08:59:00Z"},
        "spec": {"containers": [], "readinessGates": [{"conditionType": CONDITION_SERVING}]},
        "status": {"conditions": conditions, "containerStatuses": [{
            "name": crds::CONTAINER, "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T09:00:00Z"}}}]},
    }))
    .unwrap()
}

fn condition(status: &str, reason: &str) -> Value {
    json!({"type": CONDITION_SERVING, "status": status, "reason": reason, "lastTransitionTime": "2026-01-01T09:30:00Z"})
}

fn ready(containers: &str) -> Value {
    json!({"type": "ContainersReady", "status": containers})
}

fn served(containers: &str) -> Pod {
    pod(&json!([ready(containers), condition("True", "Serving")]))
}

/// Status and reason that are written for the first of these members.
fn written(pod: Pod, members: Vec<Member>) -> Option<(String, String)> {
    let pods = HashMap::from([("shop-0-0".to_owned(), Arc::new(pod))]);
    let observed = Observed {
        pods,
        members,
        passed_over: false,
    };
    let mut changes = changes(&observed, now()).into_iter();
    let PodChange::Serving(condition) = changes.next()?.change else {
        panic!("a role");
    };
    assert!(changes.next().is_none());
    assert_eq!(condition.type_, CONDITION_SERVING);
    assert!(condition.message.is_some_and(|words| !words.is_empty()));
    Some((condition.status, condition.reason?))
}

fn pair(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[test]
fn a_server_with_its_data_serves() {
    let linked = |state: &str| format!("loading:0\nrole:slave\nmaster_link_status:{state}\n");
    let cases = [
        (answer(PRIMARY, SERVES), "Serving"),
        (answer(PRIMARY, BLANK), "NoSlots"),
        (answer("loading:1\nrole:master\n", SERVES), "Loading"),
        (
            answer("loading:0\nasync_loading:1\nrole:slave\n", FOLLOWS),
            "Loading",
        ),
        (answer(&linked("up"), FOLLOWS), "Serving"),
        (answer(&linked("down"), FOLLOWS), "NotLinked"),
        (
            Answer::Foreign(ForeignNode {
                id: NodeId::from_bytes([9; 20]),
                known_nodes: 5,
            }),
            "ForeignNode",
        ),
    ];
    for (answer, reason) in cases {
        let status = if reason == "Serving" { "True" } else { "False" };
        let other = if reason == "Serving" { "False" } else { "True" };
        let before = pod(&json!([ready("True"), condition(other, "Other")]));
        let members = vec![member(0, answer.clone())];
        assert_eq!(
            written(before, members.clone()),
            Some(pair(status, reason)),
            "{answer:?}"
        );
        let same = pod(&json!([ready("True"), condition(status, reason)]));
        assert_eq!(written(same, members), None, "{answer:?} is written twice");
    }
}

#[test]
fn a_new_pod_is_ready_as_soon_as_it_serves() {
    let new = |started: &str| {
        let mut pod = serde_json::to_value(pod(&json!([ready("True")]))).unwrap();
        pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] = json!(started);
        serde_json::from_value::<Pod>(pod).unwrap()
    };
    let serves = || vec![member(0, answer(PRIMARY, SERVES))];
    let blank = || vec![member(0, answer(PRIMARY, BLANK))];
    let just = new("2026-01-01T09:59:59Z");
    assert_eq!(
        written(just.clone(), serves()),
        Some(pair("True", "Serving"))
    );
    // A condition that does not exist is as good as False.
    assert_eq!(written(just, blank()), None);
    let long = new("2026-01-01T09:59:00Z");
    assert_eq!(
        written(long.clone(), blank()),
        Some(pair("False", "NoSlots"))
    );
    assert_eq!(written(long, vec![member(0, silent())]), None);
}

#[test]
fn only_a_change_of_status_moves_the_time() {
    let time = |before: Value, answer: Answer| {
        let pod = pod(&json!([ready("True"), before]));
        let condition = change(&pod, &member(0, answer), false, now()).unwrap();
        condition.last_transition_time.unwrap().0
    };
    let earlier: Timestamp = "2026-01-01T09:30:00Z".parse().unwrap();
    let before = condition("False", "Loading");
    assert_eq!(time(before.clone(), answer(PRIMARY, BLANK)), earlier);
    assert_eq!(time(before, answer(PRIMARY, SERVES)), now());
    // It has not served since it was made: nothing was closed now.
    let first = |answer: Answer| {
        let new = pod(&json!([ready("True")]));
        let condition = change(&new, &member(0, answer), false, now()).unwrap();
        condition.last_transition_time.unwrap().0
    };
    let made: Timestamp = "2026-01-01T08:59:00Z".parse().unwrap();
    assert_eq!(first(answer(PRIMARY, BLANK)), made);
    assert_eq!(first(answer(PRIMARY, SERVES)), now());
}

/// What the first node looks like to another one.
fn peer(line: &str) -> Member {
    let own = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb 10.0.0.2:6379@16379 myself,master - 0 0 1 connected 0-9\n";
    let other = format!("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 10.0.0.1:6379@16379 {line}\n");
    member(1, answer(PRIMARY, &format!("{own}{other}")))
}

#[test]
fn a_node_without_an_answer_needs_a_second_witness() {
    let failed = "master,fail - 0 0 1 disconnected 10-20";
    let doubted = "master,fail? - 0 0 1 disconnected 10-20";
    let reached = "master - 0 0 1 connected 10-20";
    let found =
        |pod: Pod, peers: Vec<Member>| written(pod, [vec![member(0, silent())], peers].concat());
    let no_answer = Some(pair("False", NOT_ANSWERING));
    assert_eq!(found(served("True"), vec![peer(failed)]), no_answer);
    assert_eq!(
        found(served("False"), vec![]),
        no_answer,
        "by its kubelet, for example while its container starts again"
    );
    assert_eq!(
        found(served("True"), vec![peer(doubted)]),
        None,
        "a minority"
    );
    assert_eq!(
        found(served("True"), vec![peer(failed), peer(reached)]),
        None
    );
    assert_eq!(
        found(served("True"), vec![member(1, silent())]),
        None,
        "the controller is cut off"
    );
    // The server of another pod answers at its address: that is certain.
    let moved = member(0, Answer::Absent("answered by another pod".into()));
    assert_eq!(written(served("True"), vec![moved]), no_answer);
    // What it said last stands.
    let loading = pod(&json!([ready("True"), condition("False", "Loading")]));
    assert_eq!(found(loading, vec![peer(failed)]), None);
}

#[test]
fn pods_without_the_gate_are_left_alone() {
    let blank = || vec![member(0, answer(PRIMARY, BLANK))];
    let mut earlier = served("True");
    earlier.spec.as_mut().unwrap().readiness_gates = None;
    assert_eq!(written(earlier, blank()), None);
    let mut terminating = served("True");
    terminating.metadata.deletion_timestamp = Some(Time(now()));
    assert_eq!(written(terminating, blank()), None);
    assert_eq!(
        written(served("True"), blank()),
        Some(pair("False", "NoSlots"))
    );
}

#[test]
fn a_node_is_awaited_until_it_serves() {
    let one = |answer| is_awaited(&[member(0, answer)]);
    assert!(one(answer(PRIMARY, BLANK)));
    assert!(one(Answer::Loading));
    assert!(!one(answer(PRIMARY, SERVES)));
    assert!(!one(silent()));
}

/// It runs a script for longer than `busy-reply-threshold`.
#[test]
fn a_busy_server_is_named_as_one() {
    let pod = pod(&json!([condition("True", "Serving"), ready("True")]));
    let now = "2026-01-01T10:00:00Z".parse().unwrap();
    let change = change(&pod, &member(0, Answer::Busy), false, now).unwrap();
    assert_eq!(change.status, "False");
    assert_eq!(change.reason.as_deref(), Some("ScriptRunning"));
    assert!(change.message.unwrap().contains("BUSY"));
}

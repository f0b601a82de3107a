use super::*;
use crate::{
    redis::{
        assess::assess,
        member::{Answer, Member, Place, Report, Wanted},
        plan::plan,
    },
    validate::{tests::example, validate},
};
use common::{
    cluster::{
        info::{ReplicationInfo, ServerInfo, UpstreamLink},
        topology::{ClusterInfo, NodeAddress, NodesView},
    },
    kubernetes::conditions::find,
};
use crds::ANNOTATION_RESTART_HASH;
use k8s_openapi::{
    api::core::v1::{Pod, PodCondition, PodStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use std::{collections::HashMap, sync::Arc, time::Duration};

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
        place: Place {
            pod: format!("shop-{}-{}", index / 2, index % 2),
            shard: index / 2,
            ordinal: index % 2,
            address: Some(NodeAddress::new(
                format!("10.0.0.{}", index + 1).parse().unwrap(),
                6379,
            )),
            machine: None,
            leaving: false,
            down_since: None,
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
    let names = members.iter().map(|member| member.place.pod.clone());
    Observed {
        pods: names.map(pod).collect::<HashMap<_, _>>(),
        members,
    }
}

fn status_of(object: &RedisCluster, observed: &Observed, second: i64) -> RedisClusterStatus {
    let now = Timestamp::from_second(second).unwrap();
    let cluster = validate(object, None, now).unwrap();
    let wanted: Wanted = crate::observe::wanted(&cluster, formed_before(object));
    let assessment = assess(&wanted, &observed.members);
    let plan = plan(&wanted, &observed.members, now);
    let found = Findings {
        cluster: &cluster,
        observed,
        assessment: &assessment,
        plan: &plan,
    };
    compute(object, &found, now)
}

fn hash(object: &RedisCluster) -> String {
    let cluster = validate(object, None, Timestamp::UNIX_EPOCH).unwrap();
    cluster.restart_hash
}

fn verdict(status: &RedisClusterStatus, kind: &str) -> (String, String) {
    let condition = find(&status.conditions, kind).unwrap();
    (condition.status.clone(), condition.reason.clone())
}

#[test]
fn a_whole_cluster_is_ready_and_a_second_look_changes_nothing() {
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
        assert_eq!(verdict(&status, kind).0, "True", "{kind}");
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
    observed.members[2].answer = Answer::Silent("no route".into());
    let status = status_of(&object, &observed, 20);
    assert_eq!(status.phase.as_deref(), Some("Down"));
    assert_eq!(status.slots.ok, 16384 - 5461);
    assert_eq!(verdict(&status, "Formed").0, "True");
    assert_eq!(verdict(&status, "QuorumHealthy").0, "True");
    assert_eq!(
        verdict(&status, "Ready"),
        ("False".into(), "NotWhole".into())
    );
    observed.members[4].answer = Answer::Absent;
    let status = status_of(&object, &observed, 30);
    assert_eq!(
        verdict(&status, "QuorumHealthy"),
        ("False".into(), "MajorityLost".into())
    );
}

#[test]
fn outdated_pods_are_named_with_the_cure() {
    let mut object = example();
    let observed = observed(&hash(&object));
    object.status = Some(status_of(&object, &observed, 10));
    object.spec.config.insert("maxmemory".into(), "65mb".into());
    let status = status_of(&object, &observed, 20);
    assert_eq!(
        verdict(&status, "UpToDate"),
        ("False".into(), "PodsOutdated".into())
    );
    let message = &find(&status.conditions, "UpToDate").unwrap().message;
    assert!(
        message.contains("shop-0-0") && message.contains("one at a time"),
        "{message}"
    );
    assert_eq!(status.phase.as_deref(), Some("Ready"));
}

#[test]
fn a_spec_that_cannot_be_acted_upon_is_said_so() {
    let object = example();
    let error = InvalidSpec::UnknownVersion("redis-9".into());
    let status = invalid(&object, &error, Timestamp::UNIX_EPOCH);
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(
        verdict(&status, "Ready"),
        ("False".into(), "VersionNotFound".into())
    );
    assert!(status.message.unwrap().contains("redis-9"));
}

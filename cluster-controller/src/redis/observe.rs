//! Asks every node for its own view: all at once, each in one round trip, each within a short time, over connections that are kept.

use super::{
    member::{Answer, ExpectedNode, Member, Report, WriteRefusal},
    users::{self, PasswordHash, ReportedUsers},
};
use common::cluster::{
    endpoint::Endpoint,
    kept_connections::{ClusterConnections, ServerProcess},
    node::{NodeClient, NodeError},
    reader::read_sharing,
    topology::SharedNodes,
};
use futures::{StreamExt, stream};
use redis::{cmd, pipe};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

/// Nodes asked at the same time.
const CONCURRENCY: usize = 64;
/// Nodes of a cluster whose connections are kept. A connection holds a buffer as long as the longest answer, and an answer has a line for
/// each node; a larger cluster is looked at less often.
const MOST_KEPT: usize = 100;
/// What is asked of the configuration. In `syslog-ident` the start script puts namespace, name and uid of the pod.
const SETTINGS: [&str; 6] = [
    "cluster-node-timeout",
    "syslog-ident",
    "min-replicas-to-write",
    "min-replicas-max-lag",
    "save",
    "masterauth",
];

/// Asks every expected node. The members come in the same order.
pub async fn observe(
    expected: &[ExpectedNode],
    connections: &ClusterConnections,
    timeout: Duration,
) -> Vec<Member> {
    observe_settings(expected, &BTreeSet::new(), connections, timeout).await
}

/// The same, and each node is asked for the settings of these names as well.
pub async fn observe_settings(
    expected: &[ExpectedNode],
    settings: &BTreeSet<String>,
    connections: &ClusterConnections,
    timeout: Duration,
) -> Vec<Member> {
    let lines = &SharedNodes::default();
    let processes: HashSet<ServerProcess> = if expected.len() > MOST_KEPT {
        HashSet::new()
    } else {
        expected.iter().filter_map(process).collect()
    };
    connections.retain(&processes);
    let keeps = !processes.is_empty();
    stream::iter(expected.iter().cloned())
        .map(|expected| async move {
            let process = process(&expected).filter(|_| keeps);
            let asked = Asked { settings, lines };
            let answer = ask(&expected, process, connections, asked, timeout).await;
            Member { expected, answer }
        })
        .buffered(CONCURRENCY)
        .collect()
        .await
}

/// What is asked of every node of a cluster.
#[derive(Clone, Copy)]
struct Asked<'a> {
    /// Names of settings.
    settings: &'a BTreeSet<String>,
    lines: &'a SharedNodes,
}

/// The process that is to answer. None where the pod's start script lets its server prove nothing.
pub fn process(expected: &ExpectedNode) -> Option<ServerProcess> {
    let proof = expected.proof.clone()?;
    Some(ServerProcess::new(expected.address?.client(), proof))
}

/// How the node that answered for a member is asked again: by no connection but one that has proven to lead to that node.
pub fn proven(
    member: &Member,
    connections: &ClusterConnections,
    timeout: Duration,
) -> Option<(Option<ServerProcess>, Endpoint)> {
    let report = member.report()?;
    let endpoint = connections.endpoint(member.expected.address?.client(), timeout);
    Some((process(&member.expected), endpoint.expecting(report.id())))
}

async fn ask(
    expected: &ExpectedNode,
    process: Option<ServerProcess>,
    connections: &ClusterConnections,
    asked: Asked<'_>,
    timeout: Duration,
) -> Answer {
    let Some(address) = expected.address else {
        return Answer::Absent("it has no address".to_owned());
    };
    // Connecting and the answer each have this bound already; together they have it once more.
    let endpoint = connections.endpoint(address.client(), timeout);
    let question = |client: NodeClient| async move { report(&client, asked).await };
    let answer = connections.ask(process.as_ref(), &endpoint, question);
    match tokio::time::timeout(timeout * 2, answer).await {
        Ok(Ok((Some(report), client))) => {
            if let Some(process) = process.filter(|process| report.proof == process.pod()) {
                connections.keep(process, client);
            }
            Answer::Report(Box::new(report))
        }
        Ok(Ok((None, _)) | Err(NodeError::Loading { .. })) => Answer::Loading,
        Ok(Err(NodeError::Busy { .. })) => Answer::Busy,
        Ok(Err(error)) => Answer::Unresponsive(error.to_string()),
        Err(_) => Answer::Unresponsive(format!("no answer from {address} in time")),
    }
}

/// The node's report; none while it is loading.
async fn report(client: &NodeClient, asked: Asked<'_>) -> Result<Option<Report>, NodeError> {
    let mut questions = pipe();
    // Each alone: 6.2 takes one name at a time.
    for name in SETTINGS
        .into_iter()
        .chain(asked.settings.iter().map(String::as_str))
    {
        questions.cmd("CONFIG").arg("GET").arg(name);
    }
    let mut list = cmd("ACL");
    list.arg("LIST");
    // All at once: one round trip.
    let (node, settings, users): (_, Vec<Vec<String>>, Vec<String>) = tokio::try_join!(
        read_sharing(client, asked.lines),
        client.ask_all("CONFIG GET", &questions),
        client.ask("ACL LIST", &list)
    )?;
    let value = |name: &str| setting(&settings, name);
    let number = |name: &str| value(name).parse().unwrap_or_default();
    Ok((!node.server.loading).then(|| Report {
        view: node.view,
        cluster: node.cluster,
        server: node.server,
        replication: node.replication,
        keys: node.keys,
        node_timeout: Duration::from_millis(number("cluster-node-timeout")),
        persistence: node.persistence,
        refusal: WriteRefusal {
            min_replicas: number("min-replicas-to-write"),
            max_lag: Duration::from_secs(number("min-replicas-max-lag")),
            snapshots: !value("save").is_empty(),
        },
        proof: value("syslog-ident").to_owned(),
        feeds: users::feeds(&users),
        users: ReportedUsers {
            copies_with: Some(value("masterauth"))
                .filter(|password| !password.is_empty())
                .map(PasswordHash::of),
            ..ReportedUsers::of(&users)
        },
        unserved: None,
        strays: 0,
        imports: false,
        settings: reported(&settings, asked.settings),
        used_memory: node.used_memory,
    }))
}

/// The settings of these names that the server knows.
fn reported(answers: &[Vec<String>], asked: &BTreeSet<String>) -> BTreeMap<String, String> {
    let pairs = answers.iter().filter_map(|answer| match answer.as_slice() {
        [name, value] if asked.contains(name) => Some((name.clone(), value.clone())),
        _ => None,
    });
    pairs.collect()
}

/// The value in answers to `CONFIG GET`, each of which is name and value; nothing where the server does not know the setting.
fn setting<'a>(answers: &'a [Vec<String>], name: &str) -> &'a str {
    let mut pairs = answers.iter().filter_map(|answer| match answer.as_slice() {
        [known, value] => Some((known, value)),
        _ => None,
    });
    let found = pairs.find(|(known, _)| *known == name);
    found.map_or("", |(_, value)| value)
}

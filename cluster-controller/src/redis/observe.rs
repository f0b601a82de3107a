//! Asks every node for its own view: all at once, each in one round trip, each within a short time, over connections that are kept.

use super::member::{Answer, ExpectedNode, Member, Report, WriteRefusal};
use common::cluster::{
    endpoint::Endpoint,
    kept_connections::{ClusterConnections, ServerProcess},
    node::{NodeClient, NodeError},
    reader::read_sharing,
    topology::SharedNodes,
};
use futures::{StreamExt, stream};
use redis::pipe;
use std::{collections::HashSet, time::Duration};

/// Nodes asked at the same time.
const CONCURRENCY: usize = 64;
/// Nodes of a cluster whose connections are kept. A connection holds a buffer as long as the longest answer, and an answer has a line for
/// each node; a larger cluster is looked at less often.
const MOST_KEPT: usize = 100;
/// What is asked of the configuration. In `syslog-ident` the start script puts namespace, name and uid of the pod.
const SETTINGS: [&str; 5] = [
    "cluster-node-timeout",
    "syslog-ident",
    "min-replicas-to-write",
    "min-replicas-max-lag",
    "save",
];

/// Asks every expected node. The members come in the same order.
pub async fn observe(
    expected: &[ExpectedNode],
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
            let answer = ask(&expected, process, connections, lines, timeout).await;
            Member { expected, answer }
        })
        .buffered(CONCURRENCY)
        .collect()
        .await
}

/// The process that is to answer. None where the pod's start script lets its server prove nothing.
pub(super) fn process(expected: &ExpectedNode) -> Option<ServerProcess> {
    let proof = expected.proof.clone()?;
    Some(ServerProcess::new(expected.address?.client(), proof))
}

async fn ask(
    expected: &ExpectedNode,
    process: Option<ServerProcess>,
    connections: &ClusterConnections,
    lines: &SharedNodes,
    timeout: Duration,
) -> Answer {
    let Some(address) = expected.address else {
        return Answer::Absent("it has no address".to_owned());
    };
    // Connecting and the answer each have this bound already; together they have it once more.
    let endpoint = Endpoint::new(address.client(), timeout);
    let question = |client: NodeClient| async move { report(&client, lines).await };
    let asked = connections.ask(process.as_ref(), &endpoint, question);
    match tokio::time::timeout(timeout * 2, asked).await {
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
async fn report(client: &NodeClient, lines: &SharedNodes) -> Result<Option<Report>, NodeError> {
    let mut questions = pipe();
    for name in SETTINGS {
        questions.cmd("CONFIG").arg("GET").arg(name);
    }
    // All at once: one round trip.
    let (node, settings): (_, Vec<Vec<String>>) = tokio::try_join!(
        read_sharing(client, lines),
        client.ask_all("CONFIG GET", &questions)
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
        unserved: None,
    }))
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

//! Asks every node for its own view: all at once, each in one round trip, each within a short time.

use super::member::{Answer, ExpectedNode, Member, Report};
use common::cluster::{
    endpoint::Endpoint,
    node::{NodeClient, NodeError},
    reader::read_from,
};
use futures::{StreamExt, stream};
use redis::cmd;
use std::time::Duration;

/// Nodes asked at the same time.
const CONCURRENCY: usize = 64;
const NODE_TIMEOUT: &str = "cluster-node-timeout";
/// The setting in which the start script puts namespace, name and uid of the pod.
const PROOF: &str = "syslog-ident";

/// Asks every expected node. The members come in the same order.
pub async fn observe(expected: &[ExpectedNode], timeout: Duration) -> Vec<Member> {
    stream::iter(expected.iter().cloned())
        .map(|expected| async move {
            let answer = ask(&expected, timeout).await;
            Member { expected, answer }
        })
        .buffered(CONCURRENCY)
        .collect()
        .await
}

async fn ask(expected: &ExpectedNode, timeout: Duration) -> Answer {
    let Some(address) = expected.address else {
        return Answer::Absent("it has no address".to_owned());
    };
    // Connecting and the answer each have this bound already; together they have it once more.
    let report = tokio::time::timeout(timeout * 2, async {
        let client = NodeClient::connect(&Endpoint::new(address.client(), timeout)).await?;
        report(&client).await
    });
    match report.await {
        Ok(Ok(Some(report))) => Answer::Report(Box::new(report)),
        Ok(Ok(None) | Err(NodeError::Loading { .. })) => Answer::Loading,
        Ok(Err(error)) => Answer::Unresponsive(error.to_string()),
        Err(_) => Answer::Unresponsive(format!("no answer from {address} in time")),
    }
}

/// The value in an answer to `CONFIG GET`, which is name and value.
fn milliseconds(answer: &[String]) -> Duration {
    let value = answer.get(1).and_then(|value| value.parse().ok());
    Duration::from_millis(value.unwrap_or_default())
}

/// The node's report; none while it is loading.
async fn report(client: &NodeClient) -> Result<Option<Report>, NodeError> {
    let get = |name: &str| {
        let mut question = cmd("CONFIG");
        question.arg("GET").arg(name);
        question
    };
    let (timeout, proof) = (get(NODE_TIMEOUT), get(PROOF));
    // All at once: one round trip.
    let (node, timeout, proof): (_, Vec<String>, Vec<String>) = tokio::try_join!(
        read_from(client),
        client.ask("CONFIG GET", &timeout),
        client.ask("CONFIG GET", &proof),
    )?;
    Ok((!node.server.loading).then(|| Report {
        view: node.view,
        cluster: node.cluster,
        server: node.server,
        replication: node.replication,
        keys: node.keys,
        node_timeout: milliseconds(&timeout),
        proof: proof.into_iter().nth(1).unwrap_or_default(),
    }))
}

//! Does something on every server that was observed, over a connection that has proved to lead to that very node.

use super::{
    member::{Member, Report},
    observe::proven,
};
use crate::observe::NODE_TIMEOUT;
use common::cluster::{
    kept_connections::ClusterConnections,
    node::{NodeClient, NodeError},
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};

/// Servers that are asked at the same time.
const CONCURRENCY: usize = 32;

/// Does something on every server that has answered. The results of those that answered again.
pub async fn each<'a, T, F>(
    members: &'a [Member],
    connections: &ClusterConnections,
    act: impl Fn(NodeClient, &'a Report) -> F + Sync,
) -> Vec<T>
where
    F: Future<Output = Result<T, NodeError>> + Send,
    T: Send,
{
    let mut asked: Vec<BoxFuture<'_, Option<T>>> = Vec::new();
    for member in members {
        let (Some((process, endpoint)), Some(report)) =
            (proven(member, connections, NODE_TIMEOUT), member.report())
        else {
            continue;
        };
        let act = &act;
        let done = async move {
            match connections.proven(process.as_ref(), &endpoint).await {
                Ok(client) => act(client, report).await,
                Err(error) => Err(error),
            }
        };
        let logged = done.map(|done: Result<T, NodeError>| {
            done.inspect_err(|error| tracing::info!(%error, "a change waits for the node"))
                .ok()
        });
        asked.push(logged.boxed());
    }
    let results: Vec<Option<T>> = stream::iter(asked).buffered(CONCURRENCY).collect().await;
    results.into_iter().flatten().collect()
}

//! The topology reader: asks nodes about themselves and the cluster, for every controller.

use super::{
    endpoint::Endpoint,
    info::{Info, PersistenceInfo, ReplicationInfo, ServerInfo},
    node::{NodeClient, NodeError},
    seeds::Seeds,
    slot_map::NotSettled,
    topology::{ClusterInfo, NodeId, NodesView, SharedNodes},
};
use futures::{Stream, StreamExt, stream};
use redis::pipe;
use std::{net::SocketAddr, time::Duration};

/// Nodes asked at the same time.
const CONCURRENCY: usize = 32;

/// What a node says at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReport {
    /// Where it was asked.
    pub address: SocketAddr,
    /// `CLUSTER NODES`: itself and the others as it sees them.
    pub view: NodesView,
    /// `CLUSTER INFO`: whether it serves.
    pub cluster: ClusterInfo,
    /// Which server it is.
    pub server: ServerInfo,
    /// Its part in replication.
    pub replication: ReplicationInfo,
    /// Whether it can write to its disk.
    pub persistence: PersistenceInfo,
    /// Keys it holds.
    pub keys: u64,
    /// Bytes of memory in use.
    pub used_memory: u64,
}

impl NodeReport {
    /// The node's id.
    pub fn id(&self) -> NodeId {
        self.view.myself().id
    }
}

/// Connects to a node and asks it, in one round trip. A node that loads its data does not answer CLUSTER commands:
/// [`NodeError::Loading`].
pub async fn read(endpoint: &Endpoint) -> Result<NodeReport, NodeError> {
    read_from(&NodeClient::connect(endpoint).await?).await
}

/// The same over an open connection.
pub async fn read_from(client: &NodeClient) -> Result<NodeReport, NodeError> {
    read_sharing(client, &SharedNodes::default()).await
}

/// The same, where other nodes of the cluster are asked as well: what all of them say is kept once.
pub async fn read_sharing(
    client: &NodeClient,
    lines: &SharedNodes,
) -> Result<NodeReport, NodeError> {
    let mut questions = pipe();
    questions.cmd("INFO");
    questions.cmd("CLUSTER").arg("INFO");
    questions.cmd("CLUSTER").arg("NODES");
    let (info, cluster, nodes): (String, String, String) =
        client.ask_all("INFO and CLUSTER NODES", &questions).await?;
    let info = Info::parse(&info);
    let address = client.address();
    let view = NodesView::parse_sharing(&nodes, lines)
        .map_err(|source| NodeError::Topology { address, source })?;
    Ok(NodeReport {
        address,
        view,
        cluster: ClusterInfo::parse(&cluster),
        server: info.server(),
        replication: info.replication(),
        persistence: info.persistence(),
        keys: info.keys(),
        used_memory: info.number("used_memory"),
    })
}

/// Asks several nodes at the same time; the answers come as they arrive.
pub fn read_each(
    endpoints: Vec<Endpoint>,
) -> impl Stream<Item = (SocketAddr, Result<NodeReport, NodeError>)> + Send {
    stream::iter(endpoints)
        .map(|endpoint| async move { (endpoint.address(), read(&endpoint).await) })
        .buffer_unordered(CONCURRENCY)
}

/// Asks every node of a cluster: the reports of those that answer, one for each. What another cluster's node would say counts for
/// nothing, and of two addresses that lead to one node, one is out of date.
pub async fn read_all(seeds: &Seeds, timeout: Duration) -> Result<Vec<NodeReport>, NotSettled> {
    let (mut reports, mut failure) = (Vec::new(), None);
    let mut answers = std::pin::pin!(read_each(seeds.endpoints(timeout)));
    while let Some((_, answer)) = answers.next().await {
        match answer {
            Ok(report)
                if reports
                    .iter()
                    .any(|other: &NodeReport| other.id() == report.id()) => {}
            Ok(report) => reports.push(report),
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) if reports.is_empty() => Err(NotSettled::Unreachable(error.to_string())),
        Some(_) | None => Ok(reports),
    }
}

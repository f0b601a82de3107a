//! Failovers that the controller asks for: with the primary's help, and without an election.

use common::cluster::{
    node::{COORDINATED_LIMIT, FailoverMode, NodeClient, NodeError},
    topology::{ClusterInfo, NodeId, NodesView},
};
use redis::cmd;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How often a replica is asked whether it has taken over or begun an election; it mostly has after 100 to 300 ms.
const POLL: Duration = Duration::from_millis(50);
/// The servers' own limit, and some time to learn of the end.
const HAND_OVER_LIMIT: Duration = COORDINATED_LIMIT.saturating_add(Duration::from_millis(500));
/// How long a newer epoch is waited for; the next reconcile asks again.
const EPOCH_LIMIT: Duration = Duration::from_secs(2);

/// Starts a coordinated failover and waits for its end, so that it is never asked for twice at once. The server refuses it unless it is
/// a replica that is linked to its primary.
pub async fn hand_over(node: &NodeClient) -> Result<(), NodeError> {
    node.failover(FailoverMode::Coordinated).await?;
    let deadline = Instant::now() + HAND_OVER_LIMIT;
    while Instant::now() < deadline {
        sleep(POLL).await;
        if view(node).await?.myself().is_primary() {
            return Ok(());
        }
    }
    Err(NodeError::NotHandedOver {
        address: node.address(),
        after: HAND_OVER_LIMIT,
    })
}

/// Lets a replica take over without an election, under a newer epoch than its primary's: the other nodes believe no other claim, and the
/// primary would keep its slots when it returns.
///
/// A server gives itself a new epoch only if its own is not the newest that it knows (`clusterBumpConfigEpochWithoutConsensus` in the
/// engine's `cluster.c`), and a replica's own is the one that it had as an empty primary, which no command shows: at the birth of a cluster
/// two nodes may get the same one, and they do not settle that once one is the other's replica.
pub async fn take_over(node: &NodeClient, primary: NodeId) -> Result<(), NodeError> {
    let listed = view(node).await?;
    let lost = listed.get(primary).filter(|lost| !lost.slots.is_empty());
    if let Some(lost) = lost {
        let epoch = lost.config_epoch;
        if current_epoch(node).await? <= epoch && !bump_epoch(node).await? {
            begin_election(node, epoch).await?;
            if view(node).await?.myself().is_primary() {
                return Ok(());
            }
        }
    }
    node.failover(FailoverMode::Takeover).await
}

/// Whether the server has given itself a new epoch, the newest of all.
async fn bump_epoch(node: &NodeClient) -> Result<bool, NodeError> {
    let mut command = cmd("CLUSTER");
    command.arg("BUMPEPOCH");
    let reply: String = node.ask("CLUSTER BUMPEPOCH", &command).await?;
    Ok(reply.starts_with("BUMPED"))
}

/// Lets a replica stand for election, be it without success: that begins an epoch newer than this one.
async fn begin_election(node: &NodeClient, epoch: u64) -> Result<(), NodeError> {
    node.failover(FailoverMode::Force).await?;
    let deadline = Instant::now() + EPOCH_LIMIT;
    while Instant::now() < deadline {
        if current_epoch(node).await? > epoch {
            return Ok(());
        }
        sleep(POLL).await;
    }
    Err(NodeError::EpochNotNewer {
        address: node.address(),
        epoch,
        after: EPOCH_LIMIT,
    })
}

async fn current_epoch(node: &NodeClient) -> Result<u64, NodeError> {
    let mut command = cmd("CLUSTER");
    command.arg("INFO");
    let text: String = node.ask("CLUSTER INFO", &command).await?;
    Ok(ClusterInfo::parse(&text).current_epoch)
}

/// What the node lists now.
pub async fn view(node: &NodeClient) -> Result<NodesView, NodeError> {
    let mut command = cmd("CLUSTER");
    command.arg("NODES");
    let table: String = node.ask("CLUSTER NODES", &command).await?;
    let address = node.address();
    NodesView::parse(&table).map_err(|source| NodeError::Topology { address, source })
}

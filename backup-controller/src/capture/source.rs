//! Finds the node of a shard that is read: asks the nodes themselves, right before the snapshot.

use super::CaptureError;
use crate::select::{Choice, NOT_SERVING, NoSource, SourceCandidate, choose};
use common::cluster::{
    endpoint::NodeAccess,
    info::ServerInfo,
    reader::{NodeReport, read, read_each},
    seeds::Seeds,
    slots::SlotSet,
    topology::{ClusterNode, NodesView},
};
use crds::SourceRole;
use futures::{StreamExt, future::join_all};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a node may take to connect and for each answer.
const NODE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long to wait between two looks at a shard in which no node can be read.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The node to read and what has to be known of it.
#[derive(Clone, Debug)]
pub struct SourceNode {
    /// The node that is read, and as what.
    pub choice: Choice,
    /// Which server runs there.
    pub server: ServerInfo,
    /// Memory in use, for the size of parts.
    pub used_memory: u64,
}

/// Looks until a node of the shard with exactly these slots can be read, at most for `patience`.
pub async fn find(
    seeds: &Seeds,
    slots: &SlotSet,
    prefer: SourceRole,
    patience: Duration,
) -> Result<SourceNode, CaptureError> {
    let deadline = Instant::now() + patience;
    loop {
        match look(seeds, slots, prefer).await {
            // A failover is under way, or a node loads its data.
            Err(CaptureError::NoSource(_) | CaptureError::Node(_))
                if Instant::now() + RETRY_INTERVAL < deadline =>
            {
                sleep(RETRY_INTERVAL).await;
            }
            result => return result,
        }
    }
}

async fn look(
    seeds: &Seeds,
    slots: &SlotSet,
    prefer: SourceRole,
) -> Result<SourceNode, CaptureError> {
    let view = any_view(seeds, slots).await?;
    let Some(primary_node) = primary_of(&view, slots) else {
        return Err(no_source("no primary has the shard's slots"));
    };
    if &primary_node.slots != slots {
        return Err(CaptureError::SlotsMoved {
            wanted: slots.summary(),
            found: primary_node.slots.summary(),
        });
    }
    let nodes = view.nodes().iter().map(AsRef::as_ref);
    let replicas = nodes.filter(|node: &&ClusterNode| {
        node.is_replica() && node.primary == Some(primary_node.id) && !node.is_failing()
    });
    let access = seeds.access();
    let primary = ask(primary_node, access).await;
    let replicas: Vec<_> = join_all(replicas.map(|node| ask(node, access)))
        .await
        .into_iter()
        .flatten()
        .collect();
    let candidates: Vec<_> = replicas
        .iter()
        .map(|asked| asked.candidate.clone())
        .collect();
    let choice = choose(
        primary.as_ref().map(|asked| &asked.candidate),
        &candidates,
        prefer,
    )?;
    let chosen = primary
        .into_iter()
        .chain(replicas)
        .find(|asked| asked.candidate.id == choice.id);
    let (server, used_memory) = chosen.map_or_else(Default::default, |asked| {
        (asked.report.server, asked.report.used_memory)
    });
    Ok(SourceNode {
        choice,
        server,
        used_memory,
    })
}

fn no_source(reasons: &str) -> CaptureError {
    CaptureError::NoSource(NoSource {
        reasons: reasons.to_owned(),
    })
}

/// The primary that has the first of the slots.
fn primary_of<'a>(view: &'a NodesView, slots: &SlotSet) -> Option<&'a ClusterNode> {
    let first = slots.iter().next()?;
    let mut nodes = view.nodes().iter().map(AsRef::as_ref);
    nodes.find(|node| node.is_primary() && node.slots.contains(first))
}

/// The view of the first node of the cluster that answers, serves, and knows a primary of the slots. A node that does not serve is on the
/// smaller side of a split network: what it knows may be out of date.
async fn any_view(seeds: &Seeds, slots: &SlotSet) -> Result<NodesView, CaptureError> {
    let mut answers = std::pin::pin!(read_each(seeds.endpoints(NODE_TIMEOUT)));
    let (mut failure, mut cut_off) = (None, None);
    while let Some((seed, answer)) = answers.next().await {
        match answer {
            Ok(report) if !report.cluster.ok => cut_off = Some(seed),
            Ok(report) if primary_of(&report.view, slots).is_some() => return Ok(report.view),
            Ok(_) => {}
            Err(error) => failure = Some(error),
        }
    }
    match (cut_off, failure) {
        (Some(seed), _) => Err(no_source(&format!("node {seed} {NOT_SERVING}"))),
        (None, Some(error)) => Err(CaptureError::Node(error)),
        (None, None) => Err(no_source("no node knows a primary of the shard's slots")),
    }
}

struct Asked {
    candidate: SourceCandidate,
    report: NodeReport,
}

/// What a node says of itself; `None` if it does not answer or another node has its address.
async fn ask(node: &ClusterNode, access: &NodeAccess) -> Option<Asked> {
    let address = node.address?;
    let access = access.expecting(node.id);
    let endpoint = access.endpoint(address.client(), NODE_TIMEOUT);
    match read(&endpoint).await {
        Ok(report) => Some(Asked {
            candidate: SourceCandidate {
                address,
                id: node.id,
                loading: report.server.loading,
                serves: report.cluster.ok,
                replication: report.replication.clone(),
            },
            report,
        }),
        Err(error) => {
            tracing::debug!(%error, "a node of the shard does not answer");
            None
        }
    }
}

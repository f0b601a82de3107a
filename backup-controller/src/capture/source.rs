//! Finds the node of a shard that is read: asks the nodes themselves, right before the snapshot.

use super::CaptureError;
use crate::select::{Candidate, Choice, NOT_SERVING, NoSource, choose};
use common::cluster::{
    endpoint::Endpoint,
    info::ServerInfo,
    node::{NodeClient, NodeError},
    slots::SlotSet,
    topology::{ClusterNode, NodeAddress, NodesView},
};
use crds::SourceRole;
use futures::{StreamExt, future::join_all, stream};
use std::{net::SocketAddr, time::Duration};
use tokio::time::{Instant, sleep};

/// How long a node may take to connect and for each answer.
const NODE_TIMEOUT: Duration = Duration::from_secs(3);
/// Nodes asked for the map at the same time.
const PARALLEL_QUESTIONS: usize = 4;
/// How long to rest between two looks at a shard in which no node can be read.
const REST: Duration = Duration::from_millis(500);

/// The node to read and what has to be known of it.
#[derive(Clone, Debug)]
pub struct Source {
    /// Which node.
    pub choice: Choice,
    /// Which server runs there.
    pub server: ServerInfo,
    /// Memory in use, for the size of parts.
    pub used_memory: u64,
}

/// Looks until a node of the shard with exactly these slots can be read, at most for `patience`.
pub async fn find(
    seeds: &[SocketAddr],
    slots: &SlotSet,
    prefer: SourceRole,
    patience: Duration,
) -> Result<Source, CaptureError> {
    let deadline = Instant::now() + patience;
    loop {
        match look(seeds, slots, prefer).await {
            Err(error) if error.may_pass() && Instant::now() + REST < deadline => sleep(REST).await,
            result => return result,
        }
    }
}

async fn look(
    seeds: &[SocketAddr],
    slots: &SlotSet,
    prefer: SourceRole,
) -> Result<Source, CaptureError> {
    let view = any_view(seeds, slots).await?;
    let first = slots.iter().next();
    let owner = view
        .nodes()
        .iter()
        .find(|node| node.is_primary() && first.is_some_and(|slot| node.slots.contains(slot)));
    let Some(owner) = owner else {
        return Err(nobody("no node owns the shard's slots"));
    };
    if &owner.slots != slots {
        return Err(CaptureError::SlotsMoved {
            wanted: crate::slot_map::words(slots),
            found: crate::slot_map::words(&owner.slots),
        });
    }
    let replicas = view
        .nodes()
        .iter()
        .filter(|node| node.is_replica() && node.primary == Some(owner.id) && !node.is_failing());
    let primary = ask(owner).await;
    let replicas: Vec<_> = join_all(replicas.map(ask))
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
    let asked = primary.into_iter().chain(replicas);
    let chosen = asked
        .into_iter()
        .find(|asked| asked.candidate.id == choice.id);
    let (server, used_memory) = chosen.map_or_else(Default::default, |c| (c.server, c.used_memory));
    Ok(Source {
        choice,
        server,
        used_memory,
    })
}

fn nobody(reasons: &str) -> CaptureError {
    CaptureError::NoSource(NoSource {
        reasons: reasons.to_owned(),
    })
}

/// The view of whichever node answers first, serves, and knows an owner of the slots.
async fn any_view(seeds: &[SocketAddr], slots: &SlotSet) -> Result<NodesView, CaptureError> {
    let first = slots.iter().next();
    let knows = |view: &NodesView| {
        let mut nodes = view.nodes().iter();
        nodes.any(|node| node.is_primary() && first.is_some_and(|slot| node.slots.contains(slot)))
    };
    let views = stream::iter(seeds.iter().copied())
        .map(|seed| async move { (seed, view_of(seed).await) })
        .buffer_unordered(PARALLEL_QUESTIONS);
    let mut views = std::pin::pin!(views);
    let (mut trouble, mut cut_off) = (None, None);
    while let Some((seed, answer)) = views.next().await {
        match answer {
            Ok(Some(view)) if knows(&view) => return Ok(view),
            Ok(Some(_)) => {}
            Ok(None) => cut_off = Some(seed),
            Err(error) => trouble = Some(error),
        }
    }
    match (cut_off, trouble) {
        (Some(seed), _) => Err(nobody(&format!("node {seed} {NOT_SERVING}"))),
        (None, Some(error)) => Err(CaptureError::Node(error)),
        (None, None) if seeds.is_empty() => Err(nobody("the cluster has no pod with an address")),
        (None, None) => Err(nobody("no node knows an owner of the shard's slots")),
    }
}

/// The view of a node; `None` if it does not serve: on the smaller side of a split network nobody knows who owns what.
async fn view_of(seed: SocketAddr) -> Result<Option<NodesView>, NodeError> {
    let client = NodeClient::connect(&Endpoint::new(seed, NODE_TIMEOUT)).await?;
    let serves = client.cluster_info().await?.ok;
    let view = client.nodes().await?;
    Ok(serves.then_some(view))
}

struct Asked {
    candidate: Candidate,
    server: ServerInfo,
    used_memory: u64,
}

/// What a node says of itself; `None` if it does not answer or is another node than expected.
async fn ask(node: &ClusterNode) -> Option<Asked> {
    let address: NodeAddress = node.address?;
    let asked = async {
        let endpoint = Endpoint::new(address.client(), NODE_TIMEOUT).expecting(node.id);
        let client = NodeClient::connect(&endpoint).await?;
        let state = client.cluster_info().await?;
        Ok::<_, NodeError>((state.ok, client.info(None).await?))
    };
    match asked.await {
        Ok((is_serving, info)) => {
            let server = info.server();
            Some(Asked {
                candidate: Candidate {
                    address,
                    id: node.id,
                    loading: server.loading,
                    serves: is_serving,
                    replication: info.replication(),
                },
                server,
                used_memory: info.number("used_memory"),
            })
        }
        Err(error) => {
            tracing::debug!(%error, "a node of the shard does not answer");
            None
        }
    }
}

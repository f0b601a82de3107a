//! Reads who owns which slots from any node of the target.

use super::error::ReplayError;
use common::cluster::{node::NodeClient, slots::SlotSet};
use std::{net::SocketAddr, time::Duration};

/// How long one node may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A primary of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Where clients reach it.
    pub address: SocketAddr,
    /// What it owns; may be empty.
    pub slots: SlotSet,
}

/// The primaries, as the first of these nodes that answers sees them.
pub async fn read(nodes: &[SocketAddr]) -> Result<Vec<Owner>, ReplayError> {
    let mut last = None;
    for node in nodes {
        match read_from(*node).await {
            Ok(owners) if owners.iter().any(|owner| !owner.slots.is_empty()) => return Ok(owners),
            Ok(_) => {}
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or(ReplayError::NoOwners, ReplayError::Node))
}

async fn read_from(node: SocketAddr) -> Result<Vec<Owner>, common::cluster::node::NodeError> {
    let client = NodeClient::connect(node, TIMEOUT).await?;
    let view = client.nodes().await?;
    let primaries = view.nodes().iter().filter(|node| node.is_primary());
    Ok(primaries
        .filter_map(|primary| {
            let myself = primary.id == view.myself().id;
            // A node that nobody has met yet does not know its own address.
            let address = if myself {
                Some(node)
            } else {
                primary.address.map(|address| address.client())
            };
            Some(Owner {
                address: address?,
                slots: primary.slots.clone(),
            })
        })
        .collect())
}

//! Reads who owns which slots from any node of the target.

use super::error::ReplayError;
use common::cluster::{
    endpoint::Endpoint,
    node::{NodeClient, NodeError},
    slots::SlotSet,
    topology::{NodeId, NodesView},
};
use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

/// How long one node may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The target as one of its nodes sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotMap {
    /// Its primaries. One that is down and owns nothing is left out: nothing is to be sent to it.
    pub owners: Vec<Owner>,
    /// Every node of it. An address may belong to another cluster's pod by the next connection.
    pub members: Arc<BTreeSet<NodeId>>,
}

/// A primary of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Where clients reach it.
    pub address: SocketAddr,
    /// What it owns; may be empty.
    pub slots: SlotSet,
}

/// The target, as the first of these nodes sees it that answers and is one of `members`; `None`: whoever is at these addresses.
pub async fn read(
    nodes: &[SocketAddr],
    members: Option<&BTreeSet<NodeId>>,
) -> Result<SlotMap, ReplayError> {
    let mut last = None;
    for node in nodes {
        match read_from(*node).await {
            Ok(view) if members.is_some_and(|known| !known.contains(&view.myself().id)) => {}
            Ok(view) => {
                let map = slot_map(*node, &view);
                if map.owners.iter().any(|owner| !owner.slots.is_empty()) {
                    return Ok(map);
                }
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or(ReplayError::NoOwners, ReplayError::Node))
}

async fn read_from(node: SocketAddr) -> Result<NodesView, NodeError> {
    let client = NodeClient::connect(&Endpoint::new(node, TIMEOUT)).await?;
    client.nodes().await
}

fn slot_map(asked: SocketAddr, view: &NodesView) -> SlotMap {
    let primaries = view.nodes().iter().filter(|node| {
        let gone = node.is_failing() && node.slots.is_empty();
        node.is_primary() && !gone
    });
    let owners = primaries.filter_map(|primary| {
        let myself = primary.id == view.myself().id;
        // A node that nobody has met yet does not know its own address.
        let address = if myself {
            Some(asked)
        } else {
            primary.address.map(|address| address.client())
        };
        Some(Owner {
            address: address?,
            slots: primary.slots.clone(),
        })
    });
    SlotMap {
        owners: owners.collect(),
        members: Arc::new(view.nodes().iter().map(|node| node.id).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_primary_without_slots_is_no_owner() {
        let [a, b, c] = ['a', 'b', 'c'].map(|digit| digit.to_string().repeat(40));
        let view = NodesView::parse(&format!(
            "{a} 10.0.0.1:6379@16379 myself,master - 0 0 1 connected 0-16383\n\
             {b} 10.0.0.2:6379@16379 master,fail - 0 0 2 disconnected\n\
             {c} 10.0.0.3:6379@16379 master - 0 0 3 connected\n"
        ))
        .unwrap();
        let map = slot_map("10.0.0.9:6379".parse().unwrap(), &view);
        let addresses: Vec<_> = map.owners.iter().map(|o| o.address.to_string()).collect();
        assert_eq!(addresses, ["10.0.0.9:6379", "10.0.0.3:6379"]);
        assert_eq!(map.members.len(), 3);
    }
}

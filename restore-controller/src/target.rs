//! Asks the nodes of the target: whether it can take a backup, and what it holds afterwards.

use crate::plan::{NotSettled, TargetState};
use common::cluster::{
    endpoint::Endpoint,
    info::ServerInfo,
    node::{NodeClient, NodeError},
    slots::{Slot, SlotSet},
    topology::NodesView,
};
use futures::{StreamExt, stream};
use std::{net::SocketAddr, time::Duration};

/// How long a node may take to connect and for each answer.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);
/// Nodes asked at the same time.
const PARALLEL_QUESTIONS: usize = 32;
/// Slots counted in one round trip.
const SLOTS_AT_ONCE: usize = 1024;

struct Node {
    client: NodeClient,
    view: NodesView,
}

/// Asks every node: who owns what by its own word, how many keys the primaries hold, what runs.
pub async fn look(addresses: &[SocketAddr]) -> Result<TargetState, NotSettled> {
    let nodes = settled(addresses).await?;
    let mut state = TargetState {
        keys: Vec::new(),
        servers: Vec::new(),
    };
    for node in &nodes {
        let server = server(&node.client).await.map_err(unreachable)?;
        let known =
            |known: &ServerInfo| (known.family, &known.version) == (server.family, &server.version);
        if !state.servers.iter().any(known) {
            state.servers.push(server);
        }
        if node.view.myself().is_primary() {
            let keys = node.client.dbsize().await.map_err(unreachable)?;
            if keys > 0 {
                state.keys.push((node.client.address().to_string(), keys));
            }
        }
    }
    Ok(state)
}

/// Counts the keys of every slot at its owner.
pub async fn count(addresses: &[SocketAddr]) -> Result<Vec<(Slot, u64)>, NotSettled> {
    let nodes = settled(addresses).await?;
    let counts: Vec<_> = nodes.iter().map(count_at).collect();
    let counted: Vec<_> = stream::iter(counts)
        .buffer_unordered(PARALLEL_QUESTIONS)
        .collect()
        .await;
    let mut all = Vec::new();
    for counts in counted {
        all.extend(counts.map_err(unreachable)?);
    }
    Ok(all)
}

async fn count_at(node: &Node) -> Result<Vec<(Slot, u64)>, NodeError> {
    let myself = node.view.myself();
    if !myself.is_primary() {
        return Ok(Vec::new());
    }
    let owned: Vec<Slot> = myself.slots.iter().collect();
    let mut counts = Vec::with_capacity(owned.len());
    for slots in owned.chunks(SLOTS_AT_ONCE) {
        let keys = node.client.count_keys_in_slots(slots).await?;
        counts.extend(slots.iter().copied().zip(keys));
    }
    Ok(counts)
}

/// Every node that answers, if together they own each slot exactly once and none is being moved.
async fn settled(addresses: &[SocketAddr]) -> Result<Vec<Node>, NotSettled> {
    if addresses.is_empty() {
        return Err(NotSettled::NoPods);
    }
    let answers: Vec<_> = stream::iter(addresses.iter().copied())
        .map(ask)
        .buffer_unordered(PARALLEL_QUESTIONS)
        .collect()
        .await;
    let mut nodes = Vec::with_capacity(answers.len());
    let mut trouble = None;
    for answer in answers {
        match answer {
            Ok(node) => nodes.push(node),
            Err(error) => trouble = Some(error),
        }
    }
    if let (true, Some(error)) = (nodes.is_empty(), &trouble) {
        return Err(NotSettled::Unreachable(error.to_string()));
    }
    check(nodes.iter().map(|node| (node.client.address(), &node.view)))?;
    Ok(nodes)
}

/// Pure: whether the nodes' own words make one slot map.
fn check<'a>(
    views: impl IntoIterator<Item = (SocketAddr, &'a NodesView)>,
) -> Result<(), NotSettled> {
    let mut covered = SlotSet::new();
    let mut disputed = SlotSet::new();
    for (address, view) in views {
        let myself = view.myself();
        if !myself.open_slots.is_empty() {
            return Err(NotSettled::OpenSlot {
                node: address.to_string(),
            });
        }
        if myself.is_primary() {
            disputed = disputed.union(&covered.intersection(&myself.slots));
            covered = covered.union(&myself.slots);
        }
    }
    if !disputed.is_empty() {
        return Err(NotSettled::Disputed {
            slots: disputed.to_string(),
        });
    }
    if !covered.is_full() {
        return Err(NotSettled::NotCovered {
            slots: covered.missing().to_string(),
        });
    }
    Ok(())
}

async fn ask(address: SocketAddr) -> Result<Node, NodeError> {
    let client = NodeClient::connect(&Endpoint::new(address, NODE_TIMEOUT)).await?;
    let view = client.nodes().await?;
    Ok(Node { client, view })
}

async fn server(client: &NodeClient) -> Result<ServerInfo, NodeError> {
    Ok(client.info(Some("server")).await?.server())
}

#[allow(clippy::needless_pass_by_value)] // for `map_err`
fn unreachable(error: NodeError) -> NotSettled {
    NotSettled::Unreachable(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "a000000000000000000000000000000000000000";
    const B: &str = "b000000000000000000000000000000000000000";

    fn view(id: &str, flags: &str, slots: &str) -> NodesView {
        let line = format!("{id} 10.0.0.1:6379@16379 myself,{flags} - 0 0 1 connected {slots}\n");
        NodesView::parse(&line).unwrap()
    }

    fn checked(views: &[NodesView]) -> Result<(), NotSettled> {
        let address = "10.0.0.1:6379".parse().unwrap();
        check(views.iter().map(|view| (address, view)))
    }

    #[test]
    fn each_slot_has_exactly_one_owner() {
        let whole = [view(A, "master", "0-5460"), view(B, "master", "5461-16383")];
        assert_eq!(checked(&whole), Ok(()));
        let missing = checked(&whole[..1]);
        assert!(matches!(missing, Err(NotSettled::NotCovered { slots }) if slots == "5461-16383"));
        let twice = [view(A, "master", "0-16383"), view(B, "master", "7")];
        assert!(matches!(checked(&twice), Err(NotSettled::Disputed { slots }) if slots == "7"));
        let open = [view(A, "master", &format!("0-16383 [7->-{B}]"))];
        assert!(matches!(checked(&open), Err(NotSettled::OpenSlot { .. })));
    }
}

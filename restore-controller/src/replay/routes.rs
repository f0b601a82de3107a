//! Reads from any node of the target where the keys of each slot go.

use super::error::ReplayError;
use common::cluster::{
    endpoint::{ExpectedIdentity, NodeAccess},
    reader::read,
    slots::SlotSet,
    topology::NodesView,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};

/// How long one node may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The target as one of its nodes sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    /// Its primaries. One that is down and has no slots is left out: nothing is to be sent to it.
    pub primaries: Vec<Route>,
    /// Every node of it. An address may belong to another cluster's pod by the next connection.
    pub members: NodeAccess,
}

/// A primary of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where clients reach it.
    pub address: SocketAddr,
    /// Its slots; may be empty.
    pub slots: SlotSet,
}

/// The target, as the first of these nodes sees it that answers and is the expected one.
pub async fn read_routes(
    nodes: &[SocketAddr],
    expected: &NodeAccess,
) -> Result<Routes, ReplayError> {
    let mut failure = None;
    for node in nodes {
        let endpoint = expected.endpoint(*node, TIMEOUT);
        match read(&endpoint).await {
            Ok(report) => {
                let routes = Routes::of(*node, &report.view, expected);
                if routes.primaries.iter().any(|route| !route.slots.is_empty()) {
                    return Ok(routes);
                }
            }
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.map_or(ReplayError::NoPrimaries, ReplayError::Node))
}

impl Routes {
    /// What the node asked at this address sees.
    fn of(asked: SocketAddr, view: &NodesView, access: &NodeAccess) -> Self {
        let primaries = view.nodes().iter().filter(|node| {
            let gone = node.is_failing() && node.slots.is_empty();
            node.is_primary() && !gone
        });
        let primaries = primaries.filter_map(|primary| {
            let myself = primary.id == view.myself().id;
            // A node that has met no other does not know its own address.
            let address = if myself {
                Some(asked)
            } else {
                primary.address.map(|address| address.client())
            };
            Some(Route {
                address: address?,
                slots: primary.slots.clone(),
            })
        });
        Self {
            primaries: primaries.collect(),
            members: access.expecting(ExpectedIdentity::OneOf(Arc::new(
                view.nodes().iter().map(|node| node.id).collect(),
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_primary_without_slots_gets_no_keys() {
        let [a, b, c] = ['a', 'b', 'c'].map(|digit| digit.to_string().repeat(40));
        let view = NodesView::parse(&format!(
            "{a} 10.0.0.1:6379@16379 myself,master - 0 0 1 connected 0-16383\n\
             {b} 10.0.0.2:6379@16379 master,fail - 0 0 2 disconnected\n\
             {c} 10.0.0.3:6379@16379 master - 0 0 3 connected\n"
        ))
        .unwrap();
        let routes = Routes::of(
            "10.0.0.9:6379".parse().unwrap(),
            &view,
            &NodeAccess::default(),
        );
        let addresses: Vec<_> = routes
            .primaries
            .iter()
            .map(|route| route.address.to_string())
            .collect();
        assert_eq!(addresses, ["10.0.0.9:6379", "10.0.0.3:6379"]);
        assert!(routes.members.expected.accepts(c.parse().unwrap()));
    }
}

//! Asks the nodes who owns which slots.

use crate::slot_map::{NotSettled, SlotMap};
use common::cluster::{endpoint::Endpoint, node::NodeClient};
use futures::{StreamExt, stream};
use std::{net::SocketAddr, time::Duration};

/// How long a node may take to connect and for each answer.
const NODE_TIMEOUT: Duration = Duration::from_secs(3);
/// Nodes asked at the same time.
const PARALLEL_QUESTIONS: usize = 32;

/// Asks every node for its view and makes one slot map of them.
pub async fn slot_map(
    addresses: impl IntoIterator<Item = SocketAddr>,
) -> Result<SlotMap, NotSettled> {
    let addresses: Vec<_> = addresses.into_iter().collect();
    let answers: Vec<_> = stream::iter(addresses)
        .map(|address| async move {
            NodeClient::connect(&Endpoint::new(address, NODE_TIMEOUT))
                .await?
                .nodes()
                .await
        })
        .buffer_unordered(PARALLEL_QUESTIONS)
        .collect()
        .await;
    let mut views = Vec::with_capacity(answers.len());
    let mut trouble = None;
    for answer in answers {
        match answer {
            Ok(view) => views.push(view),
            Err(error) => trouble = Some(error),
        }
    }
    if views.is_empty() {
        let cause = trouble.map_or_else(
            || "it has no pod with an address".to_owned(),
            |e| e.to_string(),
        );
        return Err(NotSettled::Silent(cause));
    }
    SlotMap::of(&views)
}

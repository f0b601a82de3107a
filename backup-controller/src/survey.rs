//! Asks the nodes which primary serves which slots.

use common::cluster::{
    endpoint::Endpoint,
    reader::read_all,
    slot_map::{NotSettled, SlotMap},
};
use std::{net::SocketAddr, time::Duration};

/// How long a node may take to connect and for each answer.
const NODE_TIMEOUT: Duration = Duration::from_secs(3);

/// Asks every node for its view, and makes the slot map on which they agree.
pub async fn slot_map(
    addresses: impl IntoIterator<Item = SocketAddr>,
) -> Result<SlotMap, NotSettled> {
    let endpoints: Vec<_> = addresses
        .into_iter()
        .map(|address| Endpoint::new(address, NODE_TIMEOUT))
        .collect();
    let (reports, failure) = read_all(endpoints).await;
    if reports.is_empty() {
        return Err(failure.map_or(NotSettled::NoPods, |error| {
            NotSettled::Unreachable(error.to_string())
        }));
    }
    let views: Vec<_> = reports.into_iter().map(|report| report.view).collect();
    SlotMap::agreed_by(&views)
}

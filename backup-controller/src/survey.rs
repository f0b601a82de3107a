//! Asks the nodes which primary serves which slots.

use common::cluster::{
    reader::read_all,
    seeds::Seeds,
    slot_map::{NotSettled, SlotMap},
};
use std::time::Duration;

/// How long a node may take to connect and for each answer.
const NODE_TIMEOUT: Duration = Duration::from_secs(3);

/// Asks every node for its view, and makes the slot map on which they agree.
pub async fn slot_map(seeds: &Seeds) -> Result<SlotMap, NotSettled> {
    let reports = read_all(seeds, NODE_TIMEOUT).await?;
    let views: Vec<_> = reports.into_iter().map(|report| report.view).collect();
    SlotMap::agreed_by(&views)
}

//! Asks the nodes of the target: whether it can take a backup, and what it holds afterwards.

use crate::plan::TargetState;
use common::cluster::{
    endpoint::NodeAccess,
    info::ServerInfo,
    node::{NodeClient, NodeError},
    reader::{NodeReport, read_all},
    seeds::Seeds,
    slot_map::{NotSettled, SlotMap},
    slots::Slot,
};
use futures::{StreamExt, stream};
use std::time::Duration;

/// How long a node may take to connect and for each answer.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);
/// Primaries that count at the same time.
const CONCURRENCY: usize = 32;

/// Asks every node: which slots the primaries serve, how many keys they hold, what runs.
pub async fn look(seeds: &Seeds) -> Result<TargetState, NotSettled> {
    let mut state = TargetState {
        keys: Vec::new(),
        servers: Vec::new(),
    };
    for report in settled(seeds).await? {
        let server = &report.server;
        let same =
            |known: &ServerInfo| (known.family, &known.version) == (server.family, &server.version);
        if report.view.myself().is_primary() && report.keys > 0 {
            state.keys.push((report.address.to_string(), report.keys));
        }
        if !state.servers.iter().any(same) {
            state.servers.push(report.server);
        }
    }
    Ok(state)
}

/// Counts the keys of every slot at its primary.
pub async fn count(seeds: &Seeds) -> Result<Vec<(Slot, u64)>, NotSettled> {
    let reports = settled(seeds).await?;
    let access = seeds.access();
    let counts: Vec<_> = reports
        .iter()
        .map(|report| count_at(report, access))
        .collect();
    let counted: Vec<_> = stream::iter(counts)
        .buffer_unordered(CONCURRENCY)
        .collect()
        .await;
    let mut all = Vec::new();
    for counts in counted {
        all.extend(counts.map_err(|error| NotSettled::Unreachable(error.to_string()))?);
    }
    Ok(all)
}

async fn count_at(report: &NodeReport, access: &NodeAccess) -> Result<Vec<(Slot, u64)>, NodeError> {
    let myself = report.view.myself();
    if !myself.is_primary() || myself.slots.is_empty() {
        return Ok(Vec::new());
    }
    let access = access.expecting(myself.id);
    let endpoint = access.endpoint(report.address, NODE_TIMEOUT);
    let client = NodeClient::connect(&endpoint).await?;
    let owned: Vec<Slot> = myself.slots.iter().collect();
    let keys = client.count_keys_in_slots(&owned).await?;
    Ok(owned.into_iter().zip(keys).collect())
}

/// Every node of the target that answers, if the primaries among them together have each slot exactly once and none is being moved.
async fn settled(seeds: &Seeds) -> Result<Vec<NodeReport>, NotSettled> {
    let reports = read_all(seeds, NODE_TIMEOUT).await?;
    SlotMap::of(reports.iter().map(|report| &report.view))?;
    Ok(reports)
}

//! Asks every primary for its table, for the plan.

use super::{
    error::ReshardError,
    nodes::{NodeEndpoints, NodeLinks},
    open_slots::{SlotTable, SlotTables, marked},
};
use common::cluster::{
    slots::Slot,
    topology::{Flag, NodesView},
};
use futures::future::try_join_all;
use std::collections::BTreeSet;

/// What every one of these nodes that is a primary says of itself. A replica among them is left out, and one that does not answer is an error:
/// the plan needs all primaries.
pub async fn tables(nodes: &NodeEndpoints) -> Result<SlotTables, ReshardError> {
    let all: BTreeSet<_> = nodes.keys().copied().collect();
    let links = NodeLinks::connect(nodes, &all).await?;
    let views = try_join_all(links.iter().map(|link| async move {
        let view = link.view().await.map_err(|error| link.lost(error))?;
        Ok::<_, ReshardError>((link, view))
    }))
    .await?;
    let primaries = || views.iter().filter(|(_, view)| view.myself().is_primary());
    let mut tables: SlotTables = primaries()
        .map(|(link, view)| (link.id, table(view)))
        .collect();
    let open: Vec<Slot> = marked(&tables).into_iter().collect();
    if open.is_empty() {
        return Ok(tables);
    }
    let open = &open;
    let counts = try_join_all(primaries().map(|(link, _)| async move {
        let counts = link.control.count_keys_in_slots(open).await;
        let counts = counts.map_err(|error| link.lost(error))?;
        Ok::<_, ReshardError>((link.id, counts))
    }))
    .await?;
    for (id, counts) in counts {
        if let Some(table) = tables.get_mut(&id) {
            table.keys = open.iter().copied().zip(counts).collect();
        }
    }
    Ok(tables)
}

/// The table in a view, without keys.
fn table(view: &NodesView) -> SlotTable {
    let own = view.myself();
    let others = view
        .others()
        .filter(|node| node.is_primary() && !node.flags.has(Flag::Handshake));
    SlotTable {
        slots: own.slots.clone(),
        open: own.open_slots.clone(),
        primaries: others.map(|node| node.id).collect(),
        ..SlotTable::default()
    }
}

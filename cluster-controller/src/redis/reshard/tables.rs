//! Asks every primary for its table, for the plan.

use super::{
    error::ReshardError,
    nodes::{NodeEndpoints, NodeLink, NodeLinks},
    open_slots::{SlotTable, SlotTables, marked},
};
use common::cluster::{
    info::Info,
    node::NodeError,
    slots::{Slot, SlotSet},
    topology::{Flag, NodesView},
};
use futures::future::try_join_all;
use redis::cmd;
use std::collections::{BTreeMap, BTreeSet};

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
    let open = &marked(&tables);
    let counted = try_join_all(primaries().map(|(link, view)| async move {
        let keys = count(link, view, open).await;
        let keys = keys.map_err(|error| link.lost(error))?;
        Ok::<_, ReshardError>((link.id, keys))
    }))
    .await?;
    for (
        id,
        Counted {
            keys,
            bytes_per_key,
        },
    ) in counted
    {
        if let Some(table) = tables.get_mut(&id) {
            table.keys = keys;
            table.bytes_per_key = bytes_per_key;
        }
    }
    Ok(tables)
}

struct Counted {
    keys: BTreeMap<Slot, u64>,
    bytes_per_key: u64,
}

/// Counts the keys of the slots that a primary serves and of the open ones. If it holds more keys than those, which an interrupted move or a
/// table that was changed by hand leaves, those of all other slots too.
async fn count(
    link: &NodeLink,
    view: &NodesView,
    open: &BTreeSet<Slot>,
) -> Result<Counted, NodeError> {
    let own = &view.myself().slots;
    let slots = own.union(&open.iter().copied().collect());
    let mut keys = count_in(link, &slots).await?;
    let info: String = link.control.ask("INFO", &cmd("INFO")).await?;
    let info = Info::parse(&info);
    // Keys that clients write meanwhile look like hidden ones: that costs a question, and finds none.
    if info.keys() > keys.values().sum() {
        keys.extend(count_in(link, &SlotSet::full().difference(&slots)).await?);
    }
    Ok(Counted {
        keys,
        bytes_per_key: info.number("used_memory_dataset") / info.keys().max(1),
    })
}

/// The slots of these that have keys, with their number.
async fn count_in(link: &NodeLink, slots: &SlotSet) -> Result<BTreeMap<Slot, u64>, NodeError> {
    let slots: Vec<Slot> = slots.iter().collect();
    let counts = link.control.count_keys_in_slots(&slots).await?;
    let counts = slots.into_iter().zip(counts);
    Ok(counts.filter(|(_, keys)| *keys > 0).collect())
}

/// The table in a view, without keys.
fn table(view: &NodesView) -> SlotTable {
    let own = view.myself();
    let others = view
        .others()
        .filter(|node| node.is_primary() && !node.flags.has(Flag::Handshake));
    let listed = view.nodes().iter();
    let unlisted = listed.fold(SlotSet::full(), |all, node| all.difference(&node.slots));
    SlotTable {
        unlisted,
        slots: own.slots.clone(),
        open: own.open_slots.clone(),
        primaries: others.map(|node| node.id).collect(),
        ..SlotTable::default()
    }
}

//! Functions of Redis 7 and newer belong to a node, not to a slot: a primary that is about to get its first slot is given those that the
//! others have, so that what a client calls there exists. The engine copies them to its replicas.

use super::{
    error::{ReshardError, refusal},
    moves::SlotMove,
    nodes::{NodeLink, NodeLinks},
};
use common::cluster::{node::NodeError, topology::NodeId};
use redis::cmd;
use std::collections::BTreeMap;

/// Bytes of a dump without functions: a version of 2 and a checksum of 8 (`createDumpPayload` in the engine's `cluster.c`).
const EMPTY: usize = 10;

/// Gives every target that serves no slot yet the functions of a primary that it gets slots from. Nothing is removed at the target.
pub(super) async fn provide<'a>(
    links: &NodeLinks,
    moves: impl Iterator<Item = &'a SlotMove>,
) -> Result<(), ReshardError> {
    let sources: BTreeMap<NodeId, NodeId> = moves.map(|one| (one.target, one.source)).collect();
    for (target, source) in sources {
        let (target, source) = (links.get(target)?, links.get(source)?);
        let view = target.view().await.map_err(|error| target.lost(error))?;
        if view.myself().slots.is_empty() {
            copy(source, target).await?;
        }
    }
    Ok(())
}

async fn copy(source: &NodeLink, target: &NodeLink) -> Result<(), ReshardError> {
    let Some(functions) = dump(source).await? else {
        return Ok(());
    };
    if dump(target).await?.is_some_and(|own| own == functions) {
        return Ok(());
    }
    let mut restore = cmd("FUNCTION");
    restore.arg("RESTORE").arg(&functions).arg("REPLACE");
    let answer: Result<(), NodeError> = target.control.ask("FUNCTION RESTORE", &restore).await;
    answer.map_err(|error| match refusal(&error) {
        Some(message) => ReshardError::FunctionsRefused {
            node: target.id,
            source_node: source.id,
            message,
        },
        None => target.lost(error),
    })?;
    tracing::info!(source = %source.id, target = %target.id, "functions copied");
    Ok(())
}

/// All functions of a node; none if it has none, or is too old to know any.
async fn dump(link: &NodeLink) -> Result<Option<Vec<u8>>, ReshardError> {
    let answer: Result<Vec<u8>, NodeError> = link
        .control
        .ask("FUNCTION DUMP", cmd("FUNCTION").arg("DUMP"))
        .await;
    match answer {
        Ok(dump) => Ok((dump.len() > EMPTY).then_some(dump)),
        Err(error) => match refusal(&error) {
            Some(text) if text.contains("unknown command") => Ok(None),
            Some(_) | None => Err(link.lost(error)),
        },
    }
}

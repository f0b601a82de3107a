//! What is looked at before anything is moved: whether the slots are where the plan has them, which engine the servers have, whether the
//! targets have room, and how many keys there are.

use super::{
    error::ReshardError,
    limits::{Engine, EngineChoice, ReshardLimits},
    moves::SlotMove,
    nodes::{NodeLink, NodeLinks},
};
use common::cluster::{
    info::Info,
    slots::Slot,
    topology::{ClusterInfo, NodeId, NodesView},
};
use futures::future::try_join_all;
use redis::{Value, cmd};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// How long a target may take to learn who serves the slots that it is to import.
const LEARNING: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);

/// What was counted beforehand.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// Keys of each slot that moves.
    keys: BTreeMap<Slot, u64>,
    /// Bytes of memory that an average key of a source takes.
    bytes_per_key: BTreeMap<NodeId, u64>,
}

impl Census {
    pub(super) fn keys(&self, slot: Slot) -> u64 {
        self.keys.get(&slot).copied().unwrap_or_default()
    }

    pub(super) fn all_keys(&self) -> u64 {
        self.keys.values().sum()
    }

    /// Keys, and the memory they take.
    pub(super) fn load(&self, one: &SlotMove) -> (u64, u64) {
        let keys: u64 = one.slots.iter().map(|slot| self.keys(slot)).sum();
        let each = self.bytes_per_key.get(&one.source);
        (keys, keys.saturating_mul(each.copied().unwrap_or_default()))
    }
}

/// Counts the keys of the slots that move.
pub(super) async fn census(links: &NodeLinks, moves: &[SlotMove]) -> Result<Census, ReshardError> {
    let counts = try_join_all(moves.iter().map(|one| async move {
        let link = links.get(one.source)?;
        let info = info(link).await?;
        let slots: Vec<Slot> = one.slots.iter().collect();
        let counts = link.control.count_keys_in_slots(&slots).await;
        let counts = counts.map_err(|error| link.lost(error))?;
        let bytes = info.number("used_memory_dataset") / info.keys().max(1);
        Ok::<_, ReshardError>((one.source, bytes, slots.into_iter().zip(counts)))
    }))
    .await?;
    let mut census = Census::default();
    for (source, bytes, counts) in counts {
        census.keys.extend(counts);
        census.bytes_per_key.insert(source, bytes);
    }
    Ok(census)
}

/// Refuses a plan that is no longer true: every slot has to be served by its source, in the source's own view.
pub(super) async fn owners(links: &NodeLinks, moves: &[SlotMove]) -> Result<(), ReshardError> {
    let nodes: BTreeSet<NodeId> = moves
        .iter()
        .flat_map(|one| [one.source, one.target])
        .collect();
    let views = try_join_all(nodes.into_iter().map(|id| async move {
        let link = links.get(id)?;
        let view = link.view().await.map_err(|error| link.lost(error))?;
        if view.myself().is_primary() {
            Ok((id, view))
        } else {
            Err(ReshardError::NotPrimary(id))
        }
    }))
    .await?;
    let views: BTreeMap<NodeId, NodesView> = views.into_iter().collect();
    for one in moves {
        if let (Some(source), Some(target)) = (views.get(&one.source), views.get(&one.target)) {
            let missing = one.slots.difference(&source.myself().slots);
            let taken = one.slots.intersection(&target.myself().slots);
            if let Some(slot) = missing.union(&taken).iter().next() {
                let mut nodes = source.nodes().iter();
                return Err(ReshardError::OwnerChanged {
                    slot,
                    planned: one.source,
                    found: nodes
                        .find(|node| node.slots.contains(slot))
                        .map(|node| node.id)
                        .filter(|found| *found != one.source)
                        .or_else(|| taken.contains(slot).then_some(one.target)),
                });
            }
        }
    }
    Ok(())
}

/// Waits until every target knows who serves the slots that it is to import: it takes in no claim to a slot that is marked as imported
/// (`clusterUpdateSlotsConfigWith` in the engine's `cluster.c`), and a node that has just joined learns the claims within seconds. Then it
/// has to serve: for 2 s after its start, and a node timeout after it knew only a minority, it answers CLUSTERDOWN to the clients that are
/// sent there.
pub(super) async fn listed(links: &NodeLinks, moves: &[SlotMove]) -> Result<(), ReshardError> {
    let deadline = Instant::now() + LEARNING;
    all_known(links, moves, deadline).await?;
    let targets: BTreeMap<NodeId, Slot> = moves
        .iter()
        .filter_map(|one| Some((one.target, one.slots.iter().next()?)))
        .collect();
    try_join_all(targets.into_iter().map(|(target, slot)| async move {
        let link = links.get(target)?;
        while !serves(link).await? {
            if Instant::now() >= deadline {
                let message = format!("node {} does not serve yet", target.short());
                return Err(ReshardError::ClusterDown { slot, message });
            }
            sleep(LOOK).await;
        }
        Ok(())
    }))
    .await?;
    Ok(())
}

async fn serves(link: &NodeLink) -> Result<bool, ReshardError> {
    let text: String = link.ask("CLUSTER INFO", cmd("CLUSTER").arg("INFO")).await?;
    Ok(ClusterInfo::parse(&text).ok)
}

async fn all_known(
    links: &NodeLinks,
    moves: &[SlotMove],
    deadline: Instant,
) -> Result<(), ReshardError> {
    loop {
        let unknown = try_join_all(moves.iter().map(|one| async move {
            let link = links.get(one.target)?;
            let view = link.view().await.map_err(|error| link.lost(error))?;
            let source = view.get(one.source).map(|source| source.slots.clone());
            let unknown = one.slots.difference(&source.unwrap_or_default());
            let slot = unknown.iter().next();
            Ok::<_, ReshardError>(slot.map(|slot| (one.target, slot)))
        }))
        .await?;
        match unknown.into_iter().flatten().next() {
            None => return Ok(()),
            Some((node, slot)) if Instant::now() >= deadline => {
                return Err(ReshardError::NotAgreed { node, slot });
            }
            Some(_) => sleep(LOOK).await,
        }
    }
}

/// Refuses moves that would fill a target. An eviction policy does not help: it would delete keys.
pub(super) async fn room(
    links: &NodeLinks,
    moves: &[SlotMove],
    census: &Census,
) -> Result<(), ReshardError> {
    let mut needed: BTreeMap<NodeId, u64> = BTreeMap::new();
    for one in moves {
        *needed.entry(one.target).or_default() += census.load(one).1;
    }
    try_join_all(
        needed
            .into_iter()
            .map(|(target, needed)| async move { has_room(links.get(target)?, needed).await }),
    )
    .await?;
    Ok(())
}

/// Refuses a target whose `maxmemory` does not hold so many bytes more.
pub(super) async fn has_room(target: &NodeLink, needed: u64) -> Result<(), ReshardError> {
    let text: String = target.ask("INFO", cmd("INFO").arg("memory")).await?;
    let info = Info::parse(&text);
    let (used, maxmemory) = (info.number("used_memory"), info.number("maxmemory"));
    if maxmemory > 0 && used.saturating_add(needed) > maxmemory {
        return Err(ReshardError::TargetFull {
            target: target.id,
            needed,
            used,
            maxmemory,
        });
    }
    Ok(())
}

async fn info(link: &NodeLink) -> Result<Info, ReshardError> {
    let text: String = link.ask("INFO", &cmd("INFO")).await?;
    Ok(Info::parse(&text))
}

/// The engine for these nodes.
pub(super) async fn engine(
    links: &NodeLinks,
    moves: &[SlotMove],
    limits: &ReshardLimits,
) -> Result<Engine, ReshardError> {
    match limits.engine {
        EngineChoice::Legacy => return Ok(Engine::Legacy),
        EngineChoice::Auto if limits.has_rate() => return Ok(Engine::Legacy),
        EngineChoice::Auto | EngineChoice::Atomic => {}
    }
    let nodes: BTreeSet<NodeId> = moves
        .iter()
        .flat_map(|one| [one.source, one.target])
        .collect();
    for id in nodes {
        if !knows_migrate_slots(links.get(id)?).await? {
            return match limits.engine {
                EngineChoice::Atomic => Err(ReshardError::NoAtomicEngine(id)),
                EngineChoice::Auto | EngineChoice::Legacy => Ok(Engine::Legacy),
            };
        }
    }
    Ok(Engine::Atomic)
}

/// Servers answer nothing about a command they do not know.
async fn knows_migrate_slots(link: &NodeLink) -> Result<bool, ReshardError> {
    let mut command = cmd("COMMAND");
    command.arg("INFO").arg("cluster|migrateslots");
    let answer: Vec<Value> = link.ask("COMMAND INFO", &command).await?;
    Ok(matches!(answer.as_slice(), [Value::Array(_)]))
}

//! The engine that every server has: `CLUSTER SETSLOT` and `MIGRATE`, many slots at once.
//!
//! A few workers share the slots of a source. While two move keys, the other opens, lists or hands over, so that the calls follow each
//! other without a pause; the source carries out one at a time, and in between it answers its clients.

mod calls;
mod groups;
mod keys;
mod repair;
mod replicas;
mod reply;
mod serving;
mod strays;

pub(super) use repair::repair;

use super::{
    checks,
    context::Context,
    error::ReshardError,
    moves::SlotMove,
    nodes::{NodeLink, SlotState},
};
use common::cluster::{slots::Slot, topology::NodeId};
use futures::{StreamExt, future::join_all, stream};
use groups::{SlotGroup, WORKERS, groups};
use keys::{KeyMover, RightSide};
use replicas::{copied, dropped};
use serving::still_serves;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
};

/// Nodes that learn of moved slots at the same time.
const CONCURRENCY: usize = 32;

/// Moves the slots, all sources at the same time. Failures go to the context.
pub(super) async fn move_slots(context: &Context<'_>, moves: &[SlotMove]) {
    let mut by_source: BTreeMap<NodeId, Vec<&SlotMove>> = BTreeMap::new();
    for one in moves {
        by_source.entry(one.source).or_default().push(one);
    }
    let sources = by_source
        .into_iter()
        .map(|(source, moves)| move_from(context, source, moves));
    join_all(sources).await;
}

async fn move_from(context: &Context<'_>, source: NodeId, moves: Vec<&SlotMove>) {
    let source = match context.links.get(source) {
        Ok(link) => link,
        Err(error) => return context.fail(error),
    };
    let queue = Mutex::new(groups(&moves, context.limits, |slot| {
        context.census().keys(slot)
    }));
    let key_mover = KeyMover::new(context, source);
    let worker = || async {
        while !context.stop.is_cancelled()
            && let Some(group) = next(&queue)
        {
            if let Err(error) = move_group(context, &key_mover, &group).await {
                context.fail(error);
            }
        }
    };
    join_all((0..WORKERS).map(|_| worker())).await;
}

fn next(queue: &Mutex<VecDeque<SlotGroup>>) -> Option<SlotGroup> {
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    queue.pop_front()
}

/// Moves some slots from their source to one target, from the first mark to the last table.
async fn move_group(
    context: &Context<'_>,
    mover: &KeyMover<'_>,
    group: &SlotGroup,
) -> Result<(), ReshardError> {
    let source = mover.from();
    let target = context.links.get(group.target)?;
    let slots = &group.slots;
    let part = SlotMove {
        source: source.id,
        target: target.id,
        slots: slots.iter().copied().collect(),
    };
    checks::has_room(target, context.census().load(&part).1).await?;
    // The target first: a source that sends clients on before the target expects them sends them in circles.
    target
        .set_slots(slots, SlotState::Importing(source.id))
        .await?;
    source
        .set_slots(slots, SlotState::Migrating(target.id))
        .await?;
    mover.drain(slots, target, RightSide::Source).await?;
    tokio::try_join!(dropped(source), copied(target))?;
    still_serves(source, target, slots).await?;
    hand_over(source, target, slots).await?;
    context.tracker.handed_over(slots.len());
    announce(context, source, target, slots).await;
    Ok(())
}

/// The target takes the slots first: if it died after the source had given them up, no node would serve them (redis issue 7116).
async fn hand_over(
    source: &NodeLink,
    target: &NodeLink,
    slots: &[Slot],
) -> Result<(), ReshardError> {
    let state = SlotState::Node(target.id);
    target.set_slots(slots, state).await?;
    match source.set_slots(slots, state).await {
        // With `cluster-allow-replica-migration yes` a primary that has given its last slot away becomes a replica of the receiver.
        Err(ReshardError::NotPrimary(_)) => Ok(()),
        result => result,
    }
}

/// Informs the other primaries, which would learn it by gossip a little later: until then they send clients to the old primary.
async fn announce(context: &Context<'_>, source: &NodeLink, target: &NodeLink, slots: &[Slot]) {
    let others = context
        .links
        .iter()
        .filter(|link| link.id != source.id && link.id != target.id)
        .filter(|link| context.hears(link.id));
    let others: Vec<&NodeLink> = others.collect();
    stream::iter(others)
        .for_each_concurrent(CONCURRENCY, |link| async move {
            let answer = link.set_slots(slots, SlotState::Node(target.id)).await;
            if let Err(error) = answer {
                tracing::debug!(node = %link.id, %error, "a node learns of moved slots by gossip only");
                context.skip(link.id);
            }
        })
        .await;
}

//! Carries out a plan: checks it, repairs open slots, moves the rest, and waits until every node agrees.

use super::{
    atomic, checks,
    context::{Context, locked},
    error::ReshardError,
    functions, legacy,
    limits::{Engine, RateLimiter, ReshardLimits},
    moves::SlotMove,
    nodes::{NodeEndpoints, NodeLinks},
    open_slots::OpenSlotDecision,
    plan::{ReshardPlan, finishing},
    progress::{ReshardProgress, ReshardTracker},
};
use common::cluster::{slots::SlotSet, topology::NodeId};
use futures::future::try_join_all;
use std::{
    collections::BTreeSet,
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

/// How long slots that are open when a reshard is cancelled, or has failed elsewhere, may still take.
const DRAIN: Duration = Duration::from_millis(700);
/// Between two reports of progress.
const REPORT: Duration = Duration::from_millis(200);
/// How long the nodes may take to agree: gossip needs seconds where a node was not informed directly.
const AGREEMENT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);

/// How a reshard ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReshardEnd {
    /// Every slot of the plan has its new primary, and every node agrees.
    Completed,
    /// It was cancelled. The next plan has the rest.
    Canceled,
}

/// What a reshard did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReshardSummary {
    /// How it ended.
    pub end: ReshardEnd,
    /// What was moved.
    pub progress: ReshardProgress,
    /// Marks that were removed, beside those of moved slots.
    pub repaired: u64,
    /// The longest call of `MIGRATE`: so long the source answered no client. Zero with the atomic engine.
    pub longest_call: Duration,
    /// How long everything took.
    pub took: Duration,
}

/// Carries out a plan. `nodes` has to name every primary of the cluster, since each is informed of moved slots.
///
/// `cancel` is respected within a second: slots that are open then are finished if that is quick, and otherwise left for the next plan. A pause is
/// no different. On a failure the other parts stop in the same way, and the first failure is returned.
pub async fn run(
    plan: &ReshardPlan,
    nodes: &NodeEndpoints,
    limits: &ReshardLimits,
    cancel: &CancellationToken,
    progress: &watch::Sender<ReshardProgress>,
) -> Result<ReshardSummary, ReshardError> {
    let started = Instant::now();
    let tracker = ReshardTracker::default();
    let stop = cancel.child_token();
    let failure = Mutex::new(None);
    let mut end = ReshardEnd::Canceled;
    let work = async {
        match work(plan, nodes, limits, &tracker, &stop, &failure).await {
            Ok(reached) => end = reached,
            Err(error) => {
                locked(&failure).get_or_insert(error);
            }
        }
    };
    let deadline = async {
        stop.cancelled().await;
        sleep(DRAIN).await;
    };
    let reports = async {
        loop {
            sleep(REPORT).await;
            progress.send_replace(tracker.progress(Instant::now()));
        }
    };
    tokio::select! {
        () = work => {}
        () = deadline => {}
        () = reports => {}
    }
    let last = tracker.progress(Instant::now());
    progress.send_replace(last);
    if let Some(error) = locked(&failure).take() {
        return Err(error);
    }
    Ok(ReshardSummary {
        end,
        progress: last,
        repaired: tracker.repaired(),
        longest_call: tracker.longest_call(),
        took: started.elapsed(),
    })
}

async fn work(
    plan: &ReshardPlan,
    nodes: &NodeEndpoints,
    limits: &ReshardLimits,
    tracker: &ReshardTracker,
    stop: &CancellationToken,
    failure: &Mutex<Option<ReshardError>>,
) -> Result<ReshardEnd, ReshardError> {
    let finished = finishing(&plan.open_slots);
    let links = NodeLinks::connect(nodes, &concerned(plan)).await?;
    let context = Context {
        links: &links,
        limits,
        tracker,
        stop,
        failure,
        census: OnceLock::new(),
        rates: Mutex::new(RateLimiter::new(limits)),
        skipped: Mutex::default(),
    };
    let engine = prepare(&context, &finished, &plan.moves).await?;
    legacy::repair(&context, &plan.open_slots).await?;
    functions::provide(&links, finished.iter().chain(&plan.moves)).await?;
    // Slots that are open are finished the way they were begun.
    legacy::move_slots(&context, &finished).await;
    if stop.is_cancelled() {
        return Ok(ReshardEnd::Canceled);
    }
    checks::owners(&links, &plan.moves).await?;
    checks::listed(&links, &plan.moves).await?;
    match engine {
        Engine::Legacy => legacy::move_slots(&context, &plan.moves).await,
        Engine::Atomic => atomic::move_slots(&context, &plan.moves).await,
    }
    let progress = tracker.progress(Instant::now());
    if stop.is_cancelled() && progress.slots_done < progress.slots_total {
        return Ok(ReshardEnd::Canceled);
    }
    agreement(&links, &finished, &plan.moves).await?;
    Ok(ReshardEnd::Completed)
}

/// Everything that can be known before a key moves.
async fn prepare(
    context: &Context<'_>,
    finished: &[SlotMove],
    moves: &[SlotMove],
) -> Result<Engine, ReshardError> {
    let links = context.links;
    let open = union(finished);
    // A slot that is finished may move on to a third node afterwards: its source is the next one then.
    let settled = moves.iter().map(|one| SlotMove {
        slots: one.slots.difference(&open),
        ..one.clone()
    });
    let all: Vec<SlotMove> = finished.iter().cloned().chain(settled).collect();
    checks::owners(links, &all).await?;
    let census = checks::census(links, &all).await?;
    checks::room(links, &all, &census).await?;
    let engine = checks::engine(links, moves, context.limits).await?;
    let slots: usize = finished
        .iter()
        .chain(moves)
        .map(|one| one.slots.len())
        .sum();
    context
        .tracker
        .expect(engine, slots as u64, census.all_keys());
    let _ = context.census.set(census);
    Ok(engine)
}

/// The nodes that a plan needs.
fn concerned(plan: &ReshardPlan) -> BTreeSet<NodeId> {
    let mut nodes: BTreeSet<NodeId> = plan
        .moves
        .iter()
        .flat_map(|one| [one.source, one.target])
        .collect();
    for decision in &plan.open_slots {
        match *decision {
            OpenSlotDecision::Finish { source, target, .. } => nodes.extend([source, target]),
            OpenSlotDecision::Close { node, .. } => nodes.extend([node]),
            OpenSlotDecision::ReturnKeys { from, owner, .. } => nodes.extend([from, owner]),
            OpenSlotDecision::Undecided { .. } => {}
        }
    }
    nodes
}

fn union(moves: &[SlotMove]) -> SlotSet {
    let mut slots = moves.iter().map(|one| &one.slots);
    let first = slots.next().cloned().unwrap_or_default();
    slots.fold(first, |all, more| all.union(more))
}

/// Waits until every node has every moved slot at its new primary.
async fn agreement(
    links: &NodeLinks,
    finished: &[SlotMove],
    moves: &[SlotMove],
) -> Result<(), ReshardError> {
    let moved_on = union(moves);
    let settled = finished.iter().map(|one| SlotMove {
        slots: one.slots.difference(&moved_on),
        ..one.clone()
    });
    let expected: Vec<SlotMove> = settled.chain(moves.iter().cloned()).collect();
    let deadline = Instant::now() + AGREEMENT;
    loop {
        match disagreement(links, &expected).await? {
            Some(error) if Instant::now() >= deadline => return Err(error),
            Some(_) => sleep(LOOK).await,
            None => return Ok(()),
        }
    }
}

/// The first node with another table.
async fn disagreement(
    links: &NodeLinks,
    expected: &[SlotMove],
) -> Result<Option<ReshardError>, ReshardError> {
    let views = try_join_all(links.iter().map(|link| async move {
        let view = link.view().await.map_err(|error| link.lost(error))?;
        Ok::<_, ReshardError>((link.id, view))
    }))
    .await?;
    for (node, view) in &views {
        let open: SlotSet = view
            .myself()
            .open_slots
            .iter()
            .map(|open| open.slot)
            .collect();
        for one in expected {
            let missing = match view.get(one.target) {
                Some(target) => one.slots.difference(&target.slots),
                None => one.slots.clone(),
            };
            if let Some(slot) = missing.union(&open.intersection(&one.slots)).iter().next() {
                return Ok(Some(ReshardError::NotAgreed { node: *node, slot }));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A supervised task runs on any thread.
    #[test]
    fn a_run_can_be_a_task() {
        fn is_send(_: &impl Send) {}
        let (plan, nodes, limits) = (
            ReshardPlan::default(),
            NodeEndpoints::new(),
            ReshardLimits::default(),
        );
        let (progress, _) = watch::channel(ReshardProgress::default());
        let cancel = CancellationToken::new();
        is_send(&run(&plan, &nodes, &limits, &cancel, &progress));
    }
}

//! Asks the nodes, and decides. What could lose data is decided a second time, of what the API server says and not the cache.

use super::{failures::Failures, inputs::Inputs};
use crate::{
    context::Context,
    decision::Decision,
    errors::ReconcileError,
    hibernate,
    observe::{observe, observe_live},
};
use common::kubernetes::call::ApiError;

/// Kubernetes nodes that are read before a hand-over, at most: one after the other, as long as each turns out to be cordoned.
const MOST_CORDONED: usize = 8;

/// What was seen, and what follows.
pub(super) struct Seen {
    /// What is to be done.
    pub(super) decision: Decision,
    /// Whether it may be carried out.
    pub(super) confirmed: bool,
}

/// None: an answer was missed that is no outage yet, so it is looked at again.
pub(super) async fn look(
    context: &Context,
    inputs: &Inputs,
    failures: &mut Failures,
) -> Result<Option<Seen>, ReconcileError> {
    let shape = &inputs.shape;
    let mut seen = look_once(context, inputs).await;
    if seen.observed.passed_over {
        return Ok(None);
    }
    if shape.hibernate {
        let members = &seen.observed.members;
        hibernate::hold_writes(context, inputs.place(), members, &inputs.pods).await?;
    }
    let mut confirmed = !shape.paused && !shape.hibernate;
    if confirmed && (seen.plan.is_risky() || seen.removes_memory(&inputs.sets)) {
        match failures.keep(look_again(context, inputs).await) {
            Some(live) if live.observed.passed_over => return Ok(None),
            Some(live) => seen = live,
            None => confirmed = false,
        }
    }
    if confirmed {
        seen = without_cordoned(context, seen, inputs).await;
    }
    if seen.lacks_kept_volumes && confirmed {
        let volumes: Vec<(i32, i32)> = inputs.claims.keys().copied().collect();
        seen.sets = seen.sets.with_volumes(&volumes);
    }
    Ok(Some(Seen {
        decision: seen,
        confirmed,
    }))
}

async fn look_once(context: &Context, inputs: &Inputs) -> Decision {
    let (shape, wanted) = (&inputs.shape, &inputs.wanted);
    let observed = observe(context, shape, wanted, &inputs.last_seen, &inputs.names).await;
    inputs.decide(observed)
}

/// Asks the API server and the nodes once more, and decides again: of what is about to be done, something could be lost.
pub(super) async fn look_again(context: &Context, inputs: &Inputs) -> Result<Decision, ApiError> {
    let (shape, wanted) = (&inputs.shape, &inputs.wanted);
    let live = observe_live(context, shape, wanted, &inputs.last_seen, &inputs.names).await;
    Ok(inputs.decide(live?))
}

/// Decides a hand-over again without the Kubernetes nodes that turn out to be cordoned.
async fn without_cordoned(context: &Context, mut seen: Decision, inputs: &Inputs) -> Decision {
    for _ in 0..MOST_CORDONED {
        let Some(target) = seen.takes_a_primary() else {
            break;
        };
        if !context.machines.is_cordoned(&target).await {
            break;
        }
        let mut observed = seen.observed;
        observed.mark_cordoned(&target);
        seen = inputs.decide(observed);
    }
    seen
}

//! What the controller is doing to a cluster that serves: for the status. Pure.

use crate::{
    decision::Decision,
    redis::{balance::Balance, reshard::ReshardProgress},
    resharding::ReshardState,
    rollout::{Rollout, RolloutStep},
    settings::trial::Gate,
    validate::ValidatedCluster,
};
use common::{
    cluster::slots::SLOT_COUNT,
    sentence::{grouped, list, names},
};
use crds::OperationKind;

/// A change of the running cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What is done.
    pub kind: OperationKind,
    /// How much is done: pods of an update or a hibernation, slots of a scaling.
    pub done: usize,
    /// How much there is in all.
    pub total: usize,
    /// What is done next; none where the cluster has to be healthy first.
    pub next: Option<String>,
    /// Whether that waits for a person, another operation or a pod, which may take long.
    pub waits: bool,
}

impl Operation {
    /// What is under way, if anything is: slots move before pods are replaced.
    pub fn of(
        decision: &Decision,
        cluster: &ValidatedCluster,
        moves: &ReshardState,
        gate: &Gate,
        holder: Option<&str>,
    ) -> Option<Self> {
        if !cluster.formed {
            return None;
        }
        let shape = &cluster.shape;
        let nodes = shape.shards.saturating_mul(1 + shape.replicas);
        let nodes = usize::try_from(nodes).unwrap_or_default();
        let paused = cluster.migration.paused;
        Self::of_scaling(&decision.balance, moves, paused, &decision.leaving())
            .or_else(|| Self::of_trial(gate, nodes))
            .or_else(|| Self::of_rollout(&decision.rollout, nodes, holder))
    }

    /// The trial of a configuration, of so many pods in all.
    fn of_trial(gate: &Gate, total: usize) -> Option<Self> {
        let Gate::Trying(pod) = gate else {
            return None;
        };
        Some(Self {
            kind: OperationKind::Update,
            done: 0,
            total,
            next: Some(format!("pod {pod} tries the new image and configuration")),
            waits: true,
        })
    }

    /// A rollout, of so many pods in all. `holder`: who needs the pods to stay as they are.
    pub fn of_rollout(rollout: &Rollout, total: usize, holder: Option<&str>) -> Option<Self> {
        if !rollout.is_under_way() {
            return None;
        }
        let next = match (&rollout.next, holder) {
            (RolloutStep::None | RolloutStep::Refused { .. }, _) => None,
            (RolloutStep::Unwritten { shard }, _) => Some(format!(
                "waiting for the StatefulSet of shard {shard}, which does not name the new template yet"
            )),
            (_, Some(holder)) => Some(format!(
                "waiting for {holder}, which needs the pods to stay"
            )),
            (RolloutStep::Replace(pods), None) => {
                let pods: Vec<&str> = pods.iter().map(|pod| pod.pod.as_str()).collect();
                Some(format!("replacing {}", names("pod", &pods)))
            }
            (RolloutStep::HandOver(step), None) => Some(step.reason.clone()),
        };
        Some(Self {
            kind: OperationKind::Update,
            done: total.saturating_sub(rollout.outdated.len()),
            total,
            next,
            waits: holder.is_some() || rollout.next == RolloutStep::None,
        })
    }

    /// A change of the size: slots that are to move, then pods that leave. `leaving`: pods that the spec does not ask for.
    pub fn of_scaling(
        balance: &Balance,
        state: &ReshardState,
        paused: bool,
        leaving: &[(String, Option<String>)],
    ) -> Option<Self> {
        let moving = matches!(state, ReshardState::Moving(_));
        let silent = &balance.silent;
        if !balance.needs_moves() && leaving.is_empty() && !moving && silent.is_empty() {
            return None;
        }
        let next = match state {
            ReshardState::Idle | ReshardState::Waiting(_) if !silent.is_empty() => {
                let causes = silent.iter().map(|(pod, why)| (pod.as_str(), why.clone()));
                let causes = list(&grouped(causes));
                Some(format!("no slot moves before every pod answers: {causes}"))
            }
            ReshardState::Moving(progress) => Some(speed(progress)),
            ReshardState::Idle | ReshardState::Waiting(_) if balance.needs_moves() && paused => {
                Some("spec.migration.paused is true: no slot begins to move".to_owned())
            }
            ReshardState::Waiting(why) if balance.needs_moves() => Some(why.clone()),
            ReshardState::Idle if balance.strays > 0 => {
                Some("keys return to the primaries that serve their slots".to_owned())
            }
            ReshardState::Idle | ReshardState::Waiting(_) if leaving.is_empty() => None,
            ReshardState::Idle | ReshardState::Waiting(_) => Some(leaves(leaving)),
        };
        let all = usize::from(SLOT_COUNT);
        Some(Self {
            kind: OperationKind::Scale,
            done: all.saturating_sub(balance.misplaced),
            total: all,
            next,
            waits: match state {
                ReshardState::Moving(_) => false,
                ReshardState::Waiting(_) => true,
                ReshardState::Idle => paused || !silent.is_empty(),
            },
        })
    }

    /// A hibernation, of so many pods, that waits for this.
    pub fn of_hibernation(total: usize, waits_for: &str) -> Self {
        Self {
            kind: OperationKind::Hibernate,
            done: 0,
            total,
            next: Some(format!(
                "waiting for {waits_for}, which needs the pods to stay"
            )),
            waits: true,
        }
    }

    /// The progress, in words.
    pub fn progress(&self) -> String {
        let Self { done, total, .. } = self;
        match self.kind {
            OperationKind::Update => format!("{done} of {total} pods have the wanted template"),
            OperationKind::Scale => format!("{done} of {total} slots are in the wanted shard"),
            OperationKind::Hibernate => format!("{done} of {total} pods are stopped"),
        }
    }
}

/// What becomes of pods that the spec does not ask for. One that does not answer may have keys that are nowhere else.
fn leaves(leaving: &[(String, Option<String>)]) -> String {
    let pods: Vec<&str> = leaving.iter().map(|(pod, _)| pod.as_str()).collect();
    let silent = leaving.iter();
    let silent = silent.filter_map(|(pod, why)| Some((pod.as_str(), why.clone()?)));
    let silent = grouped(silent);
    if silent.is_empty() {
        return format!("{} leaves the cluster", names("pod", &pods));
    }
    format!(
        "{} leaves once it says that it has no keys; if its volume is lost, delete its claim and the pod: {}",
        names("pod", &pods),
        list(&silent)
    )
}

/// How fast slots move, and how long the rest takes. Rounded: what changes every moment would be written every moment.
fn speed(progress: &ReshardProgress) -> String {
    let moved = format!(
        "{} of {} slots moved",
        progress.slots_done, progress.slots_total
    );
    match progress.remaining() {
        Some(left) if left.as_secs() > 0 => format!("{moved}, about {} s left", left.as_secs()),
        Some(_) | None => moved,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_is_left_is_reported() {
        let at = |keys_per_second| {
            speed(&ReshardProgress {
                slots_done: 20,
                slots_total: 200,
                keys_done: 1000,
                keys_total: 10_000,
                keys_per_second,
                ..ReshardProgress::default()
            })
        };
        assert_eq!(at(300.0), "20 of 200 slots moved, about 30 s left");
        assert_eq!(at(0.0), "20 of 200 slots moved");
    }

    #[test]
    fn what_may_take_long_is_known() {
        let balance = Balance {
            misplaced: 5,
            ..Balance::default()
        };
        let waits = |state: ReshardState, paused| {
            let operation = Operation::of_scaling(&balance, &state, paused, &[]);
            operation.unwrap().waits
        };
        assert!(!waits(ReshardState::Idle, false));
        assert!(waits(ReshardState::Idle, true));
        assert!(waits(ReshardState::Waiting("a backup".into()), false));
        assert!(Operation::of_hibernation(6, "a backup").waits);
    }

    #[test]
    fn a_pod_that_keeps_slots_from_moving_is_named() {
        let balance = Balance {
            misplaced: 5,
            silent: vec![("shop-0-1".into(), "the node is full".into())],
            ..Balance::default()
        };
        let found = Operation::of_scaling(&balance, &ReshardState::Idle, false, &[]).unwrap();
        assert!(found.waits);
        let next = found.next.unwrap();
        assert!(next.contains("shop-0-1: the node is full"), "{next}");
    }

    #[test]
    fn a_pod_that_leaves_and_does_not_answer_is_named() {
        let next = |why: Option<&str>| {
            let leaving = [("shop-3-0".to_owned(), why.map(ToOwned::to_owned))];
            let balance = Balance::default();
            let found = Operation::of_scaling(&balance, &ReshardState::Idle, false, &leaving);
            found.unwrap().next.unwrap()
        };
        assert_eq!(next(None), "pod shop-3-0 leaves the cluster");
        let silent = next(Some("the node is full"));
        assert!(silent.contains("shop-3-0: the node is full"), "{silent}");
    }
}

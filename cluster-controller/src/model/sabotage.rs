//! Controllers that are wrong on purpose: the properties have to notice each of them.

use super::Model;
use crate::{
    decision::Decision,
    pods::replace::{ReplacePod, ReplaceReason},
    redis::plan::{Action, Assignment, Blocker, PromotedCopy, Step},
    rollout::RolloutStep,
    sets::{SetSize, Sets},
};
use common::cluster::{node::FailoverMode, topology::NodeId};
use kube::ResourceExt;

/// What a controller does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    None,
    /// Sets shrink as soon as the spec says so.
    ShrinksAtOnce,
    /// Slots move to a node of another cluster.
    MovesToForeignNodes,
    /// Primaries are replaced without a hand-over.
    ReplacesPrimaries,
    /// A replica takes over although the majority may live.
    TakesOverUnfenced,
    /// Lost primaries are given up as soon as they do not answer.
    CreatesSlotsAgain,
    /// Nodes are forgotten that have slots.
    ForgetsTheLiving,
    /// It does not stop at its goal.
    IsNeverDone,
}

impl Model {
    /// Makes the decision wrong.
    pub(super) fn sabotage(&self, seen: &mut Decision) {
        match self.sabotage {
            Sabotage::None | Sabotage::MovesToForeignNodes => {}
            Sabotage::ShrinksAtOnce => seen.sets = self.sizes_of_the_spec(),
            Sabotage::ReplacesPrimaries => {
                if let RolloutStep::HandOver(Step {
                    action: Action::HandOver { from, .. },
                    ..
                }) = &seen.rollout.next
                {
                    let pod = &seen.observed.members[*from].expected.pod;
                    let pod = &seen.observed.pods[pod];
                    seen.rollout.next = RolloutStep::Replace(vec![ReplacePod {
                        pod: pod.name_any(),
                        uid: pod.metadata.uid.clone().unwrap(),
                        reason: ReplaceReason::Outdated,
                    }]);
                }
            }
            Sabotage::TakesOverUnfenced => take_over(seen),
            Sabotage::CreatesSlotsAgain => create_again(seen),
            Sabotage::ForgetsTheLiving => forget(seen),
            Sabotage::IsNeverDone => {
                let moved = seen.observed.members.iter().position(|one| {
                    let report = one.report();
                    report.is_some_and(|report| report.own().is_replica())
                });
                if let Some(to) = moved.filter(|_| seen.plan.steps.is_empty()) {
                    let own = seen.observed.members[to].report().unwrap().own();
                    seen.plan.steps.push(Step {
                        action: Action::Replicate {
                            member: to,
                            primary: own.primary.unwrap(),
                            formation_node_timeout: None,
                        },
                        reason: "once more".to_owned(),
                    });
                }
            }
        }
    }

    fn sizes_of_the_spec(&self) -> Sets {
        let shape = &self.cluster.shape;
        let last = self.kubernetes.sets.keys().next_back();
        let last = last.map_or(0, |last| i32::try_from(*last).unwrap() + 1);
        Sets {
            sizes: (0..shape.shards)
                .map(|shard| SetSize {
                    shard,
                    pods: 1 + shape.replicas,
                    keeps_volumes: false,
                })
                .collect(),
            removed: (shape.shards..last).collect(),
        }
    }

    pub(super) fn sabotaged_target(&self) -> Option<NodeId> {
        (self.sabotage == Sabotage::MovesToForeignNodes)
            .then(|| self.world.foreign_id())
            .flatten()
    }
}

fn take_over(seen: &mut Decision) {
    let unfenced = seen.plan.blockers.iter().find_map(|blocker| {
        let Blocker::Unfenced { replica, .. } = blocker else {
            return None;
        };
        Some(replica.clone())
    });
    let Some(replica) = unfenced else {
        return;
    };
    let members = &seen.observed.members;
    let member = members
        .iter()
        .position(|one| replica.starts_with(&format!("{} ", one.expected.pod)));
    let Some(member) = member else {
        return;
    };
    let Some(primary) = members[member].report().and_then(|one| one.own().primary) else {
        return;
    };
    seen.plan.steps.push(Step {
        action: Action::Promote {
            member,
            primary,
            mode: FailoverMode::Takeover,
            unheard: Vec::new(),
            copy: PromotedCopy::Held,
        },
        reason: "without a fence".to_owned(),
    });
}

/// The first primary that answers gets the slots of one that does not.
fn create_again(seen: &mut Decision) {
    let mut members = seen.observed.members.iter().enumerate();
    let found = members.find_map(|(index, one)| {
        let report = one.report().filter(|report| report.own().is_primary())?;
        let mut others = report.view.others();
        let failed = others.find(|one| one.is_failing() && !one.slots.is_empty())?;
        Some((index, failed.slots.ranges()))
    });
    if let Some((member, ranges)) = found {
        seen.plan.steps.push(Step {
            action: Action::AssignSlots {
                member,
                ranges: ranges.clone(),
                how: Assignment::Recreated { listed: ranges },
            },
            reason: "it does not answer".to_owned(),
        });
    }
}

fn forget(seen: &mut Decision) {
    let members = &seen.observed.members;
    let listing = members.iter().enumerate().find_map(|(index, one)| {
        let report = one.report()?;
        let failed = report.view.others().find(|one| one.is_failing())?;
        Some((index, failed.id))
    });
    if let Some((index, id)) = listing {
        seen.plan.steps.push(Step {
            action: Action::Forget {
                id,
                on: vec![index],
            },
            reason: "it does not answer".to_owned(),
        });
    }
}

//! Everything that follows from one observation. Pure.

use crate::{
    observe::Observed,
    pods::replace::ReplacePod,
    redis::{
        assess::{Assessment, assess},
        balance::{Balance, balance},
        member::Wanted,
        plan::{Action, Plan, plan},
        survey::Survey,
    },
    rollout::{Rollout, RolloutInputs, RolloutStep},
    sets::{ExistingSet, Sets, lacks_kept_volumes, members_from, sets},
    settings::{
        assess::{self, ClusterSettings, SettingsGoal},
        tracker::ClusterAnswers,
    },
    validate::{Shape, ValidatedCluster},
};
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeSet;

/// What an observation is compared with.
pub struct Goal<'a> {
    /// What repairing the nodes needs.
    pub shape: &'a Shape,
    /// What is wanted besides; none where the spec is wrong.
    pub cluster: Option<&'a ValidatedCluster>,
    /// The same for the Redis half.
    pub wanted: &'a Wanted,
    /// The StatefulSets that exist.
    pub sets: &'a [ExistingSet],
    /// Shards whose StatefulSet makes pods as they are wanted.
    pub written: &'a BTreeSet<i32>,
    /// Whether slots were moving when the nodes were asked: one that had nothing may have keys by now.
    pub moving: bool,
    /// The settings that the servers are to have; none where the spec is wrong.
    pub settings: Option<&'a SettingsGoal>,
}

/// What was observed, and what follows from it.
pub struct Decision {
    /// Pods and nodes.
    pub observed: Observed,
    /// How the cluster is.
    pub assessment: Assessment,
    /// What repairs it.
    pub plan: Plan,
    /// The StatefulSets as they are to be.
    pub sets: Sets,
    /// Slots that are to move.
    pub balance: Balance,
    /// What the servers have of the wanted settings.
    pub settings: ClusterSettings,
    /// Pods that are to be replaced.
    pub rollout: Rollout,
    /// Whether nodes are missing that may be in volumes which the spec does not ask for.
    pub lacks_kept_volumes: bool,
}

/// Decides, from a survey that is built once. `answers`: what servers answered when their settings were changed.
pub fn decide(
    goal: &Goal<'_>,
    observed: Observed,
    answers: &ClusterAnswers,
    now: Timestamp,
) -> Decision {
    let survey = Survey::of(goal.wanted, &observed.members);
    let (assessment, plan) = (assess(&survey), plan(&survey, now));
    let settings = goal
        .settings
        .map(|settings| assess::assess(settings, &observed.members, &observed.pods, answers, now));
    let settings = settings.unwrap_or_default();
    let rollout = goal.cluster.map(|cluster| {
        RolloutInputs {
            cluster,
            observed: &observed,
            survey: &survey,
            assessment: &assessment,
            plan: &plan,
            restart: &settings.restart,
            written: goal.written,
            now,
        }
        .decide()
    });
    Decision {
        sets: sets(goal.shape, goal.sets, &survey, goal.moving),
        lacks_kept_volumes: lacks_kept_volumes(&survey),
        balance: balance(&survey),
        rollout: rollout.unwrap_or_default(),
        settings,
        assessment,
        plan,
        observed,
    }
}

impl Decision {
    /// The Kubernetes node that a primary is to be handed over to, where it is not known to be cordoned.
    pub fn takes_a_primary(&self) -> Option<String> {
        let planned = self.plan.steps.iter();
        let step = planned.chain(match &self.rollout.next {
            RolloutStep::HandOver(step) => Some(step),
            RolloutStep::None
            | RolloutStep::Replace(_)
            | RolloutStep::Unwritten { .. }
            | RolloutStep::Refused { .. } => None,
        });
        let mut targets = step.filter_map(|step| {
            let Action::HandOver { to, .. } = step.action else {
                return None;
            };
            Some(&self.observed.members.get(to)?.expected)
        });
        let target = targets.next().filter(|target| !target.cordoned)?;
        target.kubernetes_node.clone()
    }

    /// Whether a StatefulSet shrinks by a pod that has its data in memory: with the pod they are gone.
    pub fn removes_memory(&self, existing: &[ExistingSet]) -> bool {
        existing.iter().any(|set| {
            let mut sizes = self.sets.sizes.iter();
            let size = sizes.find(|size| size.shard == set.shard);
            let left = size.map_or(0, |size| size.pods);
            let mut leaving = members_from(&self.observed.members, set.shard, left);
            set.pods > left && leaving.any(|member| !member.expected.has_volume)
        })
    }

    /// Whether the pod is to be replaced now.
    pub fn replaces(&self, pod: &ReplacePod) -> bool {
        match &self.rollout.next {
            RolloutStep::Replace(pods) => pods.contains(pod),
            RolloutStep::None
            | RolloutStep::HandOver(_)
            | RolloutStep::Unwritten { .. }
            | RolloutStep::Refused { .. } => false,
        }
    }

    /// Whether slots are to move, and nothing has to be repaired before.
    pub fn is_ready_to_move(&self) -> bool {
        let is_copied = self.balance.misplaced == 0 || self.balance.copying == 0;
        self.balance.needs_moves() && is_copied && self.plan.lets_slots_move()
    }

    /// Pods that the spec does not ask for any more, each with the cause if it does not answer.
    pub fn leaving(&self) -> Vec<(String, Option<String>)> {
        let leaving = self.observed.members.iter();
        let leaving = leaving.filter(|member| !member.expected.wanted);
        let explained = leaving.map(|member| {
            let (pod, why) = member.explained();
            (pod, member.report().is_none().then_some(why))
        });
        explained.collect()
    }
}

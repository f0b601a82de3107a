//! A reconcile, as `reconcile` and `change` carry it out. The controller can end between any two effects, and forgets what it remembers.

use super::{
    Model,
    kubernetes::{CLUSTER, NAMESPACE, Seat, SetState},
    mover::Mover,
};
use crate::{
    copies::CopyTracker,
    decision::{Decision, Goal, decide},
    fencing::{self, FencingInputs, LastSeen},
    hand_overs::{AFTER_FAILURE, HandOverTracker, WHILE_HELD},
    observe::{self, Observed},
    pod_patch::PodChange,
    pods::{
        Pods,
        replace::{ReplacePod, ReplaceReason},
    },
    redis::{
        identity::{has_unrecorded, known_nodes, recognize},
        member::{Answer, Member, Wanted, ZoneLabel},
        plan::{Action, Plan},
        survey::Survey,
    },
    rollout::{self, RolloutStep},
    serving,
    sets::{ExistingSet, SetSize},
    settings::tracker::ClusterAnswers,
    unresponsive::UnresponsiveTracker,
    volumes::Claims,
};
use common::cluster::{slots::SlotSet, topology::NodeId};
use crds::node_of_pod;
use kube::ResourceExt;
use std::{collections::BTreeSet, fmt};

const PLACE: (&str, &str) = (NAMESPACE, CLUSTER);

/// What a controller remembers: it may be lost at any moment.
#[derive(Default)]
pub struct Controller {
    unresponsive: UnresponsiveTracker,
    copies: CopyTracker,
    hand_overs: HandOverTracker,
    pub(super) mover: Option<Mover>,
    /// When slots may move again after a failure.
    pub(super) moves_after: i64,
    /// Effects until it ends.
    pub(super) ends_after: Option<u32>,
}

/// A copy of a model begins with a new controller.
impl Clone for Controller {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl fmt::Debug for Controller {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mover.fmt(out)
    }
}

impl Model {
    /// Before each effect: what happens in front of it, and whether the controller is still there.
    pub(super) fn may_act(&mut self) -> bool {
        self.happen_amid();
        match &mut self.controller.ends_after {
            Some(0) => {
                self.note("the controller ends and another one starts");
                self.controller = Controller::default();
                false
            }
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        }
    }

    pub(super) fn wanted(&self) -> Wanted {
        observe::wanted(&self.cluster.shape, self.formed, self.known.clone())
    }

    /// What the controller sees and concludes. None: it looks again first.
    pub(super) fn look(&mut self) -> Option<Decision> {
        let now = self.kubernetes.timestamp();
        let pods = self.kubernetes.shown();
        let mut wanted = self.wanted();
        wanted.may_hand_over = self.controller.hand_overs.may_try(PLACE, now);
        wanted.may_spread = wanted.may_hand_over && !rollout::is_due(Some(&self.cluster), &pods);
        if !wanted.formed_before {
            let claims = Claims::default();
            wanted.absent = observe::absent_pods(&self.cluster.shape, None, &pods, &claims);
        }
        let observed = self.observe(&wanted, pods);
        let sets = self.kubernetes.sets.iter();
        let number = |value: usize| i32::try_from(value).unwrap();
        let existing: Vec<ExistingSet> = sets
            .map(|(shard, set)| ExistingSet {
                shard: number(*shard),
                pods: number(set.pods),
            })
            .collect();
        let hash = &self.cluster.restart_hash;
        let sets = self.kubernetes.sets.iter();
        let written = sets.filter(|(_, set)| set.hash == *hash);
        let written: BTreeSet<i32> = written.map(|(shard, _)| number(*shard)).collect();
        let goal = Goal {
            shape: &self.cluster.shape,
            cluster: Some(&self.cluster),
            wanted: &wanted,
            sets: &existing,
            written: &written,
            moving: self.controller.mover.is_some(),
            settings: None,
        };
        let passed_over = observed.passed_over;
        self.world.wanted = wanted.clone();
        let mut seen = decide(&goal, observed, &ClusterAnswers::new(), now);
        self.sabotage(&mut seen);
        (!passed_over).then_some(seen)
    }

    fn observe(&mut self, wanted: &Wanted, pods: Pods) -> Observed {
        let expected = observe::expected(&self.cluster.shape, &pods);
        let mut members: Vec<Member> = expected
            .into_iter()
            .map(|mut expected| {
                expected.zone = ZoneLabel::Absent;
                let answer = if expected.address.is_some() {
                    self.world.answer_at(expected.address)
                } else {
                    Answer::Absent("it has no address".to_owned())
                };
                Member { expected, answer }
            })
            .collect();
        recognize(wanted, &mut members);
        let exists = |name: &str| pods.contains_key(name);
        let now = self.kubernetes.timestamp();
        let unresponsive = &self.controller.unresponsive;
        let passed_over = unresponsive.note(PLACE, &mut members, exists, &wanted.known, now);
        let survey = Survey::of(wanted, &members);
        let copies = &self.controller.copies;
        let times = copies.note(PLACE, &survey, &self.last_seen, now);
        times.mark(&mut members, &wanted.known);
        self.add_evidence(wanted, &pods, &mut members);
        Observed {
            pods,
            members,
            passed_over,
        }
    }

    fn add_evidence(&self, wanted: &Wanted, pods: &Pods, members: &mut [Member]) {
        let survey = Survey::of(wanted, members);
        if !fencing::is_asked_for(&survey) {
            return;
        }
        let lost: Vec<(NodeId, usize, &str)> = survey
            .lost_primaries()
            .filter_map(|(id, missing)| Some((id, missing.home?, wanted.known.get(&id)?.as_str())))
            .collect();
        let away: Vec<(NodeId, &str)> = lost.iter().map(|(id, _, pod)| (*id, *pod)).collect();
        let names = fencing::machines(&away, &self.last_seen, pods);
        let machines = self.kubernetes.machine_states(&names);
        let inputs = FencingInputs {
            last_seen: &self.last_seen,
            pods,
            machines: &machines,
            gone_since: &self.controller.unresponsive.gone_since(PLACE),
            now: self.kubernetes.timestamp(),
        };
        for (id, home, _) in lost {
            let evidence = fencing::evidence(id, &members[home], &inputs);
            members[home].expected.former.insert(id, evidence);
        }
    }

    /// Whatever is found is done, in the order of the product.
    pub(super) fn reconcile(&mut self) {
        let Some(seen) = self.look() else {
            return;
        };
        self.doomed = self.to_be_removed(&seen);
        self.act(&seen);
        self.doomed.clear();
    }

    /// Pods that a decision removes with their data.
    fn to_be_removed(&self, seen: &Decision) -> BTreeSet<Seat> {
        let left = |seat: &Seat| {
            let mut sizes = seen.sets.sizes.iter().map(|size| self.set_state(size));
            let left = sizes.find(|(shard, _)| *shard == seat.0);
            left.map_or(0, |(_, state)| state.pods)
        };
        let pods = self.kubernetes.pods.keys();
        let leaving = pods.filter(|seat| seat.1 >= left(seat)).copied();
        let replaced = seen.rollout.broken.iter();
        let replaced = replaced.filter(|_| !self.persistent());
        leaving
            .chain(replaced.filter_map(|pod| seat_of(&pod.pod)))
            .collect()
    }

    fn act(&mut self, seen: &Decision) {
        if !self.apply_sets(seen) {
            return;
        }
        let wanted = self.world.wanted.clone();
        let known = known_nodes(&wanted, &seen.observed.members);
        let is_new = has_unrecorded(&wanted, &known);
        let goes_on = is_new || (self.take_steps(seen) && self.change(seen));
        if !goes_on {
            return;
        }
        let changes = serving::changes(&seen.observed, self.kubernetes.timestamp());
        for patch in changes {
            if let (PodChange::Serving(condition), Some(seat)) =
                (patch.change, seat_of(&patch.pod.name_any()))
            {
                self.kubernetes.set_serving(seat, condition);
            }
        }
        self.formed |= seen.assessment.is_healthy();
        self.record(seen, known);
    }

    fn record(&mut self, seen: &Decision, known: crate::redis::identity::KnownNodes) {
        for member in &seen.observed.members {
            let pod = seen.observed.pods.get(&member.expected.pod);
            if let Some((report, pod)) = member.report().zip(pod) {
                let last = LastSeen {
                    pod_uid: pod.metadata.uid.clone(),
                    kubernetes_node: member.expected.kubernetes_node.clone(),
                    refusal: Some(report.refusal),
                    ..LastSeen::default()
                };
                self.last_seen.insert(report.id(), last);
            }
        }
        for (id, last) in &mut self.last_seen {
            let mut members = seen.observed.members.iter();
            last.current_until =
                members.find_map(|one| one.expected.current_until.get(id).copied());
            let mut members = seen.observed.members.iter();
            last.unresponsive_since =
                members.find_map(|one| one.expected.unresponsive_since.get(id).copied());
        }
        self.last_seen.retain(|id, _| known.contains_key(id));
        self.known = known;
    }

    fn set_state(&self, size: &SetSize) -> (usize, SetState) {
        let state = SetState {
            pods: usize::try_from(size.pods).unwrap(),
            keeps_volumes: size.keeps_volumes,
            hash: self.cluster.restart_hash.clone(),
        };
        (usize::try_from(size.shard).unwrap(), state)
    }

    /// Whether every set is as it is to be.
    pub(super) fn has_its_sets(&self, seen: &Decision) -> bool {
        let mut sizes = seen.sets.sizes.iter().map(|size| self.set_state(size));
        let has = sizes.all(|(shard, state)| self.kubernetes.sets.get(&shard) == Some(&state));
        has && seen.sets.removed.is_empty()
    }

    /// False: the controller has ended.
    fn apply_sets(&mut self, seen: &Decision) -> bool {
        for size in &seen.sets.sizes {
            let (shard, state) = self.set_state(size);
            if self.kubernetes.sets.get(&shard) == Some(&state) {
                continue;
            }
            if !self.may_act() {
                return false;
            }
            if self.kubernetes.now < self.kubernetes.refuses_until {
                self.note(format!("set of shard {shard} is refused: {state:?}"));
                continue;
            }
            self.note(format!("set of shard {shard}: {state:?}"));
            self.check_leaving(shard, state.pods);
            self.kubernetes.sets.insert(shard, state);
        }
        for shard in &seen.sets.removed {
            if !self.may_act() {
                return false;
            }
            let shard = usize::try_from(*shard).unwrap();
            self.note(format!("set of shard {shard} is removed"));
            self.check_leaving(shard, 0);
            self.kubernetes.sets.remove(&shard);
        }
        true
    }

    /// Nothing may be lost with the pods of a set that becomes smaller.
    fn check_leaving(&self, shard: usize, pods: usize) {
        let claims = self.world.claims();
        let leaving = self.kubernetes.pods.keys();
        for seat in leaving.filter(|seat| seat.0 == shard && seat.1 >= pods) {
            let node = self.node(*seat);
            assert!(
                claims.get(&node).is_none_or(SlotSet::is_empty),
                "a pod with slots leaves: {seat:?}"
            );
            let unique = self.world.unique(node);
            assert!(
                unique.is_empty(),
                "the pod with the last copy leaves: {seat:?} {unique:?}"
            );
        }
    }

    fn take_steps(&mut self, seen: &Decision) -> bool {
        let now = self.kubernetes.timestamp();
        if seen.plan.hands_over() && self.controller.mover.is_some() {
            self.controller.hand_overs.postpone(PLACE, now + WHILE_HELD);
            return true;
        }
        self.carry_out(&seen.plan, &seen.observed.members)
    }

    /// Step by step. False: the controller has ended.
    fn carry_out(&mut self, plan: &Plan, members: &[Member]) -> bool {
        for step in &plan.steps {
            if !self.may_act() {
                return false;
            }
            self.note(format!("{}: {}", kind(&step.action), step.reason));
            let one = Plan {
                steps: vec![step.clone()],
                blockers: Vec::new(),
            };
            let refused = self.world.refused.len();
            self.world.carry_out(&one, members, || true);
            if let Some(why) = self.world.refused.get(refused).cloned() {
                self.note(format!("refused: {why}"));
                if matches!(step.action, Action::HandOver { .. }) {
                    let until = self.kubernetes.timestamp() + AFTER_FAILURE;
                    self.controller.hand_overs.postpone(PLACE, until);
                }
            }
        }
        true
    }

    /// Moves of slots and rollouts, as `change` does.
    fn change(&mut self, seen: &Decision) -> bool {
        if !self.start_moves(seen) {
            return false;
        }
        for pod in &seen.rollout.broken {
            if !self.replace(pod, false) {
                return false;
            }
        }
        match &seen.rollout.next {
            _ if self.controller.mover.is_some() => true,
            RolloutStep::None | RolloutStep::Unwritten { .. } | RolloutStep::Refused { .. } => true,
            RolloutStep::HandOver(step) => {
                let now = self.kubernetes.timestamp();
                if !self.controller.hand_overs.may_try(PLACE, now) {
                    return true;
                }
                let plan = Plan {
                    steps: vec![step.clone()],
                    blockers: Vec::new(),
                };
                self.carry_out(&plan, &seen.observed.members)
            }
            RolloutStep::Replace(pods) => self.replace_all(pods),
        }
    }

    /// Of pods in memory, the controller looks again after all that came before, and deletes them then.
    fn replace_all(&mut self, pods: &[ReplacePod]) -> bool {
        let mut due = pods.to_vec();
        if !self.persistent() {
            if !self.may_act() {
                return false;
            }
            let Some(again) = self.look() else {
                return true;
            };
            due.retain(|pod| again.replaces(pod));
            self.doomed
                .extend(due.iter().filter_map(|pod| seat_of(&pod.pod)));
        }
        due.iter().all(|pod| self.replace(pod, true))
    }

    fn replace(&mut self, pod: &ReplacePod, is_rollout: bool) -> bool {
        if !self.may_act() {
            return false;
        }
        let seat = seat_of(&pod.pod).unwrap();
        let uid = self.kubernetes.pods.get(&seat).map(|pod| pod.uid.clone());
        if uid.as_ref() != Some(&pod.uid) {
            return true;
        }
        self.note(pod.to_string());
        let of_shard = self.kubernetes.sets.get(&seat.0);
        assert!(
            pod.reason != ReplaceReason::Outdated
                || of_shard.is_some_and(|set| set.hash == self.cluster.restart_hash),
            "a pod is replaced by one of the same template: {seat:?}"
        );
        let node = self.node(seat);
        if is_rollout {
            assert!(
                !self.world.owns(node) || self.world.linked_replicas_of(node).is_empty(),
                "a primary is replaced although a replica could take over: {seat:?}"
            );
        }
        if !self.persistent() {
            assert!(
                self.world.unique(node).is_empty(),
                "the last copy is replaced: {seat:?}"
            );
        }
        let persistent = self.persistent();
        self.kubernetes.delete(&mut self.world, seat, persistent);
        true
    }
}

pub fn seat_of(pod: &str) -> Option<Seat> {
    let (shard, ordinal) = node_of_pod(CLUSTER, pod)?;
    Some((usize::try_from(shard).ok()?, usize::try_from(ordinal).ok()?))
}

fn kind(action: &Action) -> &'static str {
    match action {
        Action::AssignSlots { .. } => "assign slots",
        Action::Meet { .. } => "meet",
        Action::Promote { .. } => "promote",
        Action::HandOver { .. } => "hand over",
        Action::Admit { .. } => "admit",
        Action::Replicate { .. } => "replicate",
        Action::RestoreNodeTimeout { .. } => "restore node timeout",
        Action::TellClients { .. } => "tell clients",
        Action::Forget { .. } => "forget",
    }
}

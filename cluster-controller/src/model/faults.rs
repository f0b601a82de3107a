//! What happens to a cluster while the controller works on it.

use super::{Model, kubernetes::Seat};
use common::cluster::slots::SlotSet;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Something that happens. Pods and Kubernetes nodes are counted among those that there are.
#[derive(Clone, Debug)]
pub enum Event {
    /// The process in a pod is killed, and starts again.
    Kill { pod: usize, down: u8, loading: u8 },
    /// A user deletes a pod.
    Delete { pod: usize },
    /// A pod goes with its volume, where others have a copy.
    LoseVolume { pod: usize },
    /// A Kubernetes node is cut off.
    Cut { machine: usize, seconds: u8 },
    /// The same, and a server of another cluster gets the address of a pod on it.
    Rob {
        pod: usize,
        seconds: u8,
        company: u32,
    },
    /// A Kubernetes node is off for good, and is deleted.
    LoseMachine { machine: usize },
    /// The controller ends after so many effects.
    EndController { after: u32 },
    /// Clients write to every slot.
    Write,
    /// A user has begun to move slots and stopped in the middle.
    LeaveHalfMoved {
        from: usize,
        to: usize,
        count: usize,
        stage: u32,
    },
    /// The spec asks for another size.
    Scale { shards: i32, replicas: i32 },
    /// The spec asks for another image.
    Roll,
    /// The spec asks for an image that does not exist.
    RollBroken,
    /// The spec asks for the image again that was there before.
    Correct,
    /// The API server refuses the StatefulSets for so long.
    RefuseSets { seconds: u8 },
    /// A fault after so many effects: the controller goes on with what it saw before.
    Amid { effects: u32, fault: Box<Event> },
}

/// Events, each with the seconds that pass before the next one.
pub type Events = Vec<(Event, usize)>;

/// A fault between two looks of the controller, or between two of its effects.
pub fn fault() -> impl Strategy<Value = Event> {
    let amid = (0..12_u32, sudden()).prop_map(|(effects, fault)| Event::Amid {
        effects,
        fault: Box::new(fault),
    });
    prop_oneof![2 => sudden(), 1 => amid]
}

fn sudden() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..12_usize, 0..13_u8, 0..9_u8)
            .prop_map(|(pod, down, loading)| Event::Kill { pod, down, loading }),
        2 => (0..12_usize).prop_map(|pod| Event::Delete { pod }),
        2 => (0..12_usize).prop_map(|pod| Event::LoseVolume { pod }),
        2 => (0..3_usize, 1..90_u8).prop_map(|(machine, seconds)| Event::Cut { machine, seconds }),
        1 => (0..12_usize, 1..60_u8, prop_oneof![Just(0_u32), Just(1), Just(3)])
            .prop_map(|(pod, seconds, company)| Event::Rob { pod, seconds, company }),
        1 => (0..3_usize).prop_map(|machine| Event::LoseMachine { machine }),
        2 => (0..12_u32).prop_map(|after| Event::EndController { after }),
        2 => Just(Event::Write),
        2 => (0..12_usize, 0..12_usize, 1..6_usize, 1..5_u32)
            .prop_map(|(from, to, count, stage)| Event::LeaveHalfMoved { from, to, count, stage }),
    ]
}

pub fn scale() -> impl Strategy<Value = Event> {
    (3..6_i32, 0..3_i32).prop_map(|(shards, replicas)| Event::Scale { shards, replicas })
}

/// Another template: a good one, one whose pods do not start, or one that is refused.
pub fn roll() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => Just(Event::Roll),
        2 => Just(Event::RollBroken),
        1 => Just(Event::Correct),
        1 => (5..40_u8).prop_map(|seconds| Event::RefuseSets { seconds }),
    ]
}

/// Faults, and changes of the spec between them.
pub fn events(
    change: impl Strategy<Value = Event> + 'static,
    most: usize,
) -> impl Strategy<Value = Events> {
    let event = prop_oneof![3 => fault().boxed(), 1 => change.boxed()];
    prop::collection::vec((event, 0..8_usize), 1..most)
}

impl Model {
    /// Does what is possible of it.
    pub(super) fn happen(&mut self, event: &Event) {
        self.note(format!("-- {event:?}"));
        let persistent = self.persistent();
        match event {
            Event::Kill { pod, down, loading } => {
                let Some(seat) = self.running_pod(*pod) else {
                    return;
                };
                if self.spares(&[seat]) || (!persistent && !self.can_lose(&[seat])) {
                    return self.note("left out");
                }
                let (down, loading) = (i64::from(*down), u32::from(*loading));
                let kubernetes = &mut self.kubernetes;
                kubernetes.end_process(&mut self.world, seat, down, loading, persistent);
            }
            Event::Delete { pod } => {
                let Some(seat) = self.running_pod(*pod) else {
                    return;
                };
                if self.spares(&[seat]) || (!persistent && !self.can_lose(&[seat])) {
                    return self.note("left out");
                }
                self.kubernetes.delete(&mut self.world, seat, persistent);
            }
            Event::LoseVolume { pod } => {
                let Some(seat) = self.running_pod(*pod) else {
                    return;
                };
                if self.spares(&[seat]) || !self.can_lose(&[seat]) {
                    return self.note("left out");
                }
                self.kubernetes
                    .end_process(&mut self.world, seat, 0, 0, false);
                self.kubernetes.volumes.remove(&seat);
                self.kubernetes.pods.remove(&seat);
            }
            Event::Cut { machine, seconds } => self.cut(*machine, i64::from(*seconds)),
            Event::Rob {
                pod,
                seconds,
                company,
            } => self.rob(*pod, i64::from(*seconds), *company),
            Event::LoseMachine { machine } => {
                let seats = self.kubernetes.on(*machine);
                if !persistent && !self.can_lose(&seats) {
                    return self.note("the last copy is there: left out");
                }
                if seats
                    .iter()
                    .any(|seat| self.kubernetes.pods[seat].is_robbed)
                {
                    return;
                }
                let kubernetes = &mut self.kubernetes;
                kubernetes.lose_machine(&mut self.world, *machine, persistent);
            }
            Event::EndController { after } => self.controller.ends_after = Some(*after),
            Event::Write => {
                // What a pod in memory takes while it is cut off, and before its sandbox is created again, is in no other place.
                let mut pods = self.kubernetes.pods.values();
                if !persistent && pods.any(|pod| pod.is_robbed) {
                    return self.note("left out");
                }
                // A replica that is cut off in this same second may lack the write: no property can say whether it was lost.
                let mut machines = self.kubernetes.machines.iter();
                if machines.any(|one| {
                    one.cut
                        .is_some_and(|(since, _)| since == self.kubernetes.now)
                }) {
                    return self.note("left out");
                }
                self.world.fill();
            }
            Event::LeaveHalfMoved {
                from,
                to,
                count,
                stage,
            } => self.leave_half_moved(*from, *to, *count, *stage),
            Event::Scale { shards, replicas } => {
                self.object.spec.shards = *shards;
                self.object.spec.replicas_per_shard = *replicas;
                self.read_spec();
            }
            Event::Roll => {
                let number = self.kubernetes.now;
                self.good_image = Some(format!("docker.io/local/redis:{number}"));
                let at_once = i32::try_from(number % 3).unwrap() + 1;
                self.object.spec.update.max_unavailable_shards = at_once;
                self.correct();
            }
            Event::RollBroken => {
                self.object.spec.image = Some(format!("no/such:{}", self.kubernetes.now));
                self.read_spec();
                let hash = self.cluster.restart_hash.clone();
                self.kubernetes.broken.insert(hash);
            }
            Event::Correct => self.correct(),
            Event::RefuseSets { seconds } => {
                self.kubernetes.refuses_until = self.kubernetes.now + i64::from(*seconds);
            }
            Event::Amid { effects, fault } => self.amid.push((*effects, (**fault).clone())),
        }
    }

    /// Before each effect: what happens in front of it.
    pub(super) fn happen_amid(&mut self) {
        let mut due = Vec::new();
        self.amid.retain_mut(|(effects, fault)| {
            let is_due = *effects == 0;
            if is_due {
                due.push(fault.clone());
            } else {
                *effects -= 1;
            }
            !is_due
        });
        for fault in due {
            self.happen(&fault);
        }
    }

    /// The spec asks for pods that start.
    pub(super) fn correct(&mut self) {
        self.object.spec.image.clone_from(&self.good_image);
        self.read_spec();
    }

    fn running_pod(&self, number: usize) -> Option<Seat> {
        let pods = self.kubernetes.pods.iter();
        let running = pods.filter(|(seat, pod)| {
            let is_cut = self.world.is_cut_off(self.node(**seat));
            pod.running.is_some() && pod.gone.is_none() && !is_cut
        });
        let running: Vec<Seat> = running.map(|(seat, _)| *seat).collect();
        running.get(number % running.len().max(1)).copied()
    }

    /// Whether others of their shards have copies of what these nodes have, so that nothing is lost with them.
    fn can_lose(&self, seats: &[Seat]) -> bool {
        let mut lost: BTreeSet<usize> = seats.iter().map(|seat| self.node(*seat)).collect();
        // In memory, what is in a pod whose sandbox will be created again is lost already.
        let robbed = self.kubernetes.pods.iter();
        let robbed = robbed.filter(|(_, pod)| pod.is_robbed && !self.persistent());
        lost.extend(robbed.map(|(seat, _)| self.node(*seat)));
        // In memory, a pod that is being deleted has lost its data already.
        let ending = self.kubernetes.pods.iter();
        let ending = ending.filter(|(_, pod)| pod.gone.is_some() && !self.persistent());
        lost.extend(ending.map(|(seat, _)| self.node(*seat)));
        // A pod that leaves takes its volume with it.
        let stays = |seat: &Seat| {
            let set = self.kubernetes.sets.get(&seat.0);
            set.is_some_and(|set| seat.1 < set.pods)
        };
        let leaving = self
            .kubernetes
            .nodes
            .iter()
            .filter(|(seat, _)| !stays(seat));
        lost.extend(leaving.map(|(_, node)| *node));
        lost.extend(self.doomed.iter().map(|seat| self.node(*seat)));
        let mut seats = seats.iter().map(|seat| self.node(*seat));
        seats.all(|node| self.world.has_copy_elsewhere(node, &lost))
    }

    /// Whether these are spared, since they have the last mark of slots that are half moved. What becomes of such slots after failovers on
    /// both sides is not decided by the product.
    fn spares(&self, seats: &[Seat]) -> bool {
        let nodes = seats.iter().map(|seat| self.node(*seat));
        !self.world.keeps_marks(&nodes.collect())
    }

    fn cut(&mut self, machine: usize, seconds: i64) {
        let now = self.kubernetes.now;
        let seats = self.kubernetes.on(machine);
        if self.kubernetes.machines[machine].cut.is_some() || self.spares(&seats) {
            return self.note("left out");
        }
        self.kubernetes.machines[machine].cut = Some((now, now + seconds));
        for seat in seats {
            self.world.cut_off(self.node(seat), true);
        }
    }

    fn rob(&mut self, pod: usize, seconds: i64, company: u32) {
        let Some(seat) = self.running_pod(pod) else {
            return;
        };
        // Its sandbox is created again when the network is back.
        if self.world.has_foreign() || (!self.persistent() && !self.can_lose(&[seat])) {
            return;
        }
        let state = &self.kubernetes.pods[&seat];
        let (Some(machine), address) = (state.machine, state.address) else {
            return;
        };
        // A majority that is cut off with it elects it, perhaps, and then what is in memory is in no other place.
        let seats = self.kubernetes.on(machine);
        let primaries = seats
            .iter()
            .filter(|seat| self.world.owns(self.node(**seat)));
        if !self.persistent() && 2 * primaries.count() > self.world.claims().len() {
            return self.note("left out");
        }
        self.cut(machine, seconds);
        if !self.world.is_cut_off(self.node(seat)) {
            return;
        }
        let foreign = match company {
            0 => self.world.add_blank_foreign(),
            count => self.world.add_foreign(count)[0],
        };
        self.world.take_address(foreign, address);
        if let Some(pod) = self.kubernetes.pods.get_mut(&seat) {
            pod.is_robbed = true;
        }
    }

    fn leave_half_moved(&mut self, from: usize, to: usize, count: usize, stage: u32) {
        let owners: Vec<usize> = self.world.claims().into_keys().collect();
        let owners: Vec<usize> = owners
            .into_iter()
            .filter(|node| self.world.has_loaded(*node) && !self.world.is_cut_off(*node))
            .collect();
        let is_cut = self.kubernetes.machines.iter().any(|one| one.cut.is_some());
        if owners.len() < 2 || self.controller.mover.is_some() || is_cut {
            return self.note("left out");
        }
        let from = from % owners.len();
        let to = (from + 1 + to % (owners.len() - 1)) % owners.len();
        let (from, to) = (owners[from], owners[to]);
        let (slots, _) = self.world.slots_of(from);
        let slots: SlotSet = slots.iter().take(count).collect();
        self.world.leave_half_moved(from, to, &slots, stage);
    }
}

//! The Kubernetes half: Kubernetes nodes, StatefulSets, pods and volumes, as far as the controller depends on them.

use crate::{
    fencing::MachineState,
    pods::Pods,
    redis::plan::simulation::{PodIdentity, World},
};
use common::cluster::topology::NodeAddress;
use crds::{ANNOTATION_RESTART_HASH, CONDITION_SERVING, CONTAINER, FOLDER_DATA, pod_name};
use k8s_openapi::{
    api::core::v1::{Pod, PodCondition},
    jiff::Timestamp,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub const NAMESPACE: &str = "team";
pub const CLUSTER: &str = "shop";

/// Shard and ordinal.
pub type Seat = (usize, usize);

/// Seconds after which a kubelet that is not heard of is called not Ready.
const GRACE: i64 = 10;

/// A Kubernetes node.
#[derive(Clone, Debug)]
pub struct Machine {
    pub name: String,
    /// Since when it is on the other side of a network that is cut, and until when.
    pub cut: Option<(i64, i64)>,
}

/// A StatefulSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetState {
    pub pods: usize,
    pub keeps_volumes: bool,
    /// Of its template.
    pub hash: String,
}

/// When a container starts that never does.
const NEVER: i64 = i64::MAX;

#[derive(Clone, Debug)]
pub struct PodState {
    pub uid: String,
    /// None: it finds no Kubernetes node.
    pub machine: Option<usize>,
    pub address: NodeAddress,
    pub created: i64,
    /// When its container starts, if it does not run.
    pub starts: i64,
    pub loading: u32,
    pub running: Option<i64>,
    pub ended: Option<i64>,
    /// When it is gone, if it is being deleted.
    pub gone: Option<i64>,
    pub hash: String,
    pub serving: Option<PodCondition>,
    pub has_volume: bool,
    /// `Ready` and its reason, and since when.
    pub ready: (bool, &'static str, i64),
    /// Whether another server has its address.
    pub is_robbed: bool,
    shown: Option<Arc<Pod>>,
}

#[derive(Clone, Debug)]
pub struct Kubernetes {
    pub now: i64,
    pub machines: Vec<Machine>,
    pub sets: BTreeMap<usize, SetState>,
    pub pods: BTreeMap<Seat, PodState>,
    /// The node of each pod that ever was.
    pub nodes: BTreeMap<Seat, usize>,
    /// Pods whose volume exists.
    pub volumes: BTreeSet<Seat>,
    /// Until when the API server refuses every change of a set.
    pub refuses_until: i64,
    /// Templates whose pods never start.
    pub broken: BTreeSet<String>,
    next: u32,
}

impl Kubernetes {
    pub fn new() -> Self {
        let machine = |number| Machine {
            name: format!("node-{number}"),
            cut: None,
        };
        Self {
            now: 1_000_000,
            machines: (0..3).map(machine).collect(),
            sets: BTreeMap::new(),
            pods: BTreeMap::new(),
            nodes: BTreeMap::new(),
            volumes: BTreeSet::new(),
            refuses_until: 0,
            broken: BTreeSet::new(),
            next: 3,
        }
    }

    pub fn timestamp(&self) -> Timestamp {
        Timestamp::from_second(self.now).unwrap()
    }

    fn is_cut(&self, pod: &PodState) -> bool {
        pod.machine
            .is_some_and(|machine| self.machines[machine].cut.is_some())
    }

    /// Whether a network is cut, or the API server refuses sets.
    pub fn is_disturbed(&self) -> bool {
        let mut machines = self.machines.iter();
        self.now < self.refuses_until || machines.any(|one| one.cut.is_some())
    }

    /// A second passes.
    pub fn tick(&mut self, world: &mut World, persistent: bool) {
        self.now += 1;
        self.reconnect(world, persistent);
        self.remove_pods(world, persistent);
        self.create_pods(world, persistent);
        let seats: Vec<Seat> = self.pods.keys().copied().collect();
        for seat in seats {
            if self.pods[&seat].machine.is_none() {
                let machine = self.schedule(seat);
                let pod = self.pods.get_mut(&seat).unwrap();
                pod.machine = machine;
                pod.shown = None;
            }
            let pod = &self.pods[&seat];
            let may_start = pod.running.is_none()
                && pod.gone.is_none()
                && pod.machine.is_some()
                && pod.starts <= self.now
                && !self.is_cut(pod);
            if may_start {
                self.start(world, seat, persistent);
            }
            self.report(seat);
        }
    }

    /// Networks that are no longer cut.
    fn reconnect(&mut self, world: &mut World, persistent: bool) {
        for machine in 0..self.machines.len() {
            let cut = self.machines[machine].cut;
            if cut.is_none_or(|(_, until)| until > self.now) {
                continue;
            }
            self.machines[machine].cut = None;
            for seat in self.on(machine) {
                world.cut_off(self.nodes[&seat], false);
                let pod = self.pods.get_mut(&seat).unwrap();
                // Its address is another one's by now: its sandbox is created again.
                if std::mem::take(&mut pod.is_robbed) {
                    pod.address = world.fresh_address();
                    self.end_process(world, seat, 0, 0, persistent);
                }
            }
        }
    }

    pub fn on(&self, machine: usize) -> Vec<Seat> {
        let pods = self.pods.iter();
        let pods = pods.filter(|(_, pod)| pod.machine == Some(machine));
        pods.map(|(seat, _)| *seat).collect()
    }

    /// Pods that are deleted, by a user or by their StatefulSet, which has become smaller or is gone.
    fn remove_pods(&mut self, world: &mut World, persistent: bool) {
        let seats: Vec<Seat> = self.pods.keys().copied().collect();
        for seat in seats {
            let set = self.sets.get(&seat.0).cloned();
            let leaves = set.as_ref().is_none_or(|set| seat.1 >= set.pods);
            if leaves && self.pods[&seat].gone.is_none() {
                self.delete(world, seat, persistent);
            }
            let pod = &self.pods[&seat];
            if pod.gone.is_some_and(|gone| gone <= self.now) && !self.is_cut(pod) {
                if pod.running.is_some() {
                    self.end_process(world, seat, 0, 0, persistent);
                }
                self.pods.remove(&seat);
                if leaves && set.is_none_or(|set| !set.keeps_volumes) {
                    self.volumes.remove(&seat);
                    world.wipe(self.nodes[&seat]);
                    world.stop(self.nodes[&seat]);
                }
            }
        }
    }

    fn create_pods(&mut self, world: &mut World, persistent: bool) {
        let sets = self.sets.iter();
        let wanted = sets.flat_map(|(shard, set)| (0..set.pods).map(|ordinal| (*shard, ordinal)));
        let missing: Vec<Seat> = wanted
            .filter(|seat| !self.pods.contains_key(seat))
            .collect();
        for seat in missing {
            self.next += 1;
            let hash = self.sets[&seat.0].hash.clone();
            let is_broken = self.broken.contains(&hash);
            let pod = PodState {
                uid: format!("uid-{}", self.next),
                machine: self.schedule(seat),
                address: world.fresh_address(),
                created: self.now,
                starts: if is_broken { NEVER } else { self.now + 1 },
                loading: 0,
                running: None,
                ended: None,
                gone: None,
                hash,
                serving: None,
                has_volume: persistent,
                ready: (false, "ContainersNotReady", self.now),
                is_robbed: false,
                shown: None,
            };
            self.pods.insert(seat, pod);
            let node = *self.nodes.entry(seat).or_insert_with(|| {
                let node = world.add_node();
                world.stop(node);
                node
            });
            if self.volumes.insert(seat) || !persistent {
                world.wipe(node);
                world.stop(node);
            }
            world.cut_off(node, false);
        }
    }

    fn schedule(&self, (shard, ordinal): Seat) -> Option<usize> {
        let count = self.machines.len();
        let order = (0..count).map(|number| (shard + ordinal + number) % count);
        order
            .into_iter()
            .find(|one| self.machines[*one].cut.is_none())
    }

    fn start(&mut self, world: &mut World, seat: Seat, persistent: bool) {
        let node = self.nodes[&seat];
        if !persistent {
            world.wipe(node);
            world.stop(node);
        }
        let now = self.now;
        let pod = self.pods.get_mut(&seat).unwrap();
        let name = name_of(seat);
        let identity = PodIdentity {
            seat,
            proof: format!("{NAMESPACE}/{name}/{}", pod.uid),
            address: pod.address,
        };
        pod.running = Some(now);
        world.start(node, identity, pod.loading);
    }

    /// The process in a pod ends; its kubelet starts another one after so many seconds.
    pub fn end_process(
        &mut self,
        world: &mut World,
        seat: Seat,
        down: i64,
        loading: u32,
        persistent: bool,
    ) {
        let node = self.nodes[&seat];
        if !persistent {
            world.wipe(node);
        }
        world.stop(node);
        let now = self.now;
        let pod = self.pods.get_mut(&seat).unwrap();
        pod.running = None;
        pod.ended = Some(now);
        if pod.starts != NEVER {
            pod.starts = now + down;
        }
        pod.loading = loading;
        pod.shown = None;
    }

    /// A pod is deleted in its time of grace: its process ends at once, where its kubelet hears of it.
    pub fn delete(&mut self, world: &mut World, seat: Seat, persistent: bool) {
        let is_cut = self.is_cut(&self.pods[&seat]);
        if !is_cut {
            self.end_process(world, seat, 0, 0, persistent);
        }
        let now = self.now;
        let pod = self.pods.get_mut(&seat).unwrap();
        pod.gone.get_or_insert(now + 1);
        pod.shown = None;
    }

    /// A Kubernetes node is off for good and was deleted; another one takes its place.
    pub fn lose_machine(&mut self, world: &mut World, machine: usize, persistent: bool) {
        for seat in self.on(machine) {
            self.end_process(world, seat, 0, 0, persistent);
            world.cut_off(self.nodes[&seat], false);
            self.pods.remove(&seat);
        }
        self.next += 1;
        self.machines[machine] = Machine {
            name: format!("node-{}", self.next),
            cut: None,
        };
    }

    /// What the kubelet reports of a pod, or the node controller where it is not heard of.
    fn report(&mut self, seat: Seat) {
        let cut = self.pods[&seat].machine;
        let cut = cut.and_then(|machine| self.machines[machine].cut);
        let now = self.now;
        let pod = self.pods.get_mut(&seat).unwrap();
        let serves = pod.serving.as_ref().is_some_and(|one| one.status == "True");
        let (ready, reason) = match cut {
            Some((since, _)) if now - since >= GRACE => (false, ""),
            Some(_) => (pod.ready.0, pod.ready.1),
            None if pod.running.is_none() => (false, "ContainersNotReady"),
            None if serves => (true, ""),
            None => (false, "ReadinessGatesNotReady"),
        };
        if pod.ready.0 != ready {
            pod.ready.2 = now;
        }
        if (pod.ready.0, pod.ready.1) != (ready, reason) {
            pod.shown = None;
        }
        pod.ready = (ready, reason, pod.ready.2);
    }

    /// The pods as the API server shows them.
    pub fn shown(&mut self) -> Pods {
        let machines = &self.machines;
        let pods = self.pods.iter_mut();
        pods.map(|(seat, pod)| {
            let machine = pod.machine.map(|machine| machines[machine].name.as_str());
            let shown = pod.shown.take();
            let shown = shown.unwrap_or_else(|| show(*seat, pod, machine));
            pod.shown = Some(Arc::clone(&shown));
            (name_of(*seat), shown)
        })
        .collect()
    }

    /// The readiness gate of a pod.
    pub fn set_serving(&mut self, seat: Seat, condition: PodCondition) {
        if let Some(pod) = self.pods.get_mut(&seat) {
            pod.serving = Some(condition);
            pod.shown = None;
        }
    }

    pub fn machine_states(&self, names: &BTreeSet<String>) -> BTreeMap<String, MachineState> {
        let state = |name: &String| {
            let machine = self.machines.iter().find(|one| one.name == *name);
            match machine {
                None => MachineState::Deleted,
                Some(Machine {
                    cut: Some((since, _)),
                    ..
                }) if self.now - since >= GRACE => MachineState::NotReady,
                Some(_) => MachineState::Ready(None),
            }
        };
        names
            .iter()
            .map(|name| (name.clone(), state(name)))
            .collect()
    }
}

pub fn name_of((shard, ordinal): Seat) -> String {
    let number = |value| i32::try_from(value).unwrap();
    pod_name(CLUSTER, number(shard), number(ordinal))
}

fn show(seat: Seat, pod: &PodState, machine: Option<&str>) -> Arc<Pod> {
    let time = |second| Timestamp::from_second(second).unwrap().to_string();
    let (ready, reason, since) = &pod.ready;
    let word = |flag: bool| if flag { "True" } else { "False" };
    // The last report of a kubelet that is cut off stands.
    let containers = pod.running.is_some();
    let state = match pod.running {
        Some(since) => json!({"running": {"startedAt": time(since)}}),
        None if pod.starts == NEVER => json!({"waiting": {"reason": "ImagePullBackOff"}}),
        None => json!({"waiting": {"reason": "ContainerCreating"}}),
    };
    let last = match pod.ended {
        Some(at) => json!({"terminated": {"exitCode": 137, "finishedAt": time(at)}}),
        None => Value::Null,
    };
    let claim = json!({"name": "data", "persistentVolumeClaim": {"claimName": name_of(seat)}});
    let volumes: Vec<Value> = pod.has_volume.then_some(claim).into_iter().collect();
    let shown = json!({
        "metadata": {"name": name_of(seat), "namespace": NAMESPACE, "uid": pod.uid, "creationTimestamp": time(pod.created),
                     "deletionTimestamp": pod.gone.map(time),
                     "annotations": {ANNOTATION_RESTART_HASH: pod.hash}},
        "spec": {"nodeName": machine, "readinessGates": [{"conditionType": CONDITION_SERVING}],
                 "volumes": volumes,
                 "containers": [{"name": CONTAINER, "env": [{"name": "POD_UID"}],
                                 "volumeMounts": [{"name": "data", "mountPath": FOLDER_DATA}]}]},
        "status": {"podIP": machine.map(|_| pod.address.ip.to_string()),
                   "conditions": [{"type": "Ready", "status": word(*ready), "reason": reason, "lastTransitionTime": time(*since)},
                                  {"type": "ContainersReady", "status": word(containers)}],
                   "containerStatuses": [{"name": CONTAINER, "image": "", "imageID": "", "ready": containers, "restartCount": 0,
                                          "state": state, "lastState": last}]},
    });
    let mut shown: Pod = serde_json::from_value(shown).unwrap();
    if let Some(conditions) = shown
        .status
        .as_mut()
        .and_then(|one| one.conditions.as_mut())
    {
        conditions.extend(pod.serving.clone());
    }
    Arc::new(shown)
}

//! A whole cluster in memory: the servers of `redis::plan::simulation`, a Kubernetes around them, and the product's own decisions in
//! between, carried out as `reconcile` does. Faults strike between any two steps, and the controller may end there. For tests only.
//!
//! `kubernetes`: pods, sets, volumes, Kubernetes nodes; `controller`: a reconcile; `mover`: moves of slots, command by command; `faults`:
//! what happens; `goal`: what has to be so in the end; `sabotage`: wrong controllers, which the properties have to notice.

mod controller;
mod faults;
mod goal;
mod kubernetes;
mod mover;
mod sabotage;
mod tests;

use crate::{
    fencing::LastSeenNodes,
    redis::{
        identity::KnownNodes,
        plan::simulation::{Content, World, wanted},
    },
    validate::{ValidatedCluster, tests::example, validate},
};
use controller::Controller;
use crds::RedisCluster;
use faults::Event;
use k8s_openapi::jiff::Timestamp;
use kubernetes::{Kubernetes, Seat};
use sabotage::Sabotage;
use std::collections::BTreeSet;

/// A cluster, all that it runs on, and the controller.
#[derive(Clone, Debug)]
pub struct Model {
    world: World,
    kubernetes: Kubernetes,
    object: RedisCluster,
    /// The last image whose pods start.
    good_image: Option<String>,
    cluster: ValidatedCluster,
    controller: Controller,
    /// What the status records: node ids, where they were last seen, and whether the cluster has served.
    known: KnownNodes,
    last_seen: LastSeenNodes,
    formed: bool,
    /// The newest acknowledged write of every key.
    acknowledged: Content,
    /// Faults that strike before one of the next effects, and how many come first.
    amid: Vec<(u32, Event)>,
    /// Pods whose data this reconcile has decided to remove: they count as lost, so that no fault takes the last copy.
    doomed: BTreeSet<Seat>,
    sabotage: Sabotage,
    history: Vec<String>,
}

impl Model {
    /// A spec without anything that it asks for.
    fn new(shards: i32, replicas: i32, persistent: bool) -> Self {
        let mut object = example();
        object.spec.shards = shards;
        object.spec.replicas_per_shard = replicas;
        if !persistent {
            object.spec.storage = None;
        }
        let cluster = validate(&object, None, Timestamp::UNIX_EPOCH).unwrap();
        Self {
            world: World::without_nodes(wanted(3, 0, persistent)),
            kubernetes: Kubernetes::new(),
            good_image: object.spec.image.clone(),
            object,
            cluster,
            controller: Controller::default(),
            known: KnownNodes::new(),
            last_seen: LastSeenNodes::new(),
            formed: false,
            acknowledged: Content::default(),
            amid: Vec::new(),
            doomed: BTreeSet::new(),
            sabotage: Sabotage::None,
            history: Vec::new(),
        }
    }

    /// One that serves, with a key written to every slot.
    fn formed(shards: i32, replicas: i32, persistent: bool) -> Self {
        let mut model = Self::new(shards, replicas, persistent);
        model.settle().unwrap();
        model.world.fill();
        model.advance();
        model.history.clear();
        model
    }

    fn persistent(&self) -> bool {
        self.cluster.shape.persistent
    }

    /// The spec was changed.
    fn read_spec(&mut self) {
        self.cluster = validate(&self.object, None, Timestamp::UNIX_EPOCH).unwrap();
    }

    fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        let second = self.kubernetes.now - 1_000_000;
        self.history.push(format!("{second:>4} s  {text}"));
    }

    /// A second: the controller looks and acts, slots move, and everything else goes on.
    fn advance(&mut self) {
        self.reconcile();
        self.move_slots();
        let persistent = self.persistent();
        self.kubernetes.tick(&mut self.world, persistent);
        self.world.tick();
        self.world.check_foreign();
        self.acknowledged.take_newer(&self.world.everything());
    }

    /// The last steps, and how everything is.
    fn report(&self, why: &str) -> String {
        let from = self.history.len().saturating_sub(250);
        format!(
            "{why}\nhistory:\n{}\nsets {:?}\n{}",
            self.history[from..].join("\n"),
            self.kubernetes.sets,
            self.world.tables()
        )
    }

    /// The node in a pod.
    fn node(&self, seat: Seat) -> usize {
        self.kubernetes.nodes[&seat]
    }
}

//! A rollout reaches its end from everywhere, in the order that keeps the keys.

use super::*;
use crate::{
    pods::Pods,
    redis::{
        assess::assess,
        plan::{
            plan,
            simulation::{Fault, World},
            tests::{formed, relist, repair},
        },
    },
    validate::{tests::example, validate},
};
use common::cluster::slots::SlotSet;
use crds::{ANNOTATION_RESTART_HASH, RedisCluster};
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::Arc};

const NODES: usize = 6;

/// Three shards with a replica each, and the hash of the template of every pod.
struct Stage {
    world: World,
    object: RedisCluster,
    hashes: Vec<String>,
    /// Pods that cannot run.
    stuck: BTreeSet<usize>,
    /// Pods whose settings need a restart.
    restart: BTreeSet<String>,
}

impl Stage {
    fn new(persistent: bool) -> Self {
        let mut object = example();
        if !persistent {
            object.spec.storage = None;
        }
        Self {
            world: formed(3, 1, persistent),
            hashes: vec!["older".to_owned(); NODES],
            object,
            stuck: BTreeSet::new(),
            restart: BTreeSet::new(),
        }
    }

    fn cluster(&self) -> ValidatedCluster {
        validate(&self.object, None, Timestamp::UNIX_EPOCH).unwrap()
    }

    fn pod(&self, index: usize, name: &str) -> Arc<Pod> {
        let container: Value = if self.stuck.contains(&index) {
            json!({"waiting": {"reason": "ImagePullBackOff"}})
        } else {
            json!({"running": {"startedAt": "1970-01-01T00:00:00Z"}})
        };
        let ready = if self.stuck.contains(&index) {
            "False"
        } else {
            "True"
        };
        let pod = json!({
            "metadata": {"name": name, "uid": format!("{index}-{}", self.hashes[index]),
                         "annotations": {ANNOTATION_RESTART_HASH: self.hashes[index]}},
            "status": {"conditions": [{"type": "Ready", "status": ready}],
                       "containerStatuses": [{"name": crds::CONTAINER, "image": "", "imageID": "", "ready": true,
                                              "restartCount": 0, "state": container}]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn observed(&self) -> Observed {
        let members = self.world.members(Timestamp::UNIX_EPOCH);
        let pods = members.iter().enumerate().map(|(index, member)| {
            let name = &member.expected.pod;
            (name.clone(), self.pod(index, name))
        });
        Observed {
            pods: pods.collect::<Pods>(),
            members,
            passed_over: false,
        }
    }

    fn rollout(&self) -> Rollout {
        let observed = self.observed();
        let mut wanted = self.world.wanted.clone();
        wanted.may_spread = false;
        let survey = Survey::of(&wanted, &observed.members);
        let now = Timestamp::UNIX_EPOCH;
        let (assessment, plan) = (assess(&survey), plan(&survey, now));
        rollout(
            &self.cluster(),
            &observed,
            &survey,
            (&assessment, &plan),
            &self.restart,
            now,
        )
    }

    fn index(&self, pod: &str) -> usize {
        let members = self.world.members(Timestamp::UNIX_EPOCH);
        members
            .iter()
            .position(|one| one.expected.pod == pod)
            .unwrap()
    }

    /// A new pod of the wanted template takes the place of another one.
    fn replace(&mut self, pod: &str) {
        let index = self.index(pod);
        self.hashes[index] = self.cluster().restart_hash;
        self.stuck.remove(&index);
        self.restart.remove(pod);
        let fault = Fault {
            wiped: !self.world.wanted.persistent,
            moved: true,
            down: 0,
            loading: 0,
        };
        self.world.break_node(index, fault);
        self.world.restart(index);
    }

    /// Does the next step and repairs what follows from it. False: there is none.
    fn advance(&mut self) -> bool {
        let rollout = self.rollout();
        for broken in &rollout.broken {
            self.replace(&broken.pod);
        }
        match rollout.next {
            RolloutStep::Replace(pods) => {
                for pod in pods {
                    self.replace(&pod.pod);
                }
            }
            RolloutStep::HandOver(step) => {
                let plan = Plan {
                    steps: vec![step],
                    blockers: Vec::new(),
                };
                self.world.execute(&plan, || true);
                self.world.tick();
            }
            RolloutStep::None | RolloutStep::Refused { .. } if rollout.broken.is_empty() => {
                return false;
            }
            RolloutStep::None | RolloutStep::Refused { .. } => {}
        }
        self.world.wanted.may_spread = false;
        repair(&mut self.world, &mut || true);
        true
    }
}

fn replaced(rollout: &Rollout) -> Vec<&str> {
    let RolloutStep::Replace(pods) = &rollout.next else {
        panic!("{rollout:?}");
    };
    pods.iter().map(|pod| pod.pod.as_str()).collect()
}

#[test]
fn a_replica_is_replaced_before_its_primary_hands_over() {
    let mut stage = Stage::new(true);
    let first = stage.rollout();
    assert_eq!((first.outdated.len(), first.is_under_way()), (NODES, true));
    let replica = replaced(&first)[0].to_owned();
    assert!(!stage.world.owns(stage.index(&replica)), "a primary first");
    assert!(stage.advance());
    let RolloutStep::HandOver(step) = stage.rollout().next else {
        panic!("{:?}", stage.rollout());
    };
    let Action::HandOver { to, .. } = step.action else {
        panic!("{step:?}");
    };
    assert_eq!(to, stage.index(&replica));
    assert!(stage.advance());
    assert!(stage.world.owns(to), "{}", stage.world.tables());
    let old = replaced(&stage.rollout())[0].to_owned();
    assert_ne!(old, replica);
}

#[test]
fn every_pod_is_replaced_once_and_no_key_is_lost() {
    for persistent in [true, false] {
        let mut stage = Stage::new(persistent);
        let before = stage.world.served();
        let mut steps = 0;
        while stage.advance() {
            steps += 1;
            assert!(steps < 30, "{:?}", stage.rollout());
        }
        assert_eq!(
            stage.rollout(),
            Rollout {
                is_automatic: true,
                ..Rollout::default()
            }
        );
        assert_eq!(stage.world.served(), before, "{}", stage.world.tables());
        assert_eq!(steps, NODES + 3, "a pod each and a hand-over a shard");
    }
}

#[test]
fn several_shards_can_be_updated_at_the_same_time() {
    let mut stage = Stage::new(true);
    stage.object.spec.update.max_unavailable_shards = 2;
    assert_eq!(replaced(&stage.rollout()).len(), 2);
}

/// The first new pod that cannot run ends it, and a corrected spec replaces just that pod at once.
#[test]
fn a_pod_that_cannot_run_stops_the_rollout() {
    let mut stage = Stage::new(true);
    let good = stage.cluster().restart_hash;
    stage.hashes = vec![good; NODES];
    stage.object.spec.image = Some("no/such:image".into());
    let pod = replaced(&stage.rollout())[0].to_owned();
    let index = stage.index(&pod);
    stage.replace(&pod);
    stage.stuck.insert(index);
    let down = Fault {
        wiped: false,
        moved: true,
        down: 0,
        loading: 0,
    };
    stage.world.break_node(index, down);
    let waits = stage.rollout();
    assert_eq!((waits.next, waits.broken), (RolloutStep::None, Vec::new()));
    stage.object = example();
    let corrected = stage.rollout();
    let broken: Vec<&str> = corrected
        .broken
        .iter()
        .map(|one| one.pod.as_str())
        .collect();
    assert_eq!(broken, [pod.as_str()]);
    assert_eq!(corrected.next, RolloutStep::None);
    stage.advance();
    assert!(stage.rollout().outdated.is_empty());
}

#[test]
fn the_only_copy_in_memory_is_not_replaced() {
    let mut stage = Stage::new(false);
    stage.world = formed(3, 0, false);
    stage.object.spec.replicas_per_shard = 0;
    let refused = stage.rollout();
    assert!(
        matches!(refused.next, RolloutStep::Refused { .. }),
        "{refused:?}"
    );
    assert!(!refused.is_under_way());
    // On a volume it is an outage of seconds.
    let mut stage = Stage::new(true);
    stage.world = formed(3, 0, true);
    stage.object.spec.replicas_per_shard = 0;
    assert_eq!(replaced(&stage.rollout()).len(), 1);
}

/// A new shard whose slots have yet to come: no replica would be elected, and there is nothing to lose.
#[test]
fn a_primary_without_slots_is_replaced_at_once() {
    let stage = Stage::new(false);
    let cluster = stage.cluster();
    let mut members = stage.world.members(Timestamp::UNIX_EPOCH);
    let owners: Vec<usize> = (0..NODES)
        .filter(|index| stage.world.owns(*index))
        .collect();
    let (blank, rest) = owners.split_last().unwrap();
    let slots = |index: usize| members[index].report().unwrap().own().slots.clone();
    let (moved, kept) = (slots(*blank), slots(rest[0]));
    for (index, slots) in [(*blank, SlotSet::new()), (rest[0], kept.union(&moved))] {
        let id = members[index].report().unwrap().id();
        relist(&mut members[index], id, |node| node.slots = slots.clone());
    }
    let Answer::Report(report) = &mut members[*blank].answer else {
        panic!("it answers");
    };
    report.keys = 0;
    let survey = Survey::of(&stage.world.wanted, &members);
    let primary = &members[*blank];
    let shard = primary.expected.shard;
    let step = next_in_shard(&cluster, &survey, shard, &[primary]);
    assert!(matches!(step, ShardStep::Replace(one) if one.expected.pod == primary.expected.pod));
    // One with slots hands over before.
    let primary = &members[rest[1]];
    let step = next_in_shard(&cluster, &survey, primary.expected.shard, &[primary]);
    assert!(matches!(step, ShardStep::HandOver(..)));
}

#[test]
fn nothing_is_replaced_unasked() {
    let mut stage = Stage::new(true);
    stage.object.spec.update.strategy = UpdateStrategy::OnDelete;
    let rollout = stage.rollout();
    assert_eq!(
        (rollout.outdated.len(), rollout.next),
        (NODES, RolloutStep::None)
    );
    assert!(!stage.object.spec.paused && !rollout.is_automatic);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Wherever an earlier rollout was interrupted, and whatever fails in between.
    #[test]
    fn a_rollout_ends_from_everywhere(
        persistent: bool,
        done in prop::collection::vec(any::<bool>(), NODES),
        victim in 0..NODES,
        at in 0..6_usize,
    ) {
        let mut stage = Stage::new(persistent);
        let hash = stage.cluster().restart_hash;
        for (index, done) in done.into_iter().enumerate() {
            if done {
                stage.hashes[index].clone_from(&hash);
            }
        }
        let before = stage.world.served();
        let mut steps = 0;
        loop {
            if steps == at {
                let down = Fault { wiped: false, moved: true, down: 0, loading: 0 };
                stage.world.break_node(victim, down);
                stage.world.restart(victim);
                repair(&mut stage.world, &mut || true);
            }
            if !stage.advance() && steps >= at {
                break;
            }
            steps += 1;
            prop_assert!(steps < 40, "{:?}\n{}", stage.rollout(), stage.world.tables());
        }
        prop_assert!(stage.rollout().outdated.is_empty(), "{:?}", stage.rollout());
        prop_assert_eq!(stage.world.served(), before, "{}", stage.world.tables());
    }
}

//! A rollout reaches its end from everywhere, in the order that keeps the keys.

use super::*;
use crate::{
    pods::Pods,
    redis::{
        assess::assess,
        plan::{
            plan,
            simulation::{Fault, World},
            tests::{formed, relist, repair, report},
        },
    },
    validate::{tests::example, validate},
};
use common::cluster::slots::SlotSet;
use crds::{ANNOTATION_RESTART_HASH, CONDITION_SERVING, RedisCluster};
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
    /// Pods that run and have never been ready.
    unready: BTreeSet<usize>,
    /// Pods whose settings need a restart.
    restart: BTreeSet<String>,
    /// Replicas of an older server that cannot load what their primaries send.
    older: BTreeSet<usize>,
    /// Keys that those have left.
    left: u64,
    /// Servers that rewrite their append-only file.
    rewriting: BTreeSet<usize>,
    /// Shards whose StatefulSet names the wanted template.
    written: BTreeSet<i32>,
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
            unready: BTreeSet::new(),
            restart: BTreeSet::new(),
            older: BTreeSet::new(),
            left: 0,
            rewriting: BTreeSet::new(),
            written: (0..3).collect(),
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
        let is_ready = !self.stuck.contains(&index) && !self.unready.contains(&index);
        let ready = if is_ready { "True" } else { "False" };
        let pod = json!({
            "metadata": {"name": name, "uid": format!("{index}-{}", self.hashes[index]),
                         "creationTimestamp": "1970-01-01T00:00:00Z",
                         "annotations": {ANNOTATION_RESTART_HASH: self.hashes[index]}},
            "spec": {"containers": [], "readinessGates": [{"conditionType": CONDITION_SERVING}]},
            "status": {"conditions": [{"type": "Ready", "status": ready},
                                      {"type": CONDITION_SERVING, "status": ready, "lastTransitionTime": "1970-01-01T00:00:00Z"}],
                       "containerStatuses": [{"name": crds::CONTAINER, "image": "", "imageID": "", "ready": true,
                                              "restartCount": 0, "state": container}]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn observed(&self) -> Observed {
        let mut members = self.world.members(Timestamp::UNIX_EPOCH);
        for index in &self.older {
            let report = members[*index].report().unwrap();
            let mut report = Box::new(report.clone());
            report.server.version = "6.2.14".to_owned();
            report.replication.upstream.as_mut().unwrap().up = false;
            report.keys = self.left;
            members[*index].answer = Answer::Report(report);
        }
        for index in &self.rewriting {
            report(&mut members[*index]).persistence.is_rewriting = true;
        }
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
        RolloutInputs {
            cluster: &self.cluster(),
            observed: &observed,
            survey: &survey,
            assessment: &assessment,
            plan: &plan,
            restart: &self.restart,
            written: &self.written,
            now,
        }
        .decide()
    }

    /// The process in a pod does not run.
    fn stop(&mut self, index: usize) {
        let down = Fault {
            wiped: false,
            moved: true,
            down: 0,
            loading: 0,
        };
        self.world.break_node(index, down);
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
        self.unready.remove(&index);
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
            RolloutStep::None | RolloutStep::Unwritten { .. } | RolloutStep::Refused { .. }
                if rollout.broken.is_empty() =>
            {
                return false;
            }
            RolloutStep::None | RolloutStep::Unwritten { .. } | RolloutStep::Refused { .. } => {}
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

fn broken(rollout: &Rollout) -> Vec<&str> {
    let pods = rollout.broken.iter();
    pods.map(|pod| pod.pod.as_str()).collect()
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

/// A process that ended during the rewrite after a full copy would come back with the file of before: until its end the shard keeps a node whose
/// file is whole.
#[test]
fn a_shard_keeps_a_whole_file() {
    for persistent in [true, false] {
        let mut stage = Stage::new(persistent);
        stage.written = BTreeSet::from([0]);
        let (primary, replica) = if stage.world.owns(0) { (0, 1) } else { (1, 0) };
        let waits = |stage: &Stage| stage.rollout().next == RolloutStep::None;
        // Both are outdated: the replica is replaced unless its file is the only whole one.
        assert!(!waits(&stage));
        stage.rewriting = BTreeSet::from([primary]);
        assert_eq!(waits(&stage), persistent);
        stage.rewriting = BTreeSet::from([replica]);
        assert!(!waits(&stage));
        // The replica is a new one: the primary hands over once that has a file.
        stage.hashes[replica] = stage.cluster().restart_hash;
        assert_eq!(waits(&stage), persistent);
        stage.rewriting.clear();
        assert!(matches!(stage.rollout().next, RolloutStep::HandOver(_)));
    }
}

#[test]
fn a_lone_node_writes_its_file_before() {
    let mut stage = Stage::new(true);
    stage.world = formed(3, 0, true);
    stage.object.spec.replicas_per_shard = 0;
    stage.written = BTreeSet::from([0]);
    stage.rewriting = (0..3).collect();
    assert_eq!(stage.rollout().next, RolloutStep::None);
    stage.rewriting.clear();
    assert_eq!(replaced(&stage.rollout()).len(), 1);
}

#[test]
fn several_shards_can_be_updated_at_the_same_time() {
    let mut stage = Stage::new(true);
    stage.object.spec.update.max_unavailable_shards = 2;
    let rollout = stage.rollout();
    let pods = replaced(&rollout);
    let shard = |pod: &str| stage.observed().members[stage.index(pod)].expected.shard;
    assert_eq!(pods.len(), 2);
    assert_ne!(shard(pods[0]), shard(pods[1]));
}

/// Without a majority no server of the cluster serves.
#[test]
fn most_primaries_stay_whatever_may_be_away() {
    for (shards, most) in [(3, 1), (5, 2)] {
        let mut stage = Stage::new(true);
        stage.world = formed(shards, 0, true);
        stage.object.spec.shards = i32::try_from(shards).unwrap();
        stage.object.spec.replicas_per_shard = 0;
        stage.object.spec.update.max_unavailable_shards = 100;
        stage.written = (0..stage.object.spec.shards).collect();
        assert_eq!(replaced(&stage.rollout()).len(), most, "of {shards}");
    }
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
    stage.stop(index);
    let waits = stage.rollout();
    assert_eq!((waits.next, waits.broken), (RolloutStep::None, Vec::new()));
    stage.object = example();
    let corrected = stage.rollout();
    assert_eq!(broken(&corrected), [pod.as_str()]);
    assert_eq!(corrected.next, RolloutStep::None);
    stage.advance();
    assert!(stage.rollout().outdated.is_empty());
}

/// The API server refuses the StatefulSets, or they have yet to be written: a pod that is deleted would come back as it is, again and again.
#[test]
fn no_pod_is_replaced_by_one_of_its_own_template() {
    let mut stage = Stage::new(true);
    stage.written.clear();
    let waits = stage.rollout();
    assert_eq!(waits.outdated.len(), NODES);
    assert_eq!(waits.next, RolloutStep::Unwritten { shard: 0 });
    stage.stuck.insert(1);
    stage.stop(1);
    assert_eq!(broken(&stage.rollout()), Vec::<&str>::new());
    let shard = stage.observed().members[1].expected.shard;
    stage.written = BTreeSet::from([i32::try_from(shard).unwrap()]);
    assert_eq!(stage.rollout().broken.len(), 1);
    // Only shards that are written begin.
    let mut stage = Stage::new(true);
    stage.written = BTreeSet::from([2]);
    let rollout = stage.rollout();
    let shards: BTreeSet<_> = replaced(&rollout)
        .iter()
        .map(|pod| stage.observed().members[stage.index(pod)].expected.shard)
        .collect();
    assert_eq!(shards, BTreeSet::from([2]));
}

/// A server that ends because of a setting has a pod of the wanted template: only its configuration is another one.
#[test]
fn a_pod_that_cannot_run_with_its_setting_is_replaced() {
    let mut stage = Stage::new(true);
    stage.hashes = vec![stage.cluster().restart_hash; NODES];
    stage.stuck.insert(1);
    stage.stop(1);
    assert_eq!(broken(&stage.rollout()), Vec::<&str>::new());
    let pod = stage.observed().members[1].expected.pod.clone();
    stage.restart.insert(pod.clone());
    assert_eq!(broken(&stage.rollout()), [pod]);
}

/// It answers, but it does not get a copy; or no other node reaches it. Setting the spec back replaces it.
#[test]
fn a_pod_that_runs_and_never_served_is_replaced() {
    for persistent in [true, false] {
        let mut stage = Stage::new(persistent);
        let good = stage.cluster().restart_hash;
        stage.hashes = vec![good; NODES];
        let replica = (0..NODES).find(|index| !stage.world.owns(*index)).unwrap();
        let pod = stage.observed().members[replica].expected.pod.clone();
        stage.hashes[replica] = "unlinked".to_owned();
        stage.unready.insert(replica);
        stage.stop(replica);
        assert_eq!(broken(&stage.rollout()), [pod.as_str()]);
        // One that was ready before comes back by itself.
        stage.unready.clear();
        assert_eq!(broken(&stage.rollout()), Vec::<&str>::new());
        // Nor is one replaced that has the only copy, in memory.
        let mut stage = Stage::new(persistent);
        let primary = (0..NODES).find(|index| stage.world.owns(*index)).unwrap();
        stage.unready.insert(primary);
        stage.stop(primary);
        assert_eq!(stage.rollout().broken.len(), usize::from(persistent));
    }
}

/// In the middle of an update its primary failed, and one of the new servers took over.
#[test]
fn an_older_replica_without_a_copy_is_replaced() {
    for persistent in [true, false] {
        let mut stage = Stage::new(persistent);
        stage.hashes = vec![stage.cluster().restart_hash; NODES];
        let replica = (0..NODES).find(|index| !stage.world.owns(*index)).unwrap();
        let pod = stage.observed().members[replica].expected.pod.clone();
        stage.older.insert(replica);
        assert_eq!(
            broken(&stage.rollout()),
            Vec::<&str>::new(),
            "it is as wanted"
        );
        stage.hashes[replica] = "older".to_owned();
        assert_eq!(broken(&stage.rollout()), [pod.as_str()]);
        stage.left = 1;
        let found = stage.rollout();
        assert_eq!(broken(&found), Vec::<&str>::new(), "it has its copy");
        stage.left = 0;
        stage.object.spec.update.strategy = UpdateStrategy::OnDelete;
        assert_eq!(broken(&stage.rollout()), Vec::<&str>::new());
    }
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
    let observed = stage.observed();
    let (assessment, plan) = (Assessment::default(), Plan::default());
    let inputs = RolloutInputs {
        cluster: &cluster,
        observed: &observed,
        survey: &survey,
        assessment: &assessment,
        plan: &plan,
        restart: &stage.restart,
        written: &stage.written,
        now: Timestamp::UNIX_EPOCH,
    };
    let step = inputs.next_in_shard(shard, &[primary]);
    assert!(matches!(step, ShardStep::Replace(one) if one.expected.pod == primary.expected.pod));
    // One with slots hands over before.
    let primary = &members[rest[1]];
    let step = inputs.next_in_shard(primary.expected.shard, &[primary]);
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

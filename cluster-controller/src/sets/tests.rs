//! Which pods leave, and which ones stay.

use super::*;
use crate::{
    redis::{
        identity::KnownNodes,
        member::Wanted,
        plan::{
            simulation::{Fault, World},
            tests::{formed, open_slot, relist, report},
        },
    },
    validate::{shape, tests::example},
};
use k8s_openapi::jiff::Timestamp;

/// What the spec asks for, and the sets of three shards with two pods each.
fn stage(shards: i32, replicas: i32) -> (Shape, Vec<ExistingSet>) {
    let mut cluster = example();
    cluster.spec.shards = shards;
    cluster.spec.replicas_per_shard = replicas;
    let existing = (0..3).map(|shard| ExistingSet { shard, pods: 2 });
    (shape(&cluster).unwrap(), existing.collect())
}

fn decide(world: &World, stage: &(Shape, Vec<ExistingSet>)) -> Sets {
    decide_with(world, stage, &[], false)
}

/// `silent` do not answer, while other nodes still have links to them.
fn decide_with(
    world: &World,
    (shape, existing): &(Shape, Vec<ExistingSet>),
    silent: &[usize],
    moving: bool,
) -> Sets {
    let mut members = world.members(Timestamp::UNIX_EPOCH);
    let mut wanted = world.wanted.clone();
    wanted.shards = usize::try_from(shape.shards).unwrap();
    wanted.replicas_per_shard = usize::try_from(shape.replicas).unwrap();
    for index in silent {
        members[*index].answer = Answer::Unresponsive("timeout".into());
    }
    for member in &mut members {
        let expected = &mut member.expected;
        expected.wanted =
            expected.shard < wanted.shards && expected.ordinal <= wanted.replicas_per_shard;
    }
    sets(shape, existing, &Survey::of(&wanted, &members), moving)
}

fn pods(sets: &Sets) -> Vec<(i32, i32)> {
    let sizes = sets.sizes.iter();
    sizes.map(|size| (size.shard, size.pods)).collect()
}

fn primary_is_first(world: &World, shard: usize) -> bool {
    world.owns(shard * 2)
}

#[test]
fn sets_grow_at_once() {
    let world = formed(3, 1, true);
    let found = decide(&world, &stage(4, 2));
    assert_eq!(pods(&found), [(0, 3), (1, 3), (2, 3), (3, 3)]);
    assert!(found.sizes.iter().all(|size| size.keeps_volumes));
    let new = World::new(crate::redis::plan::simulation::wanted(3, 1, true));
    let (shape, _) = stage(3, 1);
    let found = decide(&new, &(shape, Vec::new()));
    assert_eq!(pods(&found), [(0, 2), (1, 2), (2, 2)]);
}

#[test]
fn a_replica_leaves_and_a_primary_does_not() {
    let world = formed(3, 1, true);
    let found = decide(&world, &stage(3, 0));
    for (shard, size) in found.sizes.iter().enumerate() {
        let first = primary_is_first(&world, shard);
        assert_eq!(size.pods, if first { 1 } else { 2 }, "{found:?}");
        assert_eq!(size.keeps_volumes, !first, "{found:?}");
    }
}

/// Its primary is down: the replica may be the only node with the keys.
#[test]
fn no_pod_leaves_while_a_primary_is_down() {
    let mut world = formed(3, 1, true);
    let down = Fault::DOWN;
    let primary = (0..6).find(|index| world.owns(*index)).unwrap();
    world.break_node(primary, down);
    let found = decide(&world, &stage(3, 0));
    assert_eq!(pods(&found), [(0, 2), (1, 2), (2, 2)]);
    for index in 0..6 {
        world.break_node(index, down);
    }
    let found = decide(&world, &stage(3, 0));
    assert_eq!(pods(&found), [(0, 2), (1, 2), (2, 2)], "all are down");
}

#[test]
fn a_shard_with_slots_keeps_its_pods() {
    let world = formed(3, 1, true);
    let mut stage = stage(3, 1);
    stage.0.shards = 2;
    assert_eq!(pods(&decide(&world, &stage)), [(0, 2), (1, 2), (2, 2)]);
    // Scaled to nothing by hand.
    stage.1[2].pods = 0;
    let found = decide(&world, &stage);
    let needed = if primary_is_first(&world, 2) { 1 } else { 2 };
    assert!(found.sizes[2].pods >= needed, "{found:?}");
    assert_eq!(found.removed, Vec::<i32>::new());
}

/// A node that said that it has nothing may have been given keys since.
#[test]
fn no_pod_leaves_while_slots_move() {
    let world = formed(3, 1, true);
    let found = decide_with(&world, &stage(3, 0), &[], true);
    assert_eq!(pods(&found), [(0, 2), (1, 2), (2, 2)]);
    assert!(found.sizes.iter().all(|size| size.keeps_volumes));
}

/// What it had was on its way to others, or to it: only its own server can say that nothing is left.
#[test]
fn a_silent_primary_does_not_leave_with_its_volume() {
    let world = formed(3, 1, true);
    let mut members = world.members(Timestamp::UNIX_EPOCH);
    let (shape, existing) = stage(3, 0);
    let replica = (0..6).find(|index| !world.owns(*index)).unwrap();
    let id = members[replica].report().unwrap().id();
    let mut wanted = world.wanted.clone();
    wanted.known = [(id, members[replica].expected.pod.clone())].into();
    wanted.replicas_per_shard = 0;
    for member in &mut members {
        member.expected.wanted = member.expected.ordinal == 0;
    }
    members[replica].expected.wanted = false;
    members[replica].answer = Answer::Unresponsive("timeout".into());
    let shard = members[replica].expected.shard;
    let size = |members: &[Member], wanted: &Wanted| {
        let found = sets(&shape, &existing, &Survey::of(wanted, members), false);
        found.sizes[shard].keeps_volumes
    };
    for index in (0..6).filter(|index| *index != replica) {
        let relisted = |node: &mut ClusterNode| node.linked = false;
        relist(&mut members[index], id, relisted);
    }
    assert!(!size(&members, &wanted), "a copy may go");
    for index in (0..6).filter(|index| *index != replica) {
        relist(&mut members[index], id, |node| node.primary = None);
    }
    assert!(size(&members, &wanted));
    wanted.known.clear();
    assert!(!size(&members, &wanted), "it never had a node");
}

/// It is asked for keys that its source does not have.
#[test]
fn a_node_that_slots_are_on_their_way_to_stays() {
    let world = formed(3, 1, true);
    let mut members = world.members(Timestamp::UNIX_EPOCH);
    let mut primaries = (0..6).filter(|index| world.owns(*index));
    let (source, target) = (primaries.next().unwrap(), primaries.next().unwrap());
    let (id, peer) = (
        members[target].report().unwrap().id(),
        members[source].report().unwrap().id(),
    );
    members[target].expected.wanted = false;
    relist(&mut members[target], id, |own| own.slots = SlotSet::new());
    let Answer::Report(report) = &mut members[target].answer else {
        panic!("it answers")
    };
    report.keys = 0;
    let mut imports = report.clone();
    imports.imports = true;
    let leaves = |members: &[Member]| {
        let survey = Survey::of(&world.wanted, members);
        may_leave(&survey, &members[target])
    };
    assert!(leaves(&members));
    let mut importing = members.clone();
    importing[target].answer = Answer::Report(imports);
    assert!(!leaves(&importing));
    let mut given = members.clone();
    open_slot(&mut given[source], OpenSlotKind::Migrating, id);
    assert!(!leaves(&given));
    // A replica has the mark that its primary took off while it was away.
    let replica = (0..6).find(|index| !world.owns(*index)).unwrap();
    let mut stale = members.clone();
    open_slot(&mut stale[replica], OpenSlotKind::Migrating, id);
    assert!(leaves(&stale));
    open_slot(&mut members[target], OpenSlotKind::Importing, peer);
    assert!(!leaves(&members));
}

/// Its primary has just taken over and writes its file: a process that ended would come back with less.
#[test]
fn a_replica_stays_while_its_primary_writes_its_file() {
    let world = formed(3, 1, true);
    let mut members = world.members(Timestamp::UNIX_EPOCH);
    let (primary, replica) = if world.owns(0) { (0, 1) } else { (1, 0) };
    members[replica].expected.wanted = false;
    let leaves = |members: &[Member]| {
        let survey = Survey::of(&world.wanted, members);
        may_leave(&survey, &members[replica])
    };
    assert!(leaves(&members));
    report(&mut members[primary]).persistence.is_rewriting = true;
    assert!(!leaves(&members));
}

/// Its set shrank already; a set that grew again would start it again, with a volume that nothing would delete.
#[test]
fn a_pod_that_ends_does_not_come_back() {
    let world = formed(3, 1, true);
    let mut stage = stage(3, 0);
    let shard = (0..3).find(|shard| primary_is_first(&world, *shard));
    let shard = shard.unwrap();
    let (primary, replica) = (shard * 2, shard * 2 + 1);
    let decide = |stage: &(Shape, Vec<ExistingSet>), silent: &[usize]| {
        let size = decide_with(&world, stage, silent, false).sizes[shard];
        (size.pods, size.keeps_volumes)
    };
    assert_eq!(decide(&stage, &[replica]), (2, true), "not decided yet");
    stage.1[shard].pods = 1;
    assert_eq!(decide(&stage, &[replica]), (1, false));
    // The volume may be needed.
    assert_eq!(decide(&stage, &[primary, replica]), (1, true));
    // Another client has deleted the set.
    stage.1.remove(shard);
    assert_eq!(decide(&stage, &[replica]), (2, true));
}

/// The spec may say nothing of volumes any more where the pods have them. What is known of the pod is a node that no table lists.
#[test]
fn a_silent_pod_leaves_where_nothing_can_be_in_it() {
    let world = formed(3, 1, false);
    let replica = (0..6).find(|index| !world.owns(*index)).unwrap();
    let leaves = |answer: &Answer, has_volume, last_started| {
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        let member = &mut members[replica];
        member.answer = answer.clone();
        let expected = &mut member.expected;
        (expected.wanted, expected.has_volume) = (false, has_volume);
        expected.last_started = last_started;
        let mut wanted = world.wanted.clone();
        let unlisted = NodeId::from_bytes([9; 20]);
        wanted.known = [(unlisted, expected.pod.clone())].into();
        let survey = Survey::of(&wanted, &members);
        may_leave(&survey, &members[replica])
    };
    let absent = Answer::Absent("it has no address".into());
    let silent = Answer::Unresponsive("connection refused".into());
    let started = Some(Timestamp::UNIX_EPOCH);
    assert!(leaves(&absent, false, started) && leaves(&silent, false, None));
    assert!(!leaves(&silent, false, started), "its server may run");
    assert!(!leaves(&absent, true, None) && !leaves(&silent, true, None));
}

#[test]
fn kept_volumes_of_more_shards_get_pods() {
    let mut world = formed(3, 1, true);
    let decided = |world: &World, known: KnownNodes, persistent| {
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        // Those that the spec does not ask for have no pods.
        members.retain(|member| member.expected.shard < 2);
        let mut wanted = world.wanted.clone();
        (wanted.shards, wanted.known, wanted.persistent) = (2, known, persistent);
        lacks_kept_volumes(&Survey::of(&wanted, &members))
    };
    let members = world.members(Timestamp::UNIX_EPOCH);
    let id = |member: &Member| Some((member.report()?.id(), member.expected.pod.clone()));
    let all: KnownNodes = members.iter().filter_map(id).collect();
    let nothing = KnownNodes::new;
    assert!(!decided(&world, nothing(), true), "it lives elsewhere");
    let down = Fault {
        down: 1000,
        ..Fault::DOWN
    };
    for index in [4, 5] {
        world.break_node(index, down);
    }
    (0..50).for_each(|_| world.tick());
    assert!(decided(&world, nothing(), true));
    assert!(!decided(&world, nothing(), false), "there are no volumes");
    assert!(!decided(&world, all, true), "a recorded node has had a pod");
    let found = Sets {
        sizes: vec![SetSize {
            shard: 0,
            pods: 1,
            keeps_volumes: true,
        }],
        removed: vec![1, 5],
    };
    let found = found.with_volumes(&[(1, 1), (1, 0), (0, 1), (4, 0)]);
    assert_eq!(pods(&found), [(0, 2), (1, 2), (4, 1)]);
    assert!(found.sizes.iter().all(|size| size.keeps_volumes));
    assert_eq!(found.removed, [5]);
}

#[test]
fn a_set_without_pods_is_removed() {
    let world = formed(3, 1, true);
    let (shape, mut existing) = stage(3, 1);
    existing.push(ExistingSet { shard: 3, pods: 0 });
    let found = decide(&world, &(shape, existing));
    assert_eq!((found.sizes.len(), found.removed), (3, vec![3]));
}

/// Slots of a shard that is to go are on its volumes: its set is needed when the cluster is resumed.
#[test]
fn a_hibernating_cluster_has_no_pods_and_all_sets() {
    let world = formed(3, 1, true);
    let mut stage = stage(3, 1);
    stage.0.shards = 2;
    stage.0.hibernate = true;
    let found = decide(&world, &stage);
    assert_eq!(pods(&found), [(0, 0), (1, 0), (2, 0)]);
    assert!(found.sizes.iter().all(|size| size.keeps_volumes));
    assert!(found.removed.is_empty());

    let mut asleep = formed(3, 1, true);
    let down = Fault::DOWN;
    for index in 0..6 {
        asleep.break_node(index, down);
    }
    for set in &mut stage.1 {
        set.pods = 0;
    }
    stage.0.hibernate = false;
    let mut resumed = decide(&asleep, &stage);
    assert!(resumed.removed.is_empty(), "{resumed:?}");
    resumed.sizes.truncate(2);
    assert_eq!(pods(&resumed), [(0, 2), (1, 2)]);
}

/// The pods of a StatefulSet that was deleted run on.
#[test]
fn a_set_that_was_deleted_keeps_its_pods() {
    let mut world = formed(3, 1, true);
    let down = Fault::DOWN;
    let primary = (0..6).find(|index| world.owns(*index)).unwrap();
    world.break_node(primary, down);
    let (shape, mut existing) = stage(3, 0);
    existing.clear();
    let found = decide(&world, &(shape, existing));
    assert_eq!(pods(&found), [(0, 2), (1, 2), (2, 2)]);
}

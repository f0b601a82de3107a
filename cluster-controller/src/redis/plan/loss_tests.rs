//! Losses that the servers do not repair themselves: who may take over, and who may not.

use super::{
    Action, Blocker, Plan, PromotedCopy,
    promote::ATTACHED_BY,
    simulation::{Fault, World, wanted},
    tests::{dice, fault, formed, is_healthy, plan, relist, repair, report, strike},
};
use crate::redis::{
    assess::assess,
    member::{Answer, Member, TakeoverRequest, WriteRefusal},
    survey::Survey,
};
use common::cluster::{node::FailoverMode, slots::SlotSet};
use crds::{LostSlots, Takeover};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

pub(super) const DOWN: Fault = Fault::DOWN;

pub(super) fn promoted(plan: &Plan) -> Vec<usize> {
    let steps = plan.steps.iter();
    steps
        .filter_map(|step| {
            let Action::Promote { member, .. } = step.action else {
                return None;
            };
            Some(member)
        })
        .collect()
}

fn look(world: &World) -> Plan {
    plan(&world.wanted, &world.members(NOW), NOW)
}

/// The primaries, by shard.
pub(super) fn primaries(world: &World) -> Vec<usize> {
    (0..world.wanted.nodes())
        .filter(|index| world.owns(*index))
        .collect()
}

/// Two of three primaries have been down for hours, and the others have noticed.
fn without_majority() -> World {
    let mut world = formed(3, 1, true);
    world.wanted.known = ids(&world);
    world.down_for = SignedDuration::from_hours(1);
    for index in primaries(&world).into_iter().take(2) {
        world.break_node(index, DOWN);
    }
    world.tick();
    world.age(3600);
    world
}

pub(super) fn ids(world: &World) -> crate::redis::identity::KnownNodes {
    crate::redis::identity::known_nodes(&world.wanted, &world.members(NOW))
}

#[test]
fn no_replica_takes_over_from_a_majority_that_may_live() {
    let mut world = without_majority();
    world.has_evidence = false;
    let seen = look(&world);
    assert_eq!(promoted(&seen), [0_usize; 0], "{seen:?}");
    let words: Vec<String> = seen.blockers.iter().map(ToString::to_string).collect();
    let annotation = format!("{}=0", crds::ANNOTATION_TAKEOVER);
    for part in [
        "sim-0-1 (unlinked for",
        "sim-0-0 has surely ended: its Kubernetes node two is not Ready",
        "kubectl delete node",
        annotation.as_str(),
    ] {
        assert!(
            words.iter().any(|word| word.contains(part)),
            "{part}: {words:?}"
        );
    }
    assert!(words.iter().all(|word| word.len() <= 256), "{words:?}");
    assert!(!seen.is_stuck(), "a deleted node has to be seen soon");
    world.has_evidence = true;
    assert_eq!(promoted(&look(&world)).len(), 1);
}

/// A primary that cannot reach a majority refuses writes after a node timeout.
#[test]
fn a_minority_in_doubt_is_no_obstacle() {
    let mut world = without_majority();
    world.has_evidence = false;
    let lost = primaries(&formed(3, 1, true))[0];
    let mut members = world.members(NOW);
    let former = &mut members[lost].expected.former;
    for evidence in former.values_mut() {
        *evidence = crate::redis::member::ProcessEvidence::Ended("deleted".into());
    }
    let seen = plan(&world.wanted, &members, NOW);
    assert_eq!(promoted(&seen).len(), 1, "{seen:?}");
}

/// A primary that only another node reaches may reach the far side as well: together they are a majority.
#[test]
fn a_bridge_to_the_far_side_makes_it_a_majority() {
    for (lost, bridges, waits) in [(3, 0, false), (3, 2, true)] {
        let mut world = formed(6, 1, true);
        world.wanted.known = ids(&world);
        world.down_for = SignedDuration::from_hours(1);
        world.has_evidence = false;
        let all = primaries(&world);
        for index in &all[..lost] {
            world.break_node(*index, DOWN);
        }
        world.tick();
        world.age(3600);
        let mut members = world.members(NOW);
        for index in &all[lost..lost + bridges] {
            members[*index].answer = Answer::Unresponsive("no answer".into());
        }
        let seen = plan(&world.wanted, &members, NOW);
        let unfenced = |one: &Blocker| matches!(one, Blocker::Unfenced { .. });
        assert_eq!(seen.blockers.iter().any(unfenced), waits, "{seen:?}");
        assert_eq!(promoted(&seen).is_empty(), waits, "{seen:?}");
    }
}

/// Its Kubernetes node was deleted while it was cut off and wrote on: its volume is attached to another one.
#[test]
fn a_primary_whose_volume_is_being_attached_is_waited_for() {
    let world = without_majority();
    let lost = primaries(&formed(3, 1, true))[0];
    let look = |change: fn(&mut Member), world: &World| {
        let mut members = world.members(NOW);
        members[lost].expected.kubernetes_node = Some("new".into());
        members[lost].expected.last_started = None;
        members[lost].expected.is_being_created = true;
        members[lost].expected.down_since = Some(NOW - SignedDuration::from_mins(5));
        change(&mut members[lost]);
        let seen = plan(&world.wanted, &members, NOW);
        let mut shards = promoted(&seen).into_iter();
        shards.any(|one| members[one].expected.shard == members[lost].expected.shard)
    };
    assert!(!look(|_| {}, &world));
    assert!(
        look(|one| one.expected.is_being_created = false, &world),
        "no room, or no image"
    );
    let long = |one: &mut Member| one.expected.down_since = Some(NOW - ATTACHED_BY);
    assert!(look(long, &world), "it does not come");
    assert!(
        look(|one| one.expected.last_started = Some(NOW), &world),
        "its server ends"
    );
    let mut world = world;
    world.wanted.recovery.requested = TakeoverRequest::All;
    assert!(look(|_| {}, &world));
}

/// A node added by hand has a replica of ours, and is away: that our pods answer says nothing about it.
#[test]
fn a_primary_without_a_pod_is_not_given_up() {
    for is_known in [true, false] {
        let mut world = formed(3, 1, true);
        world.wanted.known = ids(&world);
        let before = world.members(NOW);
        for index in primaries(&world).into_iter().take(2) {
            if !is_known {
                let id = before[index].report().unwrap().id();
                world.wanted.known.remove(&id);
            }
            // Another server answers in its pod, so that every pod of its shard does.
            world.break_node(
                index,
                Fault {
                    wiped: true,
                    ..DOWN
                },
            );
            world.restart(index);
        }
        world.tick();
        world.age(3600);
        let mut taken = 0;
        for _ in 0..10 {
            let seen = look(&world);
            taken += promoted(&seen).len();
            world.execute(&seen, || true);
            world.tick();
        }
        assert_eq!(taken > 0, is_known, "{}", world.tables());
    }
}

#[test]
fn auto_accepts_the_risk_after_the_time() {
    let mut world = without_majority();
    world.has_evidence = false;
    world.wanted.recovery.takeover = Takeover::Auto;
    let seen = look(&world);
    assert_eq!(promoted(&seen).len(), 1);
    assert!(
        seen.steps[0]
            .reason
            .contains("may still acknowledge writes"),
        "{seen:?}"
    );
    world.down_for = SignedDuration::from_secs(10);
    assert!(promoted(&look(&world)).is_empty());
}

#[test]
fn manual_waits_for_the_annotation() {
    let mut world = without_majority();
    world.wanted.recovery.takeover = Takeover::Manual;
    let seen = look(&world);
    assert!(promoted(&seen).is_empty());
    let asks = |blocker: &Blocker| matches!(blocker, Blocker::TakeoverManual { .. });
    assert!(seen.blockers.iter().any(asks), "{seen:?}");
    for (request, expected) in [("2", 0), ("1", 1), ("0,1", 1), ("all", 1)] {
        world.wanted.recovery.requested = TakeoverRequest::parse(request);
        assert_eq!(promoted(&look(&world)).len(), expected, "{request}");
    }
}

#[test]
fn an_annotation_names_shards_or_all() {
    let parse = TakeoverRequest::parse;
    assert_eq!(parse("all"), TakeoverRequest::All);
    assert_eq!(parse("all@second"), TakeoverRequest::All);
    assert_eq!(parse("0, 2@x"), TakeoverRequest::Shards([0, 2].into()));
    for nothing in ["", "yes", "-1", "0,x"] {
        assert_eq!(parse(nothing), TakeoverRequest::None, "{nothing}");
    }
}

/// `min-replicas-to-write` keeps a primary without its replicas from acknowledging writes.
#[test]
fn a_primary_that_refuses_writes_is_fenced() {
    let mut world = without_majority();
    world.has_evidence = false;
    let setting = |needed| WriteRefusal {
        min_replicas: needed,
        max_lag: std::time::Duration::from_secs(10),
        snapshots: false,
    };
    let seen = |world: &World, before: Option<u64>, needed: u64, seconds: Option<u64>| {
        let mut members = world.members(NOW);
        for member in members.iter_mut().filter(|one| one.report().is_none()) {
            let ids = member.expected.former.keys();
            let last = ids.filter_map(|id| Some((*id, setting(before?))));
            member.expected.refusals = last.collect();
        }
        for member in members.iter_mut().filter(|one| one.report().is_some()) {
            let report = report(member);
            report.refusal = setting(needed);
            if let Some(link) = report.replication.upstream.as_mut().filter(|link| !link.up) {
                link.down_seconds = seconds;
            }
        }
        promoted(&plan(&world.wanted, &members, NOW)).len()
    };
    let with = |world: &World, needed, seconds| seen(world, Some(needed), needed, seconds);
    assert_eq!(with(&world, 1, Some(13)), 1);
    assert_eq!(
        seen(&world, Some(0), 1, Some(13)),
        0,
        "set while it is away"
    );
    assert_eq!(seen(&world, None, 1, Some(13)), 0, "not known");
    assert_eq!(
        seen(&world, Some(1), 0, Some(13)),
        0,
        "perhaps taken back there too"
    );
    assert_eq!(with(&world, 1, Some(9)), 0, "the lag limit has not passed");
    assert_eq!(with(&world, 1, None), 0);
    assert_eq!(with(&world, 0, Some(13)), 0);
    // Another replica may be on its side.
    world = formed(3, 2, true);
    world.wanted.known = ids(&world);
    world.down_for = SignedDuration::from_hours(1);
    world.has_evidence = false;
    for primary in primaries(&world).into_iter().take(2) {
        world.break_node(primary, DOWN);
        world.break_node(primary / 3 * 3 + (primary + 1) % 3, DOWN);
    }
    world.tick();
    world.age(3600);
    assert_eq!(with(&world, 1, Some(13)), 0);
    assert_eq!(with(&world, 2, Some(13)), 1);
}

/// The primary's pod has come back blank while its replica had copied nothing yet.
#[test]
fn a_replica_before_its_first_copy_is_not_promoted_silently() {
    // What a replica before its first copy says of itself: Redis 0, Valkey 1.
    for (persistent, offset) in [(true, 0), (false, 0), (true, 1), (false, 1)] {
        let mut world = formed(3, 1, persistent);
        let (primary, replica) = if world.owns(0) { (0, 1) } else { (1, 0) };
        world.unlink_before_the_copy(replica);
        world.break_node(
            primary,
            Fault {
                wiped: true,
                ..DOWN
            },
        );
        world.restart(primary);
        let mut last = Plan::default();
        for second in 0..40 {
            let now = Timestamp::from_second(second).unwrap();
            let mut members = world.members(now);
            report(&mut members[replica]).replication.offset = offset;
            last = plan(&world.wanted, &members, now);
            if !promoted(&last).is_empty() {
                break;
            }
            world.execute(&last, || true);
            world.tick();
        }
        if persistent {
            let empty = |blocker: &Blocker| matches!(blocker, Blocker::EmptyCopy { .. });
            assert!(last.blockers.iter().any(empty), "{last:?}");
            assert!(promoted(&last).is_empty());
            continue;
        }
        assert_eq!(promoted(&last), [replica]);
        let step = &last.steps[0];
        assert!(matches!(
            step.action,
            Action::Promote {
                copy: PromotedCopy::Lost,
                ..
            }
        ));
        assert!(
            step.reason.contains("no copy of shard 0 is left"),
            "{step:?}"
        );
    }
}

/// A replica that was linked has a copy, be it of an empty shard.
#[test]
fn the_copy_of_an_empty_shard_takes_over() {
    let mut world = World::new(wanted(3, 1, true));
    repair(&mut world, &mut || true);
    world.wanted.formed_before = true;
    world.tick();
    world.age(3600);
    let (primary, replica) = if world.owns(0) { (0, 1) } else { (1, 0) };
    world.break_node(
        primary,
        Fault {
            wiped: true,
            ..DOWN
        },
    );
    world.restart(primary);
    let mut found = Vec::new();
    for second in 0..40 {
        let now = Timestamp::from_second(second).unwrap();
        let seen = plan(&world.wanted, &world.members(now), now);
        found.extend(promoted(&seen));
        world.execute(&seen, || true);
        world.tick();
    }
    assert!(
        found.contains(&replica) || world.owns(replica),
        "{}",
        world.tables()
    );
}

/// Before 7.0 the servers give a primary without replicas one of another shard. Whether the primary may return is judged by its own pod.
#[test]
fn a_replica_in_another_shards_pods_does_not_decide() {
    let mut world = formed(3, 2, true);
    world.wanted.known = ids(&world);
    world.down_for = SignedDuration::from_hours(1);
    let lost = primaries(&world)[1];
    let own_replicas: Vec<usize> = (3..6).filter(|index| *index != lost).collect();
    let migrated = (0..3).find(|index| !world.owns(*index)).unwrap();
    world.migrate(migrated, lost);
    for index in own_replicas.iter().copied().chain([lost]) {
        world.break_node(
            index,
            Fault {
                loading: 4000,
                ..DOWN
            },
        );
    }
    world.restart(lost);
    world.age(3600);
    world.tick();
    let members = world.members(NOW);
    assert_eq!(members[lost].answer, Answer::Loading);
    let seen = plan(&world.wanted, &members, NOW);
    assert!(promoted(&seen).is_empty(), "{seen:?}");
    let loads = |blocker: &Blocker| {
        matches!(
            blocker,
            Blocker::PrimaryDown {
                shard: 1,
                loading: Some(_),
                ..
            }
        )
    };
    assert!(seen.blockers.iter().any(loads), "{seen:?}");
}

/// Offsets of different histories say nothing about each other.
#[test]
fn offsets_count_within_one_history_only() {
    let mut world = formed(3, 2, true);
    world.wanted.known = ids(&world);
    world.down_for = SignedDuration::from_hours(1);
    let lost = primaries(&world)[0];
    let replicas: Vec<usize> = (0..3).filter(|index| *index != lost).collect();
    world.break_node(lost, DOWN);
    world.tick();
    world.age(3600);
    let with = |first: (&str, u64, Option<u64>), second: (&str, u64, Option<u64>)| {
        let mut members = world.members(NOW);
        for (index, (id, offset, down)) in replicas.iter().zip([first, second]) {
            let report = report(&mut members[*index]);
            report.replication.id = id.into();
            report.replication.offset = offset;
            let link = report.replication.upstream.as_mut().unwrap();
            (link.up, link.down_seconds) = (false, down);
        }
        let seen = plan(&world.wanted, &members, NOW);
        let member = promoted(&seen).first().copied();
        (member, seen.steps.first().map(|step| step.reason.clone()))
    };
    let (chosen, reason) = with(("a", 10, Some(5)), ("a", 20, Some(5)));
    assert_eq!(chosen, Some(replicas[1]));
    assert!(!reason.unwrap().contains("history"));
    // The second one has read an old file and was never linked; its offset is that of another life.
    let (chosen, reason) = with(("a", 10, Some(5)), ("b", 2000, None));
    assert_eq!(chosen, Some(replicas[0]));
    let reason = reason.unwrap();
    assert!(reason.contains("another replication history"), "{reason}");
    // Both were linked: the one that lost its link last.
    let (chosen, _) = with(("a", 2000, Some(500)), ("b", 10, Some(5)));
    assert_eq!(chosen, Some(replicas[1]));
}

/// A replica that was given to another primary and has not copied it yet holds the keys of the former one.
#[test]
fn the_copy_of_another_primary_is_no_copy() {
    let mut world = formed(3, 1, true);
    world.wanted.known = ids(&world);
    world.down_for = SignedDuration::from_hours(1);
    let all = primaries(&world);
    let (lost, other) = (all[0], all[1]);
    let replica = 1 - lost;
    world.break_node(lost, DOWN);
    world.tick();
    world.age(3600);
    let mut members = world.members(NOW);
    for (index, id) in [(replica, "b"), (other, "b"), (all[2], "c")] {
        report(&mut members[index]).replication.id = id.into();
    }
    let seen = plan(&world.wanted, &members, NOW);
    assert!(promoted(&seen).is_empty(), "{seen:?}");
    let empty = |blocker: &Blocker| matches!(blocker, Blocker::EmptyCopy { .. });
    assert!(seen.blockers.iter().any(empty), "{seen:?}");
}

/// A cluster is resumed while slots are still on a shard that leaves, whose pods do not exist yet: what is on their volumes is not lost.
#[test]
fn a_leaving_shard_without_pods_has_its_volumes() {
    let mut world = formed(4, 1, true);
    let mut wanted = world.wanted.clone();
    wanted.known = ids(&world);
    wanted.shards = 3;
    wanted.recovery.lost_slots = LostSlots::RecreateEmpty;
    let leaving = [6, 7];
    for index in leaving {
        world.break_node(index, DOWN);
    }
    world.tick();
    world.age(3600);
    let mut members = world.members(NOW);
    members.truncate(6);
    let survey = Survey::of(&wanted, &members);
    assert!(survey.lost().is_empty());
    let seen = plan(&wanted, &members, NOW);
    let given = |step: &super::Step| matches!(step.action, Action::AssignSlots { .. });
    assert!(!seen.steps.iter().any(given), "{seen:?}");

    // Its pods came back without data.
    wanted.shards = 3;
    let mut members = world.members(NOW);
    for index in leaving {
        members[index].expected.wanted = false;
    }
    let survey = Survey::of(&wanted, &members[..7]);
    assert_eq!(survey.lost().len(), 4096, "the other pod exists");
}

/// Of the replicas of a lost primary, the one with the most takes over, also when its pod is about to go; of equals the one that stays.
#[test]
fn the_newest_copy_goes_before_the_one_that_stays() {
    for (ahead, chosen) in [(100, 0), (0, 1)] {
        let mut world = formed(3, 2, true);
        let primary = primaries(&world)[0];
        let replicas: Vec<usize> = (0..3).filter(|index| *index != primary).collect();
        let wiped = Fault {
            wiped: true,
            ..DOWN
        };
        world.break_node(primary, wiped);
        world.restart(primary);
        let mut found = Vec::new();
        for second in 0..40 {
            let now = Timestamp::from_second(second).unwrap();
            let mut members = world.members(now);
            members[replicas[0]].expected.terminating = true;
            report(&mut members[replicas[0]]).replication.offset += ahead;
            let seen = plan(&world.wanted, &members, now);
            found = promoted(&seen);
            if !found.is_empty() {
                break;
            }
            world.execute(&seen, || true);
            world.tick();
        }
        assert_eq!(found, [replicas[chosen]], "{}", world.tables());
    }
}

/// A shard's primary was lost before it had slots, and its replica is alone. Keys that no other node has make it a primary, and so does
/// having none; with those of a primary that lives it would return values that clients have changed since.
#[test]
fn keys_of_a_living_primary_begin_no_shard() {
    let world = formed(3, 1, true);
    let all = primaries(&world);
    let (lost, other) = (all[0], all[1]);
    let replica = 1 - lost;
    let mut members = world.members(NOW);
    let id = members[lost].report().unwrap().id();
    let (other_id, mut slots) = (
        members[other].report().unwrap().id(),
        world.slots_of(other).0,
    );
    slots = slots.union(&world.slots_of(lost).0);
    for index in (0..members.len()).filter(|index| *index != lost) {
        relist(&mut members[index], id, |node| {
            node.slots = SlotSet::new();
            node.linked = false;
        });
        relist(&mut members[index], other_id, |node| {
            node.slots = slots.clone();
        });
    }
    let mut wanted = world.wanted.clone();
    wanted.known = ids(&world);
    wanted.replicas_per_shard = 0;
    members[replica].expected.wanted = true;
    report(&mut members[replica]).keys = 0;
    report(&mut members[other]).replication.id = "b".into();
    members.remove(lost);
    let replica = replica.saturating_sub(usize::from(lost < replica));
    assert_eq!(
        promoted(&plan(&wanted, &members, NOW)),
        [replica],
        "no keys"
    );
    report(&mut members[replica]).keys = 7;
    assert_eq!(
        promoted(&plan(&wanted, &members, NOW)),
        [replica],
        "its own"
    );
    report(&mut members[replica]).replication.id = "b".into();
    let seen = plan(&wanted, &members, NOW);
    assert_eq!(promoted(&seen), [0_usize; 0], "{seen:?}");
}

/// A script blocks a primary for a minute: it keeps its slots, is named, and nothing is done against it.
#[test]
fn a_busy_primary_is_alive() {
    let mut world = formed(3, 1, true);
    world.wanted.known = ids(&world);
    world.down_for = SignedDuration::from_hours(1);
    let busy = primaries(&world)[0];
    world.busy.insert(busy);
    // Whether its peers have given it up or not.
    for failed in [false, true] {
        let mut members = world.members(NOW);
        if failed {
            let mut down = world.clone();
            down.busy.clear();
            down.break_node(busy, DOWN);
            down.tick();
            members = down.members(NOW);
            members[busy].answer = Answer::Busy;
            members[busy].expected.down_since = None;
        }
        let seen = plan(&world.wanted, &members, NOW);
        assert!(seen.steps.is_empty(), "{seen:?}");
        let survey = Survey::of(&world.wanted, &members);
        let assessment = assess(&survey);
        assert_eq!(assessment.slots_ok, 16384);
        assert!(assessment.has_quorum());
        let words: Vec<String> = seen
            .blockers
            .iter()
            .map(ToString::to_string)
            .chain(assessment.problems.iter().map(ToString::to_string))
            .collect();
        assert!(
            words.iter().any(|word| word.contains("script kill")),
            "{words:?}"
        );
        assert!(
            words.iter().all(|word| !word.contains("is down")),
            "{words:?}"
        );
    }
}

#[test]
fn a_disk_that_takes_no_writes_is_named() {
    let world = formed(3, 1, true);
    let with = |append, snapshot, configured| {
        let mut members = world.members(NOW);
        let report = report(&mut members[0]);
        report.persistence.append_failed = append;
        report.persistence.snapshot_failed = snapshot;
        report.refusal.snapshots = configured;
        let problems = assess(&Survey::of(&world.wanted, &members)).problems;
        problems
            .first()
            .map(ToString::to_string)
            .unwrap_or_default()
    };
    assert!(with(true, false, false).contains("append-only file"));
    assert!(with(false, true, true).contains("snapshot"));
    assert_eq!(with(false, true, false), "", "no write is refused");
}

/// A shard has lost its volumes: its slots are created again only where the user has said so.
#[test]
fn lost_slots_are_created_again_where_the_user_says_so() {
    for policy in [LostSlots::Fail, LostSlots::RecreateEmpty] {
        let mut world = formed(3, 1, true);
        world.wanted.recovery.lost_slots = policy;
        for index in 0..2 {
            world.break_node(
                index,
                Fault {
                    wiped: true,
                    moved: true,
                    ..DOWN
                },
            );
            world.restart(index);
        }
        let rest = repair(&mut world, &mut || true);
        let lost = |blocker: &Blocker| matches!(blocker, Blocker::SlotsLost { .. });
        let accepted = policy == LostSlots::RecreateEmpty;
        assert_eq!(is_healthy(&world), accepted, "{rest:?}\n{}", world.tables());
        assert_eq!(rest.blockers.iter().any(lost), !accepted, "{rest:?}");
        assert_eq!(world.shards_with_data().len(), 2);
    }
}

/// A takeover was cut off before its last step, or a replica was behind: what it has is named.
#[test]
fn who_has_keys_of_lost_slots_is_named() {
    for policy in [LostSlots::Fail, LostSlots::RecreateEmpty] {
        let mut world = formed(3, 1, true);
        world.wanted.recovery.lost_slots = policy;
        let [lost, holder] = [primaries(&world)[0], primaries(&world)[2]];
        let some: SlotSet = world.slots_of(lost).0.iter().take(60).collect();
        world.leave_keys(holder, &some);
        for index in 0..2 {
            let fault = Fault {
                wiped: true,
                moved: true,
                ..DOWN
            };
            world.break_node(index, fault);
            world.restart(index);
        }
        let rest = repair(&mut world, &mut || true);
        let pod = world.members(NOW)[holder].expected.pod.clone();
        let named = |blocker: &Blocker| matches!(blocker, Blocker::SlotsLost { holders, .. } if *holders == [pod.clone()]);
        let accepted = policy == LostSlots::RecreateEmpty;
        assert_eq!(rest.blockers.iter().any(named), !accepted, "{rest:?}");
        let serves = some.difference(&world.slots_of(holder).0).is_empty();
        assert_eq!(serves, accepted, "{}", world.tables());
    }
}

/// Slots that CLUSTER DELSLOTS took from a primary with data are not lost, even where no node has a key of them.
#[test]
fn slots_taken_by_hand_are_not_called_lost() {
    let mut world = formed(3, 1, true);
    world.take_slots_by_hand(primaries(&world)[0], 100);
    world.tick();
    let mut members = world.members(NOW);
    for member in &mut members {
        report(member).unserved = Some(SlotSet::new());
    }
    let seen = plan(&world.wanted, &members, NOW);
    let taken = |blocker: &Blocker| matches!(blocker, Blocker::SlotsUnassigned { count: 100, .. });
    assert!(seen.blockers.iter().any(taken), "{seen:?}");
    let lost = |blocker: &Blocker| matches!(blocker, Blocker::SlotsLost { .. });
    assert!(!seen.blockers.iter().any(lost), "{seen:?}");
}

/// Primaries on each Kubernetes node.
fn loads(world: &World) -> BTreeMap<&'static str, usize> {
    let mut loads = BTreeMap::new();
    for index in primaries(world) {
        *loads.entry(world.kubernetes_nodes[index]).or_default() += 1;
    }
    loads
}

#[test]
fn primaries_are_spread_again_after_failovers() {
    let mut world = formed(3, 1, true);
    let all = primaries(&world);
    let nodes = [("one", "two"), ("two", "four"), ("three", "five")];
    for (primary, (own, other)) in all.iter().zip(nodes) {
        world.kubernetes_nodes[*primary] = own;
        world.kubernetes_nodes[*primary ^ 1] = other;
    }
    let primary = all[0];
    world.break_node(primary, DOWN);
    for _ in 0..10 {
        world.tick();
    }
    world.restart(primary);
    assert!(world.owns(primary ^ 1), "elected");
    for _ in 0..5 {
        world.tick();
    }
    assert_eq!(loads(&world).values().max(), Some(&2));
    let mut hand_overs = 0;
    for second in 0..20 {
        let now = Timestamp::from_second(second).unwrap();
        let seen = plan(&world.wanted, &world.members(now), now);
        hand_overs += usize::from(seen.hands_over());
        assert!(seen.repairs_nothing() || !seen.hands_over(), "{seen:?}");
        world.execute(&seen, || true);
        world.tick();
        world.tick();
    }
    assert_eq!(hand_overs, 1);
    assert_eq!(
        loads(&world).values().max(),
        Some(&1),
        "{:?}",
        loads(&world)
    );
    assert!(is_healthy(&world), "{}", world.tables());
    assert_eq!(world.shards_with_data().len(), 3);
    assert_eq!(look(&world), Plan::default());
}

#[test]
fn nothing_is_handed_over_while_it_may_harm() {
    let mut world = formed(3, 1, true);
    let all = primaries(&world);
    for index in all {
        world.kubernetes_nodes[index] = "one";
        world.kubernetes_nodes[index ^ 1] = ["two", "three"][index / 2 % 2];
    }
    let hands_over = |change: &dyn Fn(&mut Vec<Member>)| {
        let mut members = world.members(NOW);
        change(&mut members);
        plan(&world.wanted, &members, NOW).hands_over()
    };
    assert!(hands_over(&|_| {}));
    let first_replica = (0..6).find(|index| !world.owns(*index)).unwrap();
    assert!(!hands_over(
        &|members| members[0].expected.terminating = true
    ));
    assert!(!hands_over(&|members| members[0]
        .expected
        .address_is_current = false));
    assert!(!hands_over(&|members| members[5].answer = Answer::Loading));
    assert!(!hands_over(&|members| {
        let link = report(&mut members[first_replica])
            .replication
            .upstream
            .as_mut();
        link.unwrap().up = false;
    }));
    assert!(!hands_over(&|members| {
        for member in members {
            if report(member).own().is_primary() {
                report(member).replication.offset += 10 << 20;
            }
        }
    }));
    // A target that is cordoned is none; where the others have no better place, nothing is handed over.
    let cordon = |node: &'static str| {
        move |members: &mut Vec<Member>| {
            for member in members {
                let expected = &mut member.expected;
                expected.cordoned = expected.kubernetes_node.as_deref() == Some(node);
            }
        }
    };
    assert!(hands_over(&cordon("two")) && hands_over(&cordon("three")));
    assert!(!hands_over(&|members| members
        .iter_mut()
        .for_each(|member| member.expected.cordoned = true)));
    let mut held = world.clone();
    held.wanted.may_spread = false;
    assert!(!look(&held).hands_over());
    held = world.clone();
    held.wanted.formed_before = false;
    assert!(!look(&held).hands_over());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// However the roles lie after faults, no Kubernetes node has more primaries than it must.
    #[test]
    fn repaired_clusters_are_spread(
        replicas in 1..3_usize,
        faults in prop::collection::vec(fault(), 9),
        nodes in prop::collection::vec(0..3_usize, 9),
        seed: u64,
    ) {
        let mut world = formed(3, replicas, true);
        let places = ["one", "two", "three"];
        world.kubernetes_nodes = nodes.into_iter().map(|node| places[node]).collect();
        let count = world.wanted.nodes();
        let kept: Vec<_> = faults.into_iter().take(count)
            .map(|fault| fault.map(|fault| Fault { wiped: false, ..fault })).collect();
        let mut dice = dice(seed);
        strike(&mut world, &kept, &mut dice);
        let rest = repair(&mut world, &mut dice);
        prop_assert!(is_healthy(&world), "{:?}\n{}", rest, world.tables());
        prop_assert!(rest.steps.is_empty(), "{:?}", rest);
        prop_assert_eq!(world.shards_with_data().len(), 3);
        // The best of all placements.
        let mut best = usize::MAX;
        for choice in 0..(replicas + 1).pow(3) {
            let chosen = (0..3).map(|shard| {
                let ordinal = choice / (replicas + 1).pow(u32::try_from(shard).unwrap()) % (replicas + 1);
                world.kubernetes_nodes[shard * (replicas + 1) + ordinal]
            });
            let mut loads: BTreeMap<&str, usize> = BTreeMap::new();
            for place in chosen {
                *loads.entry(place).or_default() += 1;
            }
            best = best.min(loads.into_values().max().unwrap());
        }
        let most = loads(&world).into_values().max().unwrap();
        prop_assert_eq!(most, best, "{:?}", loads(&world));
    }

    /// Whatever is not known to have ended keeps a majority's slots.
    #[test]
    fn a_doubtful_majority_is_never_overruled(
        persistent: bool,
        down in prop::collection::vec(any::<bool>(), 6),
        seed: u64,
    ) {
        let mut world = formed(3, 1, persistent);
        world.wanted.known = ids(&world);
        world.down_for = SignedDuration::from_hours(1);
        world.has_evidence = false;
        let lost: BTreeSet<usize> = primaries(&world).into_iter().take(2).collect();
        #[allow(clippy::needless_range_loop)] // it numbers the nodes, too
        for index in 0..6 {
            // A cut node keeps what it has.
            if lost.contains(&index) || (down[index] && !world.owns(index)) {
                world.cut(index);
            }
        }
        world.age(3600);
        let mut dice = dice(seed);
        for second in 0..60 {
            let now = Timestamp::from_second(second).unwrap();
            let seen = plan(&world.wanted, &world.members(now), now);
            prop_assert!(promoted(&seen).is_empty(), "{:?}", seen);
            world.execute(&seen, &mut dice);
            world.tick();
        }
        for index in lost {
            prop_assert!(world.owns(index));
        }
    }
}

/// A primary that is lost before its replica has heard what it serves: the replica would take over nothing, and the slots would stay with
/// the dead.
#[test]
fn a_replica_claims_slots_that_it_has_not_heard_of() {
    let mut world = formed(3, 1, true);
    world.down_for = SignedDuration::from_hours(3);
    let victim = primaries(&world)[0];
    let slots = world.slots_of(victim).0;
    let id = world.members(NOW)[victim].report().unwrap().id();
    world.break_node(victim, DOWN);
    let mut members = world.members(NOW);
    let promoted = |members: &[Member]| {
        let plan = plan(&world.wanted, members, NOW);
        plan.steps.into_iter().find_map(|step| {
            let Action::Promote {
                member,
                mode,
                unheard,
                ..
            } = step.action
            else {
                return None;
            };
            Some((member, mode, unheard))
        })
    };
    let (replica, mode, unheard) = promoted(&members).unwrap();
    assert_eq!(
        (mode, unheard.as_slice()),
        (FailoverMode::Force, [].as_slice())
    );
    relist(&mut members[replica], id, |node| {
        node.slots = SlotSet::new();
    });
    let found = promoted(&members).unwrap();
    assert_eq!(found, (replica, FailoverMode::Takeover, slots.ranges()));
}

//! How old a copy may be that takes over.

use super::{
    Blocker, age,
    loss_tests::{DOWN, ids, primaries, promoted},
    tests::{formed, plan, report},
};
use crate::{
    fencing,
    redis::{
        member::{Member, TakeoverRequest, Wanted},
        plan::simulation::World,
        survey::Survey,
    },
};
use crds::Takeover;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

const NOW: Timestamp = Timestamp::constant(100_000, 0);

/// So many primaries are lost, and their replicas have been started since and found none to link to.
fn restarted_replicas(lost: usize) -> (World, Vec<Member>) {
    let mut world = formed(3, 1, true);
    world.wanted.known = ids(&world);
    world.down_for = SignedDuration::from_hours(1);
    for index in primaries(&world).into_iter().take(lost) {
        world.break_node(index, DOWN);
    }
    world.tick();
    world.age(3600);
    let mut members = world.members(NOW);
    for member in members.iter_mut().filter(|one| one.report().is_some()) {
        let link = report(member).replication.upstream.as_mut();
        if let Some(link) = link.filter(|link| !link.up) {
            link.down_seconds = None;
        }
    }
    (world, members)
}

/// Sets for how many seconds before the primaries went silent the replicas were last seen with everything.
fn unlinked_before(members: &mut [Member], seconds: Option<i64>) {
    for member in members.iter_mut().filter(|one| one.report().is_some()) {
        let id = report(member).id();
        let until = seconds.map(|seconds| (id, NOW - SignedDuration::from_secs(3600 + seconds)));
        member.expected.current_until = until.into_iter().collect();
    }
}

fn old(wanted: &Wanted, members: &[Member]) -> Vec<Blocker> {
    let seen = plan(wanted, members, NOW);
    let blockers = seen.blockers.iter().cloned();
    let old: Vec<Blocker> = blockers
        .filter(|one| matches!(one, Blocker::OldCopy { .. }))
        .collect();
    assert_eq!(old.is_empty(), !promoted(&seen).is_empty(), "{seen:?}");
    old
}

/// An ordered failover does not ask for the age of the copy, with a majority and without one.
#[test]
fn an_old_copy_waits_for_a_primary_that_may_return() {
    for lost in [1, 2] {
        let (mut world, mut members) = restarted_replicas(lost);
        let most = age::most(world.wanted.node_timeout);
        let limit = i64::try_from(most.as_secs()).unwrap();
        for (seconds, waits) in [
            (Some(0), false),
            (Some(limit), false),
            (Some(limit + 1), true),
            (None, true),
        ] {
            unlinked_before(&mut members, seconds);
            let found = old(&world.wanted, &members);
            assert_eq!(!found.is_empty(), waits, "{lost} lost, {seconds:?}");
            let known = seconds.map(|_| most);
            for blocker in &found {
                assert!(
                    matches!(blocker, Blocker::OldCopy { older_than, .. } if *older_than == known)
                );
                assert!(blocker.to_string().len() <= 256, "{blocker}");
            }
        }
        world.wanted.recovery.requested = TakeoverRequest::All;
        assert_eq!(old(&world.wanted, &members), []);
        world.wanted.recovery.requested = TakeoverRequest::None;
        world.wanted.recovery.takeover = Takeover::Auto;
        assert_eq!(old(&world.wanted, &members), []);
    }
}

/// The server says itself how long it has been unlinked, also of a time in which no controller ran. The later of what it says and what was
/// seen counts.
#[test]
fn a_replica_knows_since_when_it_is_unlinked() {
    let (world, mut members) = restarted_replicas(1);
    for (seen, seconds, waits) in [
        (None, 3600, false),
        (None, 3660, false),
        (None, 3661, true),
        (Some(1000), 3660, false),
        (Some(1000), 3661, true),
        (Some(0), 9000, false),
        // Linked after the primary was last heard of.
        (None, 10, false),
    ] {
        unlinked_before(&mut members, seen);
        for member in members.iter_mut().filter(|one| one.report().is_some()) {
            let link = report(member).replication.upstream.as_mut();
            if let Some(link) = link.filter(|link| !link.up) {
                link.down_seconds = Some(seconds);
            }
        }
        let found = old(&world.wanted, &members);
        assert_eq!(!found.is_empty(), waits, "{seen:?} {seconds}");
    }
}

/// When the primary ended was not seen.
#[test]
fn without_the_end_of_the_primary_there_is_no_age() {
    let (world, mut members) = restarted_replicas(1);
    unlinked_before(&mut members, Some(0));
    assert_eq!(old(&world.wanted, &members), []);
    for member in &mut members {
        member.expected.unresponsive_since.clear();
    }
    let found = old(&world.wanted, &members);
    assert!(
        matches!(
            &found[..],
            [Blocker::OldCopy {
                older_than: None,
                ..
            }]
        ),
        "{found:?}"
    );
}

/// The one that has the most takes over: it lacks no more than another whose age is known. Of two histories, the one of known age.
#[test]
fn the_age_of_a_copy_that_has_less_counts() {
    let mut world = formed(3, 2, true);
    world.wanted.known = ids(&world);
    world.down_for = SignedDuration::from_hours(1);
    let primary = primaries(&world)[0];
    world.break_node(primary, DOWN);
    world.tick();
    world.age(3600);
    let mut members = world.members(NOW);
    let shard = members[primary].expected.shard;
    let replicas = members.iter_mut().filter(|one| one.expected.shard == shard);
    let replicas = replicas.filter(|one| one.report().is_some());
    for (number, member) in replicas.enumerate() {
        if number == 0 {
            member.expected.current_until.clear();
        }
        let replication = &mut report(member).replication;
        replication.offset = 1000 - number as u64;
        let link = replication.upstream.as_mut().unwrap();
        (link.up, link.down_seconds) = (false, None);
    }
    assert_eq!(old(&world.wanted, &members), []);
    let other = members.iter_mut().filter(|one| one.expected.shard == shard);
    let mut other = other.filter(|one| one.report().is_some()).skip(1);
    report(other.next().unwrap()).replication.id = "another".into();
    assert_eq!(
        old(&world.wanted, &members),
        [],
        "the one whose age is known"
    );
    let others = members.iter_mut().filter(|one| one.expected.shard == shard);
    for member in others {
        member.expected.current_until.clear();
    }
    assert_eq!(old(&world.wanted, &members).len(), 1);
}

/// It was started again a moment ago and began another history: it had everything until then. The other one has been unlinked for an hour.
#[test]
fn the_copy_that_was_current_last_goes_first() {
    let mut world = formed(3, 2, true);
    world.wanted.known = ids(&world);
    let primary = primaries(&world)[0];
    world.break_node(primary, DOWN);
    world.tick();
    world.age(3600);
    for first in [0, 1] {
        let mut members = world.members(NOW);
        let shard = members[primary].expected.shard;
        let replicas = members.iter_mut().enumerate();
        let replicas = replicas.filter(|(_, one)| one.expected.shard == shard);
        let mut replicas: Vec<_> = replicas.filter(|(_, one)| one.report().is_some()).collect();
        let mut newest = None;
        for (number, (index, member)) in replicas.iter_mut().enumerate() {
            let id = report(member).id();
            let replication = &mut report(member).replication;
            let link = replication.upstream.as_mut().unwrap();
            (link.up, link.down_seconds) = (false, Some(3600));
            replication.id = "of the primary".into();
            if number == first {
                link.down_seconds = None;
                replication.id = "its own".into();
                replication.offset = 1;
                newest = Some(*index);
            }
            let seconds = if number == first { 5 } else { 3600 };
            let until = NOW - SignedDuration::from_secs(seconds);
            member.expected.current_until = [(id, until)].into();
        }
        world.wanted.recovery.requested = TakeoverRequest::All;
        let seen = plan(&world.wanted, &members, NOW);
        assert_eq!(promoted(&seen), newest.into_iter().collect::<Vec<_>>());
    }
}

/// What was in memory only is gone with the process: there is nothing to wait for.
#[test]
fn the_age_does_not_matter_where_memory_is_lost() {
    let (mut world, mut members) = restarted_replicas(1);
    unlinked_before(&mut members, None);
    world.wanted.persistent = false;
    for member in &mut members {
        member.expected.has_volume = false;
    }
    let survey = Survey::of(&world.wanted, &members);
    assert!(survey.has_quorum() && fencing::is_asked_for(&survey));
    for (ended, waits) in [(true, false), (false, true)] {
        if !ended {
            for member in &mut members {
                member.expected.former.clear();
            }
        }
        let found = old(&world.wanted, &members);
        assert_eq!(!found.is_empty(), waits, "{found:?}");
    }
}

use super::*;
use crate::{
    fencing::LastSeen,
    redis::{
        member::{Answer, Member},
        plan::{simulation::World, tests::formed},
    },
};

const PLACE: (&str, &str) = ("team", "shop");

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A cluster that is looked at, and the primary and the replica of one of its shards.
struct Looks {
    world: World,
    tracker: CopyTracker,
    recorded: LastSeenNodes,
    primary: usize,
    replica: usize,
}

/// Until when the primary and the replica had everything, and since when the primary is silent. None: it lacks nothing, or is not silent.
type Found = (Option<i64>, Option<i64>, Option<i64>);

impl Looks {
    fn new() -> Self {
        let mut world = formed(3, 1, true);
        world.wanted.known =
            crate::redis::identity::known_nodes(&world.wanted, &world.members(at(0)));
        let (primary, replica) = if world.owns(0) { (0, 1) } else { (1, 0) };
        Self {
            world,
            tracker: CopyTracker::default(),
            recorded: LastSeenNodes::new(),
            primary,
            replica,
        }
    }

    fn id_of(&self, index: usize) -> NodeId {
        let members = self.world.members(at(0));
        members[index].report().unwrap().id()
    }

    fn look(&self, now: i64) -> Found {
        self.look_with(at(now), |_| ())
    }

    fn look_with(&self, now: Timestamp, change: impl Fn(&mut [Member])) -> Found {
        let wanted = &self.world.wanted;
        let mut members = self.world.members(now);
        change(&mut members);
        let survey = Survey::of(wanted, &members);
        let times = self.tracker.note(PLACE, &survey, &self.recorded, now);
        times.mark(&mut members, &wanted.known);
        let until = |index: usize| seconds(&members[index].expected.current_until);
        (
            until(self.primary),
            until(self.replica),
            seconds(&members[self.primary].expected.unresponsive_since),
        )
    }
}

fn seconds(times: &BTreeMap<NodeId, Timestamp>) -> Option<i64> {
    let time = times.values().next()?;
    assert_eq!(time.subsec_nanosecond(), 0, "the status has whole seconds");
    Some(time.as_second())
}

fn link(member: &mut Member) -> &mut UpstreamLink {
    let Answer::Report(report) = &mut member.answer else {
        panic!("no report")
    };
    report.replication.upstream.as_mut().unwrap()
}

#[test]
fn the_last_look_with_everything_is_remembered() {
    let mut looks = Looks::new();
    let (primary, replica) = (looks.primary, looks.replica);
    assert_eq!(looks.look(0), (None, None, None));
    let unlinked = |members: &mut [Member]| link(&mut members[replica]).up = false;
    assert_eq!(looks.look_with(at(30), unlinked), (None, Some(0), None));
    looks.world.cut(primary);
    looks.world.cut(replica);
    assert_eq!(looks.look(60), (Some(30), Some(0), Some(60)));
    assert_eq!(looks.look(90), (Some(30), Some(0), Some(60)));
    assert_eq!(looks.look(600), (Some(30), Some(0), Some(60)));
    looks.world.restart(primary);
    looks.world.restart(replica);
    let linked = |members: &mut [Member]| link(&mut members[replica]).up = true;
    assert_eq!(looks.look_with(at(630), linked), (None, None, None));
    looks.world.cut(primary);
    assert_eq!(looks.look(631).2, Some(631));
}

/// What is remembered is compared with what the API server has kept of it.
#[test]
fn times_are_whole_seconds() {
    let mut looks = Looks::new();
    let half = |second: i64| Timestamp::new(second, 500_000_000).unwrap();
    looks.look_with(half(10), |_| ());
    looks.world.cut(looks.replica);
    assert_eq!(looks.look_with(half(11), |_| ()).1, Some(10));
}

/// A link to a machine that is cut off stays up.
#[test]
fn a_link_without_pings_proves_nothing() {
    let mut looks = Looks::new();
    let replica = looks.replica;
    looks.look_with(at(100), |members| {
        link(&mut members[replica]).heard_seconds = Some(40);
    });
    looks.world.cut(replica);
    assert_eq!(looks.look(110).1, Some(60));
}

/// It took over while the primary was away, and has been lost; the primary has just been started and does not know.
#[test]
fn a_primary_that_was_replaced_is_not_current() {
    let mut looks = Looks::new();
    let (primary, replica) = (looks.primary, looks.replica);
    looks.look(0);
    looks.world.cut(primary);
    looks.look(10);
    for _ in 0..20 {
        looks.world.tick();
    }
    assert!(looks.world.owns(replica), "no election");
    assert_eq!(looks.look(20), (Some(0), None, Some(10)));
    looks.world.cut(replica);
    looks.world.restart(primary);
    let own = looks.world.members(at(30));
    let own = own[primary].report().unwrap().own();
    assert!(own.is_primary() && !own.slots.is_empty(), "{own:?}");
    assert_eq!(looks.look(30), (Some(0), Some(20), None));
    assert_eq!(looks.look(40), (Some(0), Some(20), None));
}

/// Nothing is written then, and the claims of those that are left may be old.
#[test]
fn without_a_majority_none_is_current() {
    let mut looks = Looks::new();
    looks.look(0);
    let others: Vec<usize> = (2..6).collect();
    for other in others {
        looks.world.cut(other);
    }
    assert_eq!(looks.look(10), (Some(0), Some(0), None));
}

/// What another controller recorded when the node began to lack something; the newer of both counts.
#[test]
fn a_new_controller_reads_the_record() {
    let mut looks = Looks::new();
    let members = looks.world.members(at(500));
    let id = members[looks.replica].report().unwrap().id();
    looks.world.cut(looks.replica);
    let record = |second: i64| {
        let seen = LastSeen {
            current_until: Some(at(second)),
            ..LastSeen::default()
        };
        LastSeenNodes::from([(id, seen)])
    };
    looks.recorded = record(100);
    assert_eq!(looks.look(500).1, Some(100));
    looks.world.restart(looks.replica);
    let replica = looks.replica;
    let linked = |members: &mut [Member]| link(&mut members[replica]).up = true;
    looks.look_with(at(510), linked);
    looks.world.cut(looks.replica);
    assert_eq!(looks.look(520).1, Some(510));
    looks.recorded = record(515);
    assert_eq!(looks.look(530).1, Some(515));
}

/// When the other nodes last heard of the primary is known also where no controller ran.
#[test]
fn what_the_others_heard_counts() {
    for (up, heard, since) in [
        // Up all the time.
        (5000, 700, 700),
        // Started after the primary had ended: it says what it read from its file.
        (200, 801, 1000),
        (200, 809, 1000),
        (200, 811, 811),
    ] {
        let mut looks = Looks::new();
        let primary = looks.primary;
        looks.world.cut(primary);
        let members = looks.world.members(at(1000));
        let id = members.iter().find_map(|one| {
            let others = one.report()?.view.others();
            let mut lost = others.filter(|node| !node.linked);
            Some(lost.next()?.id)
        });
        let id = id.unwrap();
        let heard_at = |second: i64| {
            move |members: &mut [Member]| {
                for member in members {
                    if let Answer::Report(report) = &mut member.answer {
                        report.server.uptime_seconds = up;
                        report.view = report.view.clone().with_heard(id, at(second));
                    }
                }
            }
        };
        let found = looks.look_with(at(1000), heard_at(heard)).2;
        assert_eq!(found, Some(since), "up {up} s, heard {heard}");
        // Heard of while none was reached by this controller.
        let found = looks.look_with(at(1050), heard_at(1040)).2;
        assert_eq!(found, Some(1040));
    }
}

/// No look for long: the primary has been silent all the time unless its pod has started a server since.
#[test]
fn after_a_pause_the_primary_may_have_been_back() {
    for (started, since) in [(None, 10), (Some(5), 10), (Some(300), 900)] {
        for is_new in [true, false] {
            let mut looks = Looks::new();
            let (primary, id) = (looks.primary, looks.id_of(looks.primary));
            looks.look(0);
            looks.world.cut(primary);
            assert_eq!(looks.look(10).2, Some(10));
            if is_new {
                // Another controller, which reads what this one has recorded.
                let record = LastSeen {
                    unresponsive_since: Some(at(10)),
                    ..LastSeen::default()
                };
                looks.recorded = LastSeenNodes::from([(id, record)]);
                looks.tracker = CopyTracker::default();
            }
            let found = looks.look_with(at(900), |members| {
                members[primary].expected.last_started = started.map(at);
            });
            assert_eq!(found.2, Some(since), "{started:?} {is_new}");
        }
    }
}

/// It has answered since.
#[test]
fn a_record_of_an_earlier_outage_does_not_count() {
    let mut looks = Looks::new();
    let (primary, id) = (looks.primary, looks.id_of(looks.primary));
    let record = LastSeen {
        unresponsive_since: Some(at(10)),
        ..LastSeen::default()
    };
    looks.recorded = LastSeenNodes::from([(id, record)]);
    assert_eq!(looks.look(100).2, None);
    looks.world.cut(primary);
    assert_eq!(looks.look(105).2, Some(105));
}

/// The network between them and the controller is the likely cause, unless Kubernetes says that a pod is down.
#[test]
fn nodes_are_not_silent_because_none_answers() {
    let mut looks = Looks::new();
    let primary = looks.primary;
    looks.look(0);
    for index in 0..6 {
        looks.world.cut(index);
    }
    let down = |since: Option<i64>| {
        move |members: &mut [Member]| {
            for member in members {
                member.expected.down_since = since.map(at);
            }
        }
    };
    assert_eq!(looks.look_with(at(10), down(None)).2, None);
    assert_eq!(looks.look_with(at(20), down(Some(15))).2, Some(20));
    for index in (0..6).filter(|index| *index != primary) {
        looks.world.restart(index);
    }
    assert_eq!(looks.look_with(at(30), down(None)).2, Some(20));
}

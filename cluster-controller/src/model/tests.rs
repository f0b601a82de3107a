//! Whatever happens: no key is lost, no command reaches another cluster, and the goal is reached.

use super::{
    Model,
    faults::{Event, Events, events, fault, roll, scale},
    sabotage::Sabotage,
};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, RngSeed, TestRng, TestRunner},
};
use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{LazyLock, Mutex, PoisonError},
};

/// Cases of each property, the same ones in every run.
const CASES: u32 = 500;

/// Shards, replicas, and whether there are volumes.
type Size = (i32, i32, bool);

static FORMED: LazyLock<Mutex<BTreeMap<Size, Model>>> = LazyLock::new(Mutex::default);

/// A cluster that serves. Formed once.
fn formed((shards, replicas, persistent): Size) -> Model {
    let mut formed = FORMED.lock().unwrap_or_else(PoisonError::into_inner);
    formed
        .entry((shards, replicas, persistent))
        .or_insert_with(|| Model::formed(shards, replicas, persistent))
        .clone()
}

/// Lets everything happen, and then the controller come to its goal. The error has the history.
fn run(model: &mut Model, events: &Events) -> Result<usize, String> {
    let lived = catch_unwind(AssertUnwindSafe(|| {
        for (event, seconds) in events {
            model.happen(event);
            for _ in 0..*seconds {
                model.advance();
            }
        }
        model.amid.clear();
        model.correct();
        while model.kubernetes.is_disturbed() {
            model.advance();
        }
        model.settle()
    }));
    let result = lived.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Err(text.unwrap_or_default())
    });
    result.map_err(|why| model.report(&why))
}

/// The usual cases, or as many random ones as `PROPTEST_CASES` says.
fn cases() -> ProptestConfig {
    let usual = ProptestConfig::default();
    let is_set = std::env::var_os("PROPTEST_CASES").is_some();
    ProptestConfig {
        cases: if is_set { usual.cases } else { CASES },
        rng_seed: if is_set {
            usual.rng_seed
        } else {
            RngSeed::Fixed(1)
        },
        max_shrink_iters: 200,
        failure_persistence: None,
        ..usual
    }
}

fn persistence() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.7)
}

#[test]
fn a_cluster_is_formed_from_nothing() {
    for size in [(3, 0, true), (3, 1, true), (4, 1, false)] {
        let model = formed(size);
        assert!(model.formed, "{size:?}");
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn faults_lose_nothing_and_are_repaired(
        replicas in 0..3_i32,
        persistent in persistence(),
        events in events(fault(), 6),
    ) {
        let mut model = formed((3, replicas, persistent));
        let result = run(&mut model, &events);
        prop_assert!(result.is_ok(), "{}", result.unwrap_err());
    }

    #[test]
    fn scaling_amid_faults_reaches_the_size(
        shards in 3..5_i32,
        replicas in 0..2_i32,
        persistent in persistence(),
        first in scale(),
        after in 0..25_usize,
        events in events(scale(), 5),
    ) {
        let mut model = formed((shards, replicas, persistent));
        let mut all = vec![(first, after)];
        all.extend(events);
        let result = run(&mut model, &all);
        prop_assert!(result.is_ok(), "{}", result.unwrap_err());
    }

    #[test]
    fn rolling_amid_faults_replaces_every_pod(
        replicas in 0..3_i32,
        persistent in persistence(),
        after in 0..25_usize,
        events in events(roll(), 5),
    ) {
        let mut model = formed((3, replicas, persistent));
        let mut all = vec![(Event::Roll, after)];
        all.extend(events);
        let result = run(&mut model, &all);
        prop_assert!(result.is_ok(), "{}", result.unwrap_err());
    }

    #[test]
    fn scaling_and_rolling_at_once_reach_the_goal(
        persistent in persistence(),
        first in scale(),
        after in 0..15_usize,
        events in events(prop_oneof![scale().boxed(), roll().boxed()], 5),
    ) {
        let mut model = formed((3, 1, persistent));
        let mut all = vec![(first, after), (Event::Roll, 3)];
        all.extend(events);
        let result = run(&mut model, &all);
        prop_assert!(result.is_ok(), "{}", result.unwrap_err());
    }
}

/// A history that has to end at the goal.
fn ends_well(size: Size, all: &Events) {
    let result = run(&mut formed(size), all);
    assert!(result.is_ok(), "{}", result.unwrap_err());
}

fn scale_to(shards: i32, replicas: i32) -> Event {
    Event::Scale { shards, replicas }
}

/// A pod whose process is back at once.
fn kill(pod: usize) -> Event {
    let (down, loading) = (0, 0);
    Event::Kill { pod, down, loading }
}

fn cut(machine: usize, seconds: u8) -> Event {
    Event::Cut { machine, seconds }
}

/// Whether the properties notice what a controller does wrong, in so many cases; the failure.
fn noticed(
    sabotage: Sabotage,
    size: Size,
    most: usize,
    strategy: impl Strategy<Value = Events>,
) -> String {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut last = String::new();
    for _ in 0..most {
        let events = strategy.new_tree(&mut runner).unwrap().current();
        let mut model = formed(size);
        model.sabotage = sabotage;
        if let Err(why) = run(&mut model, &events) {
            return why;
        }
        last = model.report("nothing");
    }
    panic!("{sabotage:?} was not noticed in {most} cases, the last: {last}");
}

#[test]
fn a_pod_with_slots_that_leaves_is_noticed() {
    let down = Just(vec![(scale_to(3, 1), 1)]);
    let why = noticed(Sabotage::ShrinksAtOnce, (4, 1, true), 1, down);
    assert!(why.contains("with slots leaves"), "{why}");
}

#[test]
fn slots_that_move_to_a_foreign_node_are_noticed() {
    let rob = Event::Rob {
        pod: 0,
        seconds: 3,
        company: 3,
    };
    let grow = scale_to(4, 1);
    let events = Just(vec![(rob, 5), (grow, 30)]);
    let why = noticed(Sabotage::MovesToForeignNodes, (3, 1, true), 1, events);
    assert!(why.contains("foreign"), "{why}");
}

#[test]
fn a_primary_replaced_without_a_hand_over_is_noticed() {
    for persistent in [true, false] {
        let events = Just(vec![(Event::Roll, 1)]);
        let why = noticed(Sabotage::ReplacesPrimaries, (3, 1, persistent), 1, events);
        assert!(why.contains("a replica could take over"), "{why}");
    }
}

/// Two Kubernetes nodes with the majority of the primaries are cut off, and clients on their side go on writing.
#[test]
fn a_takeover_without_a_fence_is_noticed() {
    let seen = (Event::Write, 5);
    let all = vec![seen, (cut(0, 89), 0), (cut(1, 89), 5), (Event::Write, 60)];
    let why = noticed(
        Sabotage::TakesOverUnfenced,
        (3, 1, true),
        1,
        Just(all.clone()),
    );
    assert!(why.contains("copied less than it had"), "{why}");
    ends_well((3, 1, true), &all);
}

/// A new shard in memory loses its first primary, before or while it gets slots. The replica follows a node that will never be back, and
/// may have the only copy of keys.
#[test]
fn a_new_shard_survives_its_first_primary() {
    let grow = scale_to(5, 1);
    let kill = kill(6);
    for loss in [kill, Event::LoseMachine { machine: 0 }] {
        for after in 3..9 {
            let roll = (Event::Roll, after);
            let all = vec![(grow.clone(), 0), roll, (loss.clone(), 1)];
            ends_well((3, 1, false), &all);
        }
    }
}

/// Its first primary gave its first slots away again, and its replica follows them: to the engine that looks like a takeover
/// (`clusterUpdateSlotsConfigWith` in `cluster.c`).
#[test]
fn a_new_shard_gets_its_replica_back() {
    let grow = scale_to(5, 1);
    let half = Event::LeaveHalfMoved {
        from: 3,
        to: 0,
        count: 1,
        stage: 2,
    };
    let kill = kill(0);
    let all = vec![(grow, 2), (half, 7), (kill, 0)];
    ends_well((3, 0, false), &all);
}

/// The replicas go before the new shard has slots, and its primary is one of them: a hand-over of no slots does not take place.
#[test]
fn a_new_shard_keeps_a_node_that_can_serve() {
    let scale = |replicas| scale_to(4, replicas);
    let kill = Event::Kill {
        pod: 3,
        down: 0,
        loading: 4,
    };
    for persistent in [false, true] {
        for seconds in 0..4 {
            let all = vec![(scale(2), 2), (kill.clone(), seconds), (scale(0), 0)];
            ends_well((3, 0, persistent), &all);
        }
    }
}

/// The primary of a new shard stays what it is while it has keys and no slots yet: moves that looked to another goal would stop.
#[test]
fn slots_move_to_new_shards_in_one_go() {
    let mut model = formed((3, 1, true));
    let grow = scale_to(5, 1);
    let result = run(&mut model, &vec![(grow, 0)]);
    assert!(result.is_ok(), "{}", result.unwrap_err());
    let begun = model.history.iter();
    let begun = begun.filter(|text| text.contains("moves of slots begin"));
    assert_eq!(begun.count(), 1, "{:#?}", model.history);
}

/// The primary of the shard that leaves is gone with keys that it had been given, and its replica, which has them, does not answer.
#[test]
fn a_silent_replica_with_given_keys_stays() {
    let scale = |shards| scale_to(shards, 1);
    let kill = kill(6);
    let cut = cut(1, 4);
    for after in 0..6 {
        let all = vec![
            (scale(4), after),
            (Event::Roll, 3),
            (kill.clone(), 0),
            (cut.clone(), 0),
            (scale(3), 0),
        ];
        ends_well((3, 1, false), &all);
    }
}

/// Their pods are away while the others forget a node, and their volumes remember it.
#[test]
fn a_forgotten_node_that_comes_up_again_is_forgotten() {
    let scale = |replicas| scale_to(3, replicas);
    let all = vec![
        (scale(2), 4),
        (scale(1), 1),
        (Event::LoseVolume { pod: 0 }, 0),
        (Event::LoseMachine { machine: 0 }, 5),
        (scale(2), 0),
    ];
    ends_well((3, 0, true), &all);
}

/// Replicas that the spec takes back got an image that does not exist before: with a volume they have to say what is on it.
#[test]
fn a_pod_that_leaves_gets_an_image_that_starts() {
    for persistent in [true, false] {
        for seconds in 0..6 {
            let all = vec![
                (scale_to(3, 2), 0),
                (Event::Roll, 3),
                (Event::RollBroken, seconds),
                (scale_to(3, 0), 0),
            ];
            ends_well((3, 1, persistent), &all);
        }
    }
}

/// A primary is lost with its volume right after it got slots, before its replicas have heard of them. The servers elect one of those.
#[test]
fn slots_that_a_replica_never_heard_of_come_back() {
    let lost = |pod, effects| Event::Amid {
        effects,
        fault: Box::new(Event::LoseVolume { pod }),
    };
    let half = Event::LeaveHalfMoved {
        from: 1,
        to: 2,
        count: 1,
        stage: 2,
    };
    let mut inherited = 0;
    for effects in 0..12 {
        for (size, events) in [
            ((3, 2, true), vec![(lost(6, effects), 0), (half.clone(), 2)]),
            (
                (4, 0, true),
                vec![(scale_to(3, 2), 8), (lost(3, effects), 1)],
            ),
        ] {
            let mut model = formed(size);
            model.world.loses_broadcasts = true;
            let result = run(&mut model, &events);
            assert!(result.is_ok(), "{}", result.unwrap_err());
            let mut history = model.history.iter();
            let is_inherited = history.any(|step| step.contains("had got the slots"));
            inherited += usize::from(is_inherited);
        }
    }
    assert!(inherited > 0, "no replica had missed the slots");
}

/// Slots were on their way to a shard that the spec takes back, while a node does not answer: moves to it stop all the same.
#[test]
fn moves_to_a_shard_that_leaves_stop_at_once() {
    let grow = scale_to(5, 1);
    let kill = Event::Kill {
        pod: 4,
        down: 5,
        loading: 0,
    };
    let shrink = scale_to(3, 0);
    let all = vec![(grow, 9), (kill, 0), (shrink, 0)];
    ends_well((3, 0, false), &all);
}

/// A replica takes slots over on the other side of a network that is cut, and is gone with all that it had when the network is back. The
/// primary on this side has their keys.
#[test]
fn slots_taken_over_by_a_gone_node_come_back() {
    let grow = scale_to(3, 2);
    let rob = Event::Rob {
        pod: 5,
        seconds: 5,
        company: 0,
    };
    let all = vec![
        (grow, 0),
        (Event::Roll, 3),
        (Event::LoseMachine { machine: 2 }, 3),
        (rob, 0),
    ];
    ends_well((3, 1, false), &all);
}

/// The spec takes a shard back while slots move to it, and its node cannot be asked what it has got of them.
#[test]
fn a_leaving_pod_keeps_keys_that_it_was_given() {
    let scale = |shards| scale_to(shards, 1);
    let cut = cut(1, 4);
    for persistent in [false, true] {
        for after in 4..9 {
            let all = vec![(scale(5), after), (cut.clone(), 0), (scale(3), 1)];
            ends_well((3, 1, persistent), &all);
        }
    }
}

#[test]
fn slots_created_again_beside_their_keys_are_noticed() {
    let why = noticed(
        Sabotage::CreatesSlotsAgain,
        (3, 1, false),
        100,
        events(fault(), 6),
    );
    assert!(why.contains("although a node has their keys"), "{why}");
}

#[test]
fn a_node_with_slots_that_is_forgotten_is_noticed() {
    let why = noticed(
        Sabotage::ForgetsTheLiving,
        (3, 1, true),
        100,
        events(fault(), 6),
    );
    assert!(why.contains("forgotten"), "{why}");
}

#[test]
fn a_step_at_the_goal_is_noticed() {
    let nothing = Just(vec![(Event::Write, 1)]);
    let why = noticed(Sabotage::IsNeverDone, (3, 1, true), 1, nothing);
    assert!(why.contains("goal"), "{why}");
}

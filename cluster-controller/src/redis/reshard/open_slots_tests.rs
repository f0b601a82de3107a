//! Decisions about open slots against a model of the servers: all end closed, and no key is lost.

use super::{
    open_slots::{OpenSlotCause, OpenSlotDecision, SlotTable, SlotTables, open_slots},
    plan::plan,
};
use common::cluster::{
    slots::{Slot, SlotRange, SlotSet},
    topology::{NodeId, OpenSlot, OpenSlotKind},
};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn id(number: u8) -> NodeId {
    NodeId::from_bytes([number.wrapping_mul(151); 20])
}

fn slot() -> Slot {
    Slot::new(7000).unwrap()
}

/// One primary and the slot.
#[derive(Clone, Debug, Default)]
struct ModelNode {
    serves: bool,
    mark: Option<(OpenSlotKind, NodeId)>,
    /// Key and version.
    keys: BTreeMap<u8, u8>,
}

/// Primaries and what they hold of one slot.
#[derive(Clone, Debug)]
struct Model(BTreeMap<NodeId, ModelNode>);

impl Model {
    fn tables(&self) -> SlotTables {
        let ids = || self.0.keys().copied();
        self.0
            .iter()
            .map(|(id, node)| {
                let open = node.mark.map(|(kind, peer)| OpenSlot {
                    slot: slot(),
                    kind,
                    peer,
                });
                let table = SlotTable {
                    unlisted: SlotSet::new(),
                    slots: if node.serves {
                        SlotRange::from(slot()).into()
                    } else {
                        SlotSet::new()
                    },
                    open: open.into_iter().collect(),
                    keys: [(slot(), node.keys.len() as u64)].into(),
                    primaries: ids().filter(|other| other != id).collect(),
                    ..SlotTable::default()
                };
                (*id, table)
            })
            .collect()
    }

    fn node(&mut self, id: NodeId) -> &mut ModelNode {
        self.0.get_mut(&id).unwrap()
    }

    fn apply(&mut self, decision: &OpenSlotDecision) {
        match *decision {
            OpenSlotDecision::Finish { source, target, .. } => {
                assert!(self.node(source).serves);
                let keys = std::mem::take(&mut self.node(source).keys);
                // The serving side's value replaces what is left over at the other.
                self.node(target).keys.extend(keys);
                for (id, serves) in [(source, false), (target, true)] {
                    self.node(id).serves = serves;
                    self.node(id).mark = None;
                }
            }
            OpenSlotDecision::Close { node, .. } => {
                let node = self.node(node);
                assert!(
                    node.serves || node.keys.is_empty(),
                    "keys are hidden behind a closed slot"
                );
                node.mark = None;
            }
            OpenSlotDecision::ReturnKeys { from, owner, .. } => {
                let keys = std::mem::take(&mut self.node(from).keys);
                let owner = self.node(owner);
                assert!(owner.serves);
                assert!(
                    !matches!(owner.mark, Some((OpenSlotKind::Migrating, _))),
                    "a primary that gives the slot away takes no key"
                );
                for (key, version) in keys {
                    owner.keys.entry(key).or_insert(version);
                }
                self.node(from).mark = None;
            }
            OpenSlotDecision::Undecided { slot, cause } => panic!("slot {slot}: {cause}"),
        }
    }
}

/// A key, and for each node the version it holds.
type Copies = Vec<Option<u8>>;

fn any_model() -> impl Strategy<Value = Model> {
    let mark = || {
        prop_oneof![
            2 => Just(None),
            3 => (any::<bool>(), 0..6_u8).prop_map(Some),
        ]
    };
    let copies = prop::collection::vec(prop::option::of(0..4_u8), 4);
    let nodes = prop::collection::vec(mark(), 4);
    (0..4_u8, nodes, prop::collection::vec(copies, 0..6)).prop_map(
        |(owner, marks, keys): (u8, _, Vec<Copies>)| {
            let node = |(number, mark): (u8, Option<(bool, u8)>)| {
                // The ids 4 and 5 are those of nodes that no node knows any more.
                let mark = mark.filter(|(_, peer)| *peer != number);
                let kind = |migrating| {
                    if migrating && number == owner {
                        OpenSlotKind::Migrating
                    } else {
                        OpenSlotKind::Importing
                    }
                };
                let held = keys.iter().zip(0..).filter_map(|(copies, key)| {
                    Some((key, copies.get(usize::from(number)).copied()??))
                });
                let node = ModelNode {
                    serves: number == owner,
                    mark: mark.map(|(migrating, peer)| (kind(migrating), id(peer))),
                    keys: held.collect(),
                };
                (id(number), node)
            };
            Model((0..).zip(marks).map(node).collect())
        },
    )
}

proptest! {
    #[test]
    fn open_slots_end_closed_without_a_lost_key(before in any_model()) {
        let mut model = before.clone();
        let mut rounds = 0;
        loop {
            let decisions = open_slots(&model.tables());
            if decisions.is_empty() {
                break;
            }
            rounds += 1;
            prop_assert!(rounds <= 3, "{model:?}");
            for decision in &decisions {
                model.apply(decision);
            }
        }
        prop_assert!(model.0.values().all(|node| node.mark.is_none()));
        let owner = before.0.values().find(|node| node.serves).unwrap();
        let owners: Vec<&ModelNode> = model.0.values().filter(|node| node.serves).collect();
        prop_assert_eq!(owners.len(), 1);
        let was_open = before.0.values().any(|node| node.mark.is_some());
        for node in before.0.values() {
            for key in node.keys.keys().filter(|_| was_open) {
                let found = owners[0].keys.get(key);
                prop_assert!(found.is_some(), "key {} is lost", key);
                if let Some(served) = owner.keys.get(key) {
                    prop_assert_eq!(found, Some(served), "an older value came back");
                }
            }
        }
    }
}

#[allow(clippy::type_complexity)] // of one call each
fn model(nodes: [(bool, Option<(OpenSlotKind, u8)>, &[u8]); 3]) -> Model {
    let node = |(serves, mark, keys): (bool, Option<(OpenSlotKind, u8)>, &[u8])| ModelNode {
        serves,
        mark: mark.map(|(kind, peer)| (kind, id(peer))),
        keys: keys.iter().map(|key| (*key, 0)).collect(),
    };
    Model((0..).map(id).zip(nodes.map(node)).collect())
}

const TO: OpenSlotKind = OpenSlotKind::Migrating;
const FROM: OpenSlotKind = OpenSlotKind::Importing;

#[test]
fn both_ends_that_agree_finish_the_move() {
    let model = model([
        (true, Some((TO, 1)), &[1]),
        (false, Some((FROM, 0)), &[]),
        (false, Some((FROM, 0)), &[]),
    ]);
    let expected = [
        OpenSlotDecision::Close {
            slot: slot(),
            node: id(2),
        },
        OpenSlotDecision::Finish {
            slot: slot(),
            source: id(0),
            target: id(1),
        },
    ];
    assert_eq!(open_slots(&model.tables()), expected);
}

#[test]
fn a_lone_mark_without_keys_is_removed() {
    let empty = model([
        (true, None, &[1]),
        (false, Some((FROM, 0)), &[]),
        (false, None, &[]),
    ]);
    let close = |node| OpenSlotDecision::Close { slot: slot(), node };
    assert_eq!(open_slots(&empty.tables()), [close(id(1))]);
    let lone = model([
        (true, Some((TO, 1)), &[1]),
        (false, None, &[]),
        (false, None, &[]),
    ]);
    assert_eq!(open_slots(&lone.tables()), [close(id(0))]);
}

#[test]
fn keys_behind_a_mark_come_home() {
    let model = model([
        (true, None, &[1]),
        (false, Some((FROM, 0)), &[2]),
        (false, None, &[]),
    ]);
    let expected = OpenSlotDecision::ReturnKeys {
        slot: slot(),
        from: id(1),
        owner: id(0),
    };
    assert_eq!(open_slots(&model.tables()), [expected]);
}

#[test]
fn a_target_that_does_not_answer_is_waited_for() {
    let model = model([
        (true, Some((TO, 1)), &[1]),
        (false, Some((FROM, 0)), &[2]),
        (false, None, &[]),
    ]);
    let mut tables = model.tables();
    tables.remove(&id(1));
    let undecided = |cause| OpenSlotDecision::Undecided {
        slot: slot(),
        cause,
    };
    assert_eq!(
        open_slots(&tables),
        [undecided(OpenSlotCause::TargetUnresponsive(id(1)))]
    );
    // The other nodes have forgotten it: what it had is gone with it.
    for table in tables.values_mut() {
        table.primaries.remove(&id(1));
    }
    let close = OpenSlotDecision::Close {
        slot: slot(),
        node: id(0),
    };
    assert_eq!(open_slots(&tables), [close]);
    // Its replica has taken over: it has the keys, but no mark.
    let tables = {
        let mut tables = tables;
        tables.get_mut(&id(2)).unwrap().keys.insert(slot(), 1);
        tables
    };
    let finish = OpenSlotDecision::Finish {
        slot: slot(),
        source: id(0),
        target: id(2),
    };
    assert_eq!(open_slots(&tables), [finish]);
}

#[test]
fn slots_without_one_primary_are_named() {
    let nodes = |one, other| {
        model([
            (one, Some((TO, 1)), &[1]),
            (other, None, &[]),
            (false, None, &[]),
        ])
    };
    let cause = |model: &Model| match open_slots(&model.tables()).as_slice() {
        [OpenSlotDecision::Undecided { cause, .. }] => *cause,
        other => panic!("{other:?}"),
    };
    assert_eq!(cause(&nodes(false, false)), OpenSlotCause::NoOwner);
    let two = cause(&nodes(true, true));
    assert!(matches!(two, OpenSlotCause::TwoOwners(..)), "{two}");
    let left = plan(&nodes(false, false).tables(), |_| true);
    let why = left.undecided().unwrap();
    assert!(why.ends_with("no primary that answers serves it"), "{why}");
}

#[test]
fn a_plan_counts_slots_that_are_finished_where_they_go() {
    let range = |start, end| {
        SlotSet::from(SlotRange::new(Slot::new(start).unwrap(), Slot::new(end).unwrap()).unwrap())
    };
    let table = |slots| SlotTable {
        slots,
        ..SlotTable::default()
    };
    let mut tables: SlotTables = [
        (id(0), table(range(0, 8192))),
        (id(1), table(range(8193, 16383))),
    ]
    .into();
    assert_eq!(plan(&tables, |_| true).moves[0].slots.len(), 1);
    let open = |kind, peer| OpenSlot {
        slot: slot(),
        kind,
        peer: id(peer),
    };
    tables.get_mut(&id(0)).unwrap().open = vec![open(TO, 1)];
    tables.get_mut(&id(1)).unwrap().open = vec![open(FROM, 0)];
    let found = plan(&tables, |_| true);
    assert_eq!(found.moves, [], "8192 slots each after the move");
    assert_eq!(found.open_slots.len(), 1);
    // An undecided slot is not moved.
    tables.get_mut(&id(0)).unwrap().open = vec![open(TO, 9)];
    tables.get_mut(&id(0)).unwrap().primaries = [id(9)].into();
    tables.get_mut(&id(1)).unwrap().open.clear();
    let found = plan(&tables, |node| node == id(1));
    let moved: usize = found.moves.iter().map(|one| one.slots.len()).sum();
    assert_eq!(moved, 8192);
    assert!(!found.moves[0].slots.contains(slot()));
}

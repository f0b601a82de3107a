//! Moves of slots as `redis::reshard::run` carries them out, command by command, so that anything can happen in between.

use super::Model;
use crate::{
    decision::Decision,
    redis::{
        balance::ReshardGoal,
        member::Member,
        plan::simulation::{KEYS, Refusal, World},
        reshard::{self, OpenSlotDecision, ReshardPlan, SlotTables},
    },
};
use common::cluster::{slots::SlotSet, topology::NodeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Commands in a second.
const SPEED: usize = 5;
/// Slots of a move that are moved command by command; the rest goes at once.
const SLOWLY: usize = 12;
/// Seconds after a failure.
const RETRY: i64 = 5;

/// A move under way.
#[derive(Clone, Debug)]
pub struct Mover {
    nodes: Vec<NodeId>,
    goal: ReshardGoal,
    commands: VecDeque<SlotCommand>,
}

#[derive(Clone, Debug)]
enum MoveCommand {
    /// The target has to know who serves the slots (`checks::listed`).
    Listed {
        node: NodeId,
        owner: NodeId,
    },
    Import {
        node: NodeId,
        from: NodeId,
    },
    Migrate {
        node: NodeId,
        to: NodeId,
    },
    Keys {
        pair: (NodeId, NodeId),
        key: usize,
        target_is_right: bool,
    },
    Close(NodeId),
    Assign {
        node: NodeId,
        target: NodeId,
        /// Whether the move goes on where it is refused.
        is_announcement: bool,
    },
    /// All commands of a move without anything in between.
    AtOnce(Vec<MoveCommand>),
}

/// A command, and the slots that it is about.
type SlotCommand = (MoveCommand, SlotSet);

impl Model {
    /// Starts to move slots under the conditions of the product. False: the controller has ended.
    pub(super) fn start_moves(&mut self, seen: &Decision) -> bool {
        let goal = seen.balance.goal();
        if let Some(mover) = &self.controller.mover
            && mover.goal.is_outdated_by(&goal)
        {
            self.note("the goal of the moves has changed: they are cancelled");
            self.controller.mover = None;
        }
        let is_early = self.kubernetes.now < self.controller.moves_after;
        if self.controller.mover.is_some() || is_early || !seen.is_ready_to_move() {
            return true;
        }
        if !self.may_act() {
            return false;
        }
        self.note(format!(
            "moves of slots begin: {} misplaced, {} open",
            seen.balance.misplaced, seen.balance.open
        ));
        let primary = |member: &Member| {
            let report = member.report()?;
            report.own().is_primary().then(|| report.id())
        };
        self.controller.mover = Some(Mover {
            nodes: seen.observed.members.iter().filter_map(primary).collect(),
            goal,
            commands: VecDeque::new(),
        });
        true
    }

    /// The next commands.
    pub(super) fn move_slots(&mut self) {
        for _ in 0..SPEED {
            let Some(mut mover) = self.controller.mover.take() else {
                return;
            };
            if !self.may_act() {
                return;
            }
            match self.step(&mut mover) {
                Ok(true) => self.controller.mover = Some(mover),
                Ok(false) => self.note("moves of slots end"),
                Err(why) => {
                    self.note(format!("moves of slots fail: {why}"));
                    self.controller.moves_after = self.kubernetes.now + RETRY;
                }
            }
        }
    }

    /// Whether there is more to do.
    fn step(&mut self, mover: &mut Mover) -> Result<bool, Refusal> {
        if let Some((command, slots)) = mover.commands.pop_front() {
            let result = command.execute(&mut self.world, &slots);
            self.note(format!(
                "{} {}: {result:?}",
                command.text(),
                slots.summary()
            ));
            return result.map(|()| true);
        }
        let tables = self.tables(&mover.nodes)?;
        let plan = reshard::plan(&tables, |id| mover.goal.staying.contains(&id));
        if plan.is_empty() {
            return Ok(false);
        }
        mover.commands = commands(&plan, &mover.nodes);
        self.redirect(&mut mover.commands);
        Ok(true)
    }

    fn tables(&self, nodes: &[NodeId]) -> Result<SlotTables, Refusal> {
        let mut tables = SlotTables::new();
        for id in nodes {
            if let Some(table) = self.world.slot_table(*id)? {
                tables.insert(*id, table);
            }
        }
        let open = tables.values().flat_map(|table| &table.open);
        let open: BTreeSet<_> = open.map(|open| open.slot).collect();
        for (id, table) in &mut tables {
            let hidden = self.world.unserved_by(*id)?;
            let counted = open.iter().copied().chain(hidden.iter());
            for slot in counted.collect::<BTreeSet<_>>() {
                table.keys.insert(slot, self.world.keys_in(*id, slot)?);
            }
        }
        Ok(tables)
    }

    /// Where the sabotage says so, slots go to another cluster.
    fn redirect(&self, commands: &mut VecDeque<SlotCommand>) {
        let Some(foreign) = self.sabotaged_target() else {
            return;
        };
        for (command, _) in commands {
            command.redirect(foreign);
        }
    }
}

impl MoveCommand {
    fn redirect(&mut self, foreign: NodeId) {
        match self {
            Self::Import { node, .. } | Self::Listed { node, .. } => *node = foreign,
            Self::Migrate { to, .. } => *to = foreign,
            Self::Keys { pair, .. } => pair.1 = foreign,
            Self::Close(_) => {}
            Self::Assign { target, .. } => *target = foreign,
            Self::AtOnce(commands) => commands.iter_mut().for_each(|one| one.redirect(foreign)),
        }
    }

    /// For the history.
    fn text(&self) -> String {
        match self {
            Self::Listed { node, owner } => {
                format!("does {} list {} with", node.short(), owner.short())
            }
            Self::Import { node, from } => {
                format!("{} imports from {}", node.short(), from.short())
            }
            Self::Migrate { node, to } => format!("{} migrates to {}", node.short(), to.short()),
            Self::Keys { pair, key, .. } => format!(
                "key {key} goes from {} to {} in",
                pair.0.short(),
                pair.1.short()
            ),
            Self::Close(node) => format!("{} closes", node.short()),
            Self::Assign { node, target, .. } => {
                format!("{} learns that {} serves", node.short(), target.short())
            }
            Self::AtOnce(commands) => {
                let texts: Vec<String> = commands.iter().take(3).map(Self::text).collect();
                format!("at once: {} …", texts.join(", "))
            }
        }
    }

    fn execute(&self, world: &mut World, slots: &SlotSet) -> Result<(), Refusal> {
        match self {
            Self::Listed { node, owner } => world.lists(*node, *owner, slots),
            Self::Import { node, from } => world.import(*node, *from, slots),
            Self::Migrate { node, to } => world.migrate_slots(*node, *to, slots),
            Self::Keys {
                pair,
                key,
                target_is_right,
            } => world.move_keys(*pair, (*key, slots), *target_is_right, false),
            Self::Close(node) => world.close(*node, slots),
            Self::Assign {
                node,
                target,
                is_announcement,
            } => {
                let result = world.assign_moved(*node, *target, slots);
                if *is_announcement { Ok(()) } else { result }
            }
            Self::AtOnce(commands) => commands
                .iter()
                .try_for_each(|one| one.execute(world, slots)),
        }
    }
}

/// Closes first, then brings keys home, finishes what was begun, and moves the rest: the order of `reshard::run`.
fn commands(plan: &ReshardPlan, nodes: &[NodeId]) -> VecDeque<SlotCommand> {
    let mut closed: BTreeMap<NodeId, SlotSet> = BTreeMap::new();
    let mut returned: BTreeMap<(NodeId, NodeId), SlotSet> = BTreeMap::new();
    let mut finished: BTreeMap<(NodeId, NodeId), SlotSet> = BTreeMap::new();
    for decision in &plan.open_slots {
        match *decision {
            OpenSlotDecision::Close { slot, node } => {
                closed.entry(node).or_default().insert(slot);
            }
            OpenSlotDecision::ReturnKeys { slot, from, owner } => {
                returned.entry((from, owner)).or_default().insert(slot);
            }
            OpenSlotDecision::Finish {
                slot,
                source,
                target,
            } => {
                finished.entry((source, target)).or_default().insert(slot);
            }
            OpenSlotDecision::Undecided { .. } => {}
        }
    }
    let mut commands = VecDeque::new();
    for (node, slots) in closed {
        commands.push_back((MoveCommand::Close(node), slots));
    }
    for ((from, owner), slots) in returned {
        let node = from;
        commands.push_back((MoveCommand::Import { node, from: owner }, slots.clone()));
        for key in 0..KEYS {
            let command = MoveCommand::Keys {
                pair: (from, owner),
                key,
                target_is_right: true,
            };
            commands.push_back((command, slots.clone()));
        }
        commands.push_back((MoveCommand::Close(from), slots));
    }
    for ((source, target), slots) in finished {
        let one = move_commands(source, target, nodes);
        commands.extend(one.into_iter().map(|one| (one, slots.clone())));
    }
    for one in &plan.moves {
        let slowly: SlotSet = one.slots.iter().take(SLOWLY).collect();
        let rest = one.slots.difference(&slowly);
        let mut all = vec![MoveCommand::Listed {
            node: one.target,
            owner: one.source,
        }];
        all.extend(move_commands(one.source, one.target, nodes));
        commands.extend(all.iter().map(|one| (one.clone(), slowly.clone())));
        if !rest.is_empty() {
            commands.push_back((MoveCommand::AtOnce(all), rest));
        }
    }
    commands
}

/// The target expects the slots before the source gives them away, and has them before the source has lost them.
fn move_commands(source: NodeId, target: NodeId, nodes: &[NodeId]) -> Vec<MoveCommand> {
    let keys = (0..KEYS).map(|key| MoveCommand::Keys {
        pair: (source, target),
        key,
        target_is_right: false,
    });
    let others = nodes
        .iter()
        .filter(|node| **node != source && **node != target);
    let informed = [(target, false), (source, false)]
        .into_iter()
        .chain(others.map(|node| (*node, true)));
    let assigned = informed.map(|(node, is_announcement)| MoveCommand::Assign {
        node,
        target,
        is_announcement,
    });
    let marks = [
        MoveCommand::Import {
            node: target,
            from: source,
        },
        MoveCommand::Migrate {
            node: source,
            to: target,
        },
    ];
    marks.into_iter().chain(keys).chain(assigned).collect()
}

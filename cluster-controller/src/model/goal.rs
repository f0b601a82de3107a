//! What has to be so once nothing happens any more.

use super::{Model, kubernetes::Seat};
use crate::{decision::Decision, redis::plan::simulation::Content};
use common::cluster::slots::SlotSet;
use std::collections::BTreeSet;

/// Seconds within which the goal is reached after the last fault.
const LIMIT: usize = 500;
/// Seconds for which it is looked at afterwards.
const AFTERWARDS: usize = 3;
/// How often the goal may be left again: a primary is spread once its voters know a new replica, and nothing says so before.
const RETURNS: usize = 2;

impl Model {
    /// Lets the controller work until nothing is left to do. The seconds that it took.
    pub(super) fn settle(&mut self) -> Result<usize, String> {
        let mut measure = Measure::default();
        let mut left = 0;
        for second in 0..LIMIT {
            let before = self.history.len();
            let takeovers = self.world.takeovers();
            self.advance();
            measure.fall_to(self, takeovers)?;
            let is_idle = self.history.len() == before;
            if is_idle && self.missing().is_none() {
                match self.stays() {
                    Ok(()) => return Ok(second),
                    Err(why) if left == RETURNS => return Err(why),
                    Err(_) => left += 1,
                }
            }
        }
        let missing = self.missing().unwrap_or_default();
        let seen = self
            .look()
            .map(|seen| (seen.assessment, seen.plan, seen.balance, seen.rollout));
        Err(format!(
            "the goal is not reached in {LIMIT} s: {missing} {seen:?}"
        ))
    }

    /// At the goal nothing is done any more.
    fn stays(&mut self) -> Result<(), String> {
        let before = self.history.len();
        for _ in 0..AFTERWARDS {
            self.advance();
        }
        match self.missing() {
            None if self.history.len() == before => Ok(()),
            None => Err("something is done at the goal".to_owned()),
            Some(missing) => {
                let seen = self.look().map(|seen| (seen.plan, seen.balance));
                Err(format!("the goal was left: {missing} {seen:?}"))
            }
        }
    }

    fn wanted_seats(&self) -> BTreeSet<Seat> {
        let shape = &self.cluster.shape;
        let number = |value: i32| usize::try_from(value).unwrap();
        let replicas = number(shape.replicas);
        (0..number(shape.shards))
            .flat_map(|shard| (0..=replicas).map(move |ordinal| (shard, ordinal)))
            .collect()
    }

    /// What the goal lacks.
    fn missing(&mut self) -> Option<String> {
        if self.controller.mover.is_some() {
            return Some("slots move".to_owned());
        }
        let seats = self.wanted_seats();
        let pods = &self.kubernetes.pods;
        if !pods.keys().eq(seats.iter()) {
            return Some(format!("the pods are {:?}", pods.keys()));
        }
        if let Some((seat, pod)) = pods.iter().find(|(_, pod)| !pod.ready.0) {
            return Some(format!("pod {seat:?} is not ready: {}", pod.ready.1));
        }
        let Some(seen) = self.look() else {
            return Some("the controller looks again".to_owned());
        };
        if !self.has_its_sets(&seen) {
            return Some("a set is to change".to_owned());
        }
        self.undone(&seen).or_else(|| self.unserved(&seats))
    }

    /// What the controller still has to do by its own account.
    fn undone(&self, seen: &Decision) -> Option<String> {
        let Decision {
            assessment,
            plan,
            balance,
            rollout,
            ..
        } = seen;
        // The only copy in memory is not replaced.
        let is_refused = !self.persistent() && self.cluster.shape.replicas == 0;
        let is_done = assessment.is_healthy()
            && plan.steps.is_empty()
            && plan.blockers.is_empty()
            && !balance.needs_moves()
            && (rollout.outdated.is_empty() || is_refused);
        (!is_done).then(|| "the controller has something to do".to_owned())
    }

    /// Every slot is served by exactly one node, which has its keys as they were written last, and every replica has a copy.
    fn unserved(&self, seats: &BTreeSet<Seat>) -> Option<String> {
        let mut served = SlotSet::new();
        let (mut keys, mut held) = (Content::default(), Content::default());
        let mut primaries = 0;
        for seat in seats {
            let node = self.node(*seat);
            let (slots, _) = self.world.slots_of(node);
            if !self.world.owns(node) {
                continue;
            }
            if !served.intersection(&slots).is_empty() {
                return Some(format!("slots of {seat:?} have two primaries"));
            }
            served = served.union(&slots);
            let content = self.world.content_of(node);
            keys.take_newer(&content.within(&slots));
            primaries += 1;
            let replicas = self.world.linked_replicas_of(node);
            let wanted = usize::try_from(self.cluster.shape.replicas).unwrap();
            let copies = replicas
                .iter()
                .filter(|one| self.world.content_of(**one) == content);
            if copies.count() != wanted {
                return Some(format!("the copies of {seat:?} are {replicas:?}"));
            }
            held.take_newer(content);
        }
        if !served.is_full() || primaries != self.cluster.shape.shards {
            return Some(format!(
                "{primaries} primaries serve {} slots",
                served.len()
            ));
        }
        // A stale replica that took over may still have keys of slots that have moved: no client sees them.
        let hidden = held.beyond(&keys);
        if !hidden.is_empty() {
            return Some(format!("keys are where no client finds them: {hidden:?}"));
        }
        let lost = self.acknowledged.beyond(&keys);
        let lost = lost.beyond(self.world.forfeited());
        (!lost.is_empty()).then(|| format!("keys are lost: {lost:?}"))
    }
}

/// What never grows while nothing happens: pods that are to leave or to be replaced, and slots that shards which leave have or expect.
#[derive(Default)]
struct Measure {
    before: Option<[usize; 3]>,
}

impl Measure {
    /// `takeovers`: how many there had been a second ago.
    fn fall_to(&mut self, model: &Model, takeovers: usize) -> Result<(), String> {
        let seats = model.wanted_seats();
        let pods = &model.kubernetes.pods;
        let claims = model.world.claims();
        let leaving = |seat: &&Seat| !seats.contains(*seat);
        let shards = usize::try_from(model.cluster.shape.shards).unwrap();
        let in_leaving_shard = model.kubernetes.nodes.iter();
        let in_leaving_shard = in_leaving_shard.filter(|(seat, _)| seat.0 >= shards);
        let in_leaving_shard = in_leaving_shard.map(|(_, node)| {
            let claimed = claims.get(node).map_or(0, SlotSet::len);
            claimed + model.world.imported_by(*node)
        });
        let now = [
            pods.keys().filter(leaving).count(),
            pods.values()
                .filter(|pod| pod.hash != model.cluster.restart_hash)
                .count(),
            in_leaving_shard.sum(),
        ];
        // A replica takes over what its shard had, and moves that were begun are finished, also in shards that leave.
        let finishes = model.world.takeovers() > takeovers || model.world.has_open_slots();
        let compared = if finishes { 2 } else { 3 };
        if let Some(before) = self.before
            && now
                .iter()
                .zip(before)
                .take(compared)
                .any(|(now, before)| *now > before)
        {
            return Err(format!(
                "it goes backwards: pods that leave, outdated pods, slots in leaving shards were {before:?} and are {now:?}"
            ));
        }
        self.before = Some(now);
        Ok(())
    }
}

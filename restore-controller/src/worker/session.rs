//! This replica's units of one restore: what runs, what has ended and is not told yet.

use crate::{
    replay::Progress,
    report::{self, End},
};
use common::kubernetes::{claims::UnitReport, share::Own};
use crds::RedisRestore;
use kube::ResourceExt;
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// This replica's units of one restore.
pub(super) struct Session {
    pub(super) namespace: String,
    pub(super) name: String,
    state: Mutex<State>,
    /// Something has to be told at once.
    pub(super) news: Notify,
}

#[derive(Default)]
struct State {
    units: BTreeMap<usize, Unit>,
    ended: BTreeSet<(usize, i32)>,
    /// Whether somebody reports on the units. Changed under the same lock as the units, so that none is left untold.
    reporting: bool,
}

/// A unit at work.
pub(super) struct Unit {
    attempt: i32,
    progress: watch::Receiver<Progress>,
    cancel: CancellationToken,
    /// Nobody wants it any more: it does not go to another replica.
    unwanted: bool,
    end: Option<End>,
    told: Map<String, Value>,
}

impl Unit {
    pub(super) fn new(
        attempt: i32,
        progress: watch::Receiver<Progress>,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            attempt,
            progress,
            cancel,
            unwanted: false,
            end: None,
            told: Map::new(),
        }
    }

    fn report(&self, position: usize, me: &str) -> UnitReport {
        let holding = report::holding(position, me, self.attempt);
        report::report(holding, *self.progress.borrow(), self.end.as_ref())
    }

    fn stop(&mut self) {
        self.unwanted = true;
        self.cancel.cancel();
    }
}

impl Session {
    pub(super) fn new(restore: &RedisRestore) -> Self {
        Self {
            namespace: restore.namespace().unwrap_or_default(),
            name: restore.name_any(),
            state: Mutex::default(),
            news: Notify::new(),
        }
    }

    pub(super) fn own(&self) -> Own {
        let state = self.lock();
        let running = state.units.iter().map(|(at, unit)| (*at, unit.attempt));
        Own {
            running: running.collect(),
            ended: state.ended.clone(),
        }
    }

    /// Adds a unit. Whether a reporter has to be started.
    pub(super) fn begin(&self, position: usize, unit: Unit) -> bool {
        let mut state = self.lock();
        state.units.insert(position, unit);
        self.news.notify_one();
        !std::mem::replace(&mut state.reporting, true)
    }

    /// The unit has come to an end: it is told at once. Only the first end counts.
    pub(super) fn finish(&self, position: usize, attempt: i32, end: End) {
        let mut state = self.lock();
        if let Some(unit) = state.units.get_mut(&position)
            && unit.attempt == attempt
            && unit.end.is_none()
        {
            let unwanted = end == End::HandedBack && unit.unwanted;
            unit.end = Some(if unwanted { End::Stopped } else { end });
        }
        drop(state);
        self.news.notify_one();
    }

    /// Stops the work on a unit that nobody wants any more.
    pub(super) fn stop(&self, position: usize) {
        if let Some(unit) = self.lock().units.get_mut(&position) {
            unit.stop();
        }
    }

    /// Stops everything.
    pub(super) fn stop_all(&self) {
        self.lock().units.values_mut().for_each(Unit::stop);
    }

    /// What has not been told yet.
    pub(super) fn news_of(&self, me: &str) -> Vec<UnitReport> {
        let state = self.lock();
        let reports = state
            .units
            .iter()
            .map(|(position, unit)| (unit, unit.report(*position, me)));
        reports
            .filter(|(unit, report)| unit.told != report.fields)
            .map(|(_, report)| report)
            .collect()
    }

    /// These reports have arrived, but for those of units that are lost: they stop.
    pub(super) fn told(&self, reports: &[UnitReport], lost: &[usize]) {
        let mut state = self.lock();
        for report in reports {
            let position = report.holding.path.index;
            let Some(unit) = state.units.get_mut(&position) else {
                continue;
            };
            let is_lost = lost.contains(&position);
            unit.told.clone_from(&report.fields);
            // What ended after the report was made is told by the next one.
            let ended = unit.end.is_some()
                && unit.report(position, &report.holding.worker).fields == report.fields;
            if is_lost {
                unit.stop();
            }
            if is_lost || ended {
                let attempt = unit.attempt;
                state.units.remove(&position);
                state.ended.insert((position, attempt));
            }
        }
    }

    /// Whether nothing is left to tell; then the reporter ends.
    pub(super) fn is_told(&self) -> bool {
        let mut state = self.lock();
        state.reporting = !state.units.is_empty();
        !state.reporting
    }

    pub(super) fn is_idle(&self) -> bool {
        self.lock().units.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::RedisRestoreSpec;

    fn session() -> (Session, watch::Sender<Progress>, CancellationToken) {
        let session = Session::new(&RedisRestore::new("r", RedisRestoreSpec::default()));
        let (sender, progress) = watch::channel(Progress::default());
        let cancel = CancellationToken::new();
        assert!(session.begin(0, Unit::new(1, progress, cancel.clone())));
        (session, sender, cancel)
    }

    #[test]
    fn only_news_are_told_and_the_end_is_the_last() {
        let (session, progress, _) = session();
        let first = session.news_of("me");
        assert_eq!(first.len(), 1);
        session.told(&first, &[]);
        assert!(session.news_of("me").is_empty());
        progress.send_replace(Progress {
            block: 1,
            ..Progress::default()
        });
        let second = session.news_of("me");
        session.finish(0, 1, End::Loaded);
        session.told(&second, &[]);
        assert!(!session.is_told(), "the end is still to be told");
        session.told(&session.news_of("me"), &[]);
        assert!(session.is_told() && session.is_idle());
        assert_eq!(session.own().ended, BTreeSet::from([(0, 1)]));
    }

    #[test]
    fn a_lost_unit_is_stopped_and_forgotten() {
        let (session, _progress, cancel) = session();
        session.told(&session.news_of("me"), &[0]);
        assert!(cancel.is_cancelled() && session.is_idle());
    }

    #[test]
    fn what_nobody_wants_is_not_handed_back() {
        let (session, _progress, _) = session();
        session.stop(0);
        session.finish(0, 1, End::HandedBack);
        let fields = &session.news_of("me")[0].fields;
        assert_eq!(fields.get("state"), Some(&Value::from("Failed")));
    }
}

//! This replica's units of one object: what runs, what has ended and is not told yet, what was told.

use super::{claims::UnitReport, share::Own};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How the work on a unit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End<D> {
    /// All of it is done.
    Done(D),
    /// It failed: a sentence.
    Failed(String),
    /// This replica ends: somebody else is to take it.
    HandedBack,
    /// Nobody wants it any more.
    Stopped,
}

/// The work on one unit, as far as its reports go.
pub trait Work {
    /// What it comes to.
    type Done;

    /// The report on it now: how far it is, and how it ended if it has.
    fn report(
        &self,
        position: usize,
        worker: &str,
        attempt: i32,
        end: Option<&End<Self::Done>>,
    ) -> UnitReport;
}

/// This replica's units of one object.
pub struct Session<W: Work> {
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    state: Mutex<State<W>>,
    /// Something has to be told at once.
    pub news: Notify,
}

struct State<W: Work> {
    units: BTreeMap<usize, Unit<W>>,
    ended: BTreeSet<(usize, i32)>,
    /// Whether somebody reports on the units. Changed under the same lock as the units, so that none is left untold.
    reporting: bool,
}

/// A unit at work.
struct Unit<W: Work> {
    attempt: i32,
    work: W,
    cancel: CancellationToken,
    /// Nobody wants it any more: it does not go to another replica.
    unwanted: bool,
    end: Option<End<W::Done>>,
    told: Map<String, Value>,
}

impl<W: Work> Unit<W> {
    fn report(&self, position: usize, me: &str) -> UnitReport {
        self.work
            .report(position, me, self.attempt, self.end.as_ref())
    }

    fn stop(&mut self) {
        self.unwanted = true;
        self.cancel.cancel();
    }
}

impl<W: Work> Session<W> {
    /// Nothing is at work yet.
    pub fn new(namespace: String, name: String) -> Self {
        Self {
            namespace,
            name,
            state: Mutex::new(State {
                units: BTreeMap::new(),
                ended: BTreeSet::new(),
                reporting: false,
            }),
            news: Notify::new(),
        }
    }

    /// What runs and what has ended, for [`super::share::moves`].
    pub fn own(&self) -> Own {
        let state = self.lock();
        let running = state.units.iter().map(|(at, unit)| (*at, unit.attempt));
        Own {
            running: running.collect(),
            ended: state.ended.clone(),
        }
    }

    /// Adds a unit; `cancel` stops its work. Whether a reporter has to be started.
    pub fn begin(&self, position: usize, attempt: i32, work: W, cancel: CancellationToken) -> bool {
        let unit = Unit {
            attempt,
            work,
            cancel,
            unwanted: false,
            end: None,
            told: Map::new(),
        };
        let mut state = self.lock();
        state.units.insert(position, unit);
        self.news.notify_one();
        !std::mem::replace(&mut state.reporting, true)
    }

    /// The unit has come to an end: it is told at once. Only the first end counts.
    pub fn finish(&self, position: usize, attempt: i32, end: End<W::Done>) {
        let mut state = self.lock();
        if let Some(unit) = state.units.get_mut(&position)
            && unit.attempt == attempt
            && unit.end.is_none()
        {
            let unwanted = unit.unwanted && matches!(end, End::HandedBack);
            unit.end = Some(if unwanted { End::Stopped } else { end });
        }
        drop(state);
        self.news.notify_one();
    }

    /// Stops the work on a unit that nobody wants any more.
    pub fn stop(&self, position: usize) {
        if let Some(unit) = self.lock().units.get_mut(&position) {
            unit.stop();
        }
    }

    /// Stops everything.
    pub fn stop_all(&self) {
        self.lock().units.values_mut().for_each(Unit::stop);
    }

    /// What has not been told yet.
    pub fn news_of(&self, me: &str) -> Vec<UnitReport> {
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
    pub fn told(&self, reports: &[UnitReport], lost: &[usize]) {
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
    pub fn is_told(&self) -> bool {
        let mut state = self.lock();
        state.reporting = !state.units.is_empty();
        !state.reporting
    }

    /// Whether nothing is at work.
    pub fn is_idle(&self) -> bool {
        self.lock().units.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::claims::{ClaimPath, Holding};
    use serde_json::json;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Counting(Arc<AtomicU64>);

    impl Work for Counting {
        type Done = ();

        fn report(
            &self,
            index: usize,
            worker: &str,
            attempt: i32,
            end: Option<&End<()>>,
        ) -> UnitReport {
            let mut fields = Map::new();
            fields.insert("count".into(), json!(self.0.load(Ordering::Relaxed)));
            fields.insert("end".into(), json!(end.map(|end| format!("{end:?}"))));
            let array = "/status/units";
            UnitReport {
                holding: Holding {
                    path: ClaimPath { array, index },
                    worker: worker.to_owned(),
                    attempt,
                },
                fields,
            }
        }
    }

    fn session() -> (Session<Counting>, Arc<AtomicU64>, CancellationToken) {
        let session = Session::new("shop".into(), "now".into());
        let (count, cancel) = (Arc::default(), CancellationToken::new());
        assert!(session.begin(0, 1, Counting(Arc::clone(&count)), cancel.clone()));
        (session, count, cancel)
    }

    #[test]
    fn only_news_are_told_and_the_end_is_the_last() {
        let (session, count, _) = session();
        let first = session.news_of("me");
        assert_eq!(first.len(), 1);
        session.told(&first, &[]);
        assert!(session.news_of("me").is_empty());
        count.store(1, Ordering::Relaxed);
        let second = session.news_of("me");
        session.finish(0, 1, End::Done(()));
        session.told(&second, &[]);
        assert!(!session.is_told(), "the end is still to be told");
        session.told(&session.news_of("me"), &[]);
        assert!(session.is_told() && session.is_idle());
        assert_eq!(session.own().ended, BTreeSet::from([(0, 1)]));
    }

    #[test]
    fn a_lost_unit_is_stopped_and_forgotten() {
        let (session, _, cancel) = session();
        session.told(&session.news_of("me"), &[0]);
        assert!(cancel.is_cancelled() && session.is_idle());
    }

    #[test]
    fn what_nobody_wants_is_not_handed_back() {
        let (session, _, _) = session();
        session.stop(0);
        session.finish(0, 1, End::HandedBack);
        let fields = &session.news_of("me")[0].fields;
        assert_eq!(fields.get("end"), Some(&json!("Stopped")));
    }

    #[test]
    fn one_reporter_is_enough() {
        let (session, count, cancel) = session();
        assert!(!session.begin(1, 1, Counting(count), cancel));
    }
}

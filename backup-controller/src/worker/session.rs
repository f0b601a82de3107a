//! This replica's units of one backup: what runs, what has ended and is not told yet, what was told.

use crate::{
    capture::CaptureProgress,
    report::{self, End},
};
use common::{
    access::PodNames,
    kubernetes::{claims::UnitReport, share::Own},
};
use crds::RedisBackup;
use kube::ResourceExt;
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// This replica's units of one backup.
pub(super) struct Session {
    pub(super) namespace: String,
    pub(super) name: String,
    state: Mutex<State>,
    /// Something has to be told at once.
    pub(super) news: Notify,
}

#[derive(Default)]
struct State {
    units: BTreeMap<usize, Running>,
    ended: BTreeSet<(usize, i32)>,
    /// Whether somebody reports on the units. Changed under the same lock as the units, so that none is left untold.
    reporting: bool,
}

/// A unit at work.
pub(super) struct Running {
    pub(super) attempt: i32,
    pub(super) key: String,
    pub(super) progress: watch::Receiver<CaptureProgress>,
    pub(super) pods: Arc<OnceLock<PodNames>>,
    pub(super) cancel: CancellationToken,
    /// Nobody wants it any more: it does not go to another replica.
    unwanted: bool,
    end: Option<End>,
    told: Map<String, Value>,
}

impl Running {
    pub(super) fn new(
        attempt: i32,
        key: String,
        progress: watch::Receiver<CaptureProgress>,
        pods: Arc<OnceLock<PodNames>>,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            attempt,
            key,
            progress,
            pods,
            cancel,
            unwanted: false,
            end: None,
            told: Map::new(),
        }
    }

    fn report(&self, position: usize, me: &str) -> UnitReport {
        let progress = self.progress.borrow().clone();
        let pod = progress
            .source
            .and_then(|source| self.pods.get()?.get(&source.address.client()));
        let holding = report::holding(position, me, self.attempt);
        let report = report::running(holding, &self.key, &progress, pod.map(String::as_str));
        match &self.end {
            Some(end) => report::ended(report, end),
            None => report,
        }
    }
}

impl Session {
    pub(super) fn new(backup: &RedisBackup) -> Self {
        Self {
            namespace: backup.namespace().unwrap_or_default(),
            name: backup.name_any(),
            state: Mutex::default(),
            news: Notify::new(),
        }
    }

    pub(super) fn own(&self) -> Own {
        let state = self.lock();
        Own {
            running: state
                .units
                .iter()
                .map(|(position, unit)| (*position, unit.attempt))
                .collect(),
            ended: state.ended.clone(),
        }
    }

    /// Adds a unit. Whether a reporter has to be started.
    pub(super) fn begin(&self, position: usize, unit: Running) -> bool {
        let mut state = self.lock();
        state.units.insert(position, unit);
        !std::mem::replace(&mut state.reporting, true)
    }

    /// The unit has come to an end: it is told at once.
    pub(super) fn finish(&self, position: usize, attempt: i32, end: End) {
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
    pub(super) fn stop(&self, position: usize) {
        if let Some(unit) = self.lock().units.get_mut(&position) {
            unit.unwanted = true;
            unit.cancel.cancel();
        }
    }

    /// Stops everything.
    pub(super) fn stop_all(&self) {
        for unit in self.lock().units.values_mut() {
            unit.unwanted = true;
            unit.cancel.cancel();
        }
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

    /// These reports have arrived.
    pub(super) fn told(&self, reports: &[UnitReport], lost: &[usize]) {
        let mut state = self.lock();
        for report in reports
            .iter()
            .filter(|report| !lost.contains(&report.holding.path.index))
        {
            let position = report.holding.path.index;
            let Some(unit) = state.units.get_mut(&position) else {
                continue;
            };
            unit.told.clone_from(&report.fields);
            // What ended after the report was made is told by the next one.
            let is_last = unit.end.is_some()
                && unit.report(position, &report.holding.worker).fields == report.fields;
            if is_last {
                let attempt = unit.attempt;
                state.units.remove(&position);
                state.ended.insert((position, attempt));
            }
        }
        for position in lost {
            if let Some(unit) = state.units.remove(position) {
                unit.cancel.cancel();
                state.ended.insert((*position, unit.attempt));
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

//! What a capture at work can say of itself.

use crate::{
    capture::{CaptureProgress, CapturedShard},
    report::{self, End},
};
use common::{
    access::PodNames,
    kubernetes::{claims::UnitReport, session::Work},
};
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;

/// A capture at work.
pub(super) struct Running {
    pub(super) key: String,
    pub(super) progress: watch::Receiver<CaptureProgress>,
    /// Known once the capture has asked for them.
    pub(super) pods: Arc<OnceLock<PodNames>>,
}

impl Work for Running {
    type Done = Box<CapturedShard>;

    fn report(&self, position: usize, worker: &str, attempt: i32, end: Option<&End>) -> UnitReport {
        let progress = self.progress.borrow().clone();
        let pod = progress
            .source
            .and_then(|source| self.pods.get()?.get(&source.address.client()));
        let holding = report::holding(position, worker, attempt);
        let report = report::running(holding, &self.key, &progress, pod.map(String::as_str));
        match end {
            Some(end) => report::ended(report, end),
            None => report,
        }
    }
}

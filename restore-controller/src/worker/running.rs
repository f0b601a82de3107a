//! What a replay at work can say of itself.

use crate::{
    replay::Progress,
    report::{self, End, Ended},
};
use common::kubernetes::{claims::UnitReport, session::Work};
use tokio::sync::watch;

/// A replay at work.
pub(super) struct Running(pub(super) watch::Receiver<Progress>);

impl Work for Running {
    type Done = Ended;

    fn report(&self, position: usize, worker: &str, attempt: i32, end: Option<&End>) -> UnitReport {
        let holding = report::holding(position, worker, attempt);
        report::report(holding, *self.0.borrow(), end)
    }
}

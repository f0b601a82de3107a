//! What a reconcile that did not fail has to say.

use std::time::Duration;

/// The end of one reconcile. Waiting is an outcome, not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// `settled`, `progressing` or `waiting`.
    pub kind: OutcomeKind,
    /// CamelCase, of few values: the metric label.
    pub reason: &'static str,
    /// When to look again though nothing was seen to change. `None`: only when something changes.
    pub again: Option<Duration>,
}

/// The three ends of a reconcile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutcomeKind {
    /// Nothing is left to do.
    Settled,
    /// Something was done; look again.
    Progressing,
    /// Something outside has to happen first.
    Waiting,
}

impl OutcomeKind {
    /// The word for logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Progressing => "progressing",
            Self::Waiting => "waiting",
        }
    }
}

impl Outcome {
    /// At the goal; look again after `recheck` though nothing changed.
    pub fn settled(recheck: Duration) -> Self {
        Self {
            kind: OutcomeKind::Settled,
            reason: "Settled",
            again: Some(recheck),
        }
    }

    /// At the goal, for good: look again only when something changes.
    pub fn finished() -> Self {
        Self {
            kind: OutcomeKind::Settled,
            reason: "Finished",
            again: None,
        }
    }

    /// A step was done; the next one follows after `delay`.
    pub fn progressing(reason: &'static str, delay: Duration) -> Self {
        Self {
            kind: OutcomeKind::Progressing,
            reason,
            again: Some(delay),
        }
    }

    /// The same, and look again after `limit` at the latest.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        let again = self.again.map_or(limit, |again| again.min(limit));
        Self {
            again: Some(again),
            ..self
        }
    }

    /// Waiting for something outside; look again after `delay` at the latest.
    pub fn waiting(reason: &'static str, delay: Duration) -> Self {
        Self {
            kind: OutcomeKind::Waiting,
            reason,
            again: Some(delay),
        }
    }
}

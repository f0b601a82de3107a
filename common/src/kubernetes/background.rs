//! Work beside the reconciles: one pass begins it, a later one looks at how it went.

use std::time::{Duration, Instant};

/// How long a passing failure stands before the work is begun anew.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// What went wrong outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// CamelCase.
    pub reason: &'static str,
    /// A sentence that names the object, the cause and the cure.
    pub message: String,
    /// Whether it may pass by itself.
    pub transient: bool,
}

/// Work that runs beside the reconciles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Background<T> {
    /// Not finished.
    Running,
    /// Finished.
    Done(T),
    /// Failed.
    Failed(Trouble),
}

impl<T> Background<T> {
    /// How a task ended; `None`: it was told to end with the process. The next leader begins it anew.
    pub fn ended(result: Option<Result<T, Trouble>>) -> Self {
        match result {
            Some(Ok(value)) => Self::Done(value),
            Some(Err(trouble)) => Self::Failed(trouble),
            None => Self::Failed(Trouble {
                reason: "Cancelled",
                message: "the controller is shutting down".to_owned(),
                transient: true,
            }),
        }
    }
}

/// What a planner remembers of one piece of work.
#[derive(Clone, Debug)]
pub struct Remembered<T>(Option<(Background<T>, Instant)>);

impl<T> Default for Remembered<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Clone> Remembered<T> {
    /// The work has begun or ended.
    pub fn set(&mut self, state: Background<T>, now: Instant) {
        self.0 = Some((state, now));
    }

    /// How far it is. A passing failure is forgotten after a while, so that the work is begun anew; a lasting one stands.
    pub fn recall(&mut self, now: Instant) -> Option<Background<T>> {
        let passed = self.0.as_ref().is_some_and(|(state, since)| {
            matches!(state, Background::Failed(trouble) if trouble.transient)
                && now.duration_since(*since) >= TRY_AGAIN
        });
        if passed {
            self.0 = None;
        }
        self.0.as_ref().map(|(state, _)| state.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passing_failure_is_tried_again_and_a_lasting_one_stands() {
        let mut work = Remembered::<()>::default();
        let start = Instant::now();
        let mut trouble = Trouble {
            reason: "R",
            message: String::new(),
            transient: true,
        };
        assert!(work.recall(start).is_none());
        work.set(Background::Failed(trouble.clone()), start);
        assert!(work.recall(start).is_some());
        assert!(work.recall(start + TRY_AGAIN).is_none());
        trouble.transient = false;
        work.set(Background::Failed(trouble), start);
        assert!(work.recall(start + 2 * TRY_AGAIN).is_some());
    }

    #[test]
    fn work_that_is_told_to_end_is_begun_anew() {
        let mut work = Remembered::<()>::default();
        let start = Instant::now();
        work.set(Background::ended(None), start);
        assert!(work.recall(start + TRY_AGAIN).is_none());
    }
}

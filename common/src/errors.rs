//! Classes of errors: what a failed reconcile is retried by, and what it is called in events, conditions and metrics.

use std::time::Duration;

/// What kind of failure it was. Picks the retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// Will probably pass by itself: network, timeout, overload.
    Transient,
    /// Another client wrote at the same time; the next reconcile sees what it wrote.
    Conflict,
    /// The user has to change something; nothing is gained by hurrying.
    InvalidSpec,
    /// A right, a quota or a policy is in the way; an administrator has to act.
    Forbidden,
    /// This process is no longer allowed to act (leadership or claim lost).
    Fenced,
    /// The program is wrong.
    Bug,
}

impl ErrorClass {
    /// The word for logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Conflict => "conflict",
            Self::InvalidSpec => "invalid_spec",
            Self::Forbidden => "forbidden",
            Self::Fenced => "fenced",
            Self::Bug => "bug",
        }
    }

    /// How long to wait after the `failures`-th failure in a row (from 1): doubles from the first to the longest delay.
    pub fn delay(self, failures: u32) -> Duration {
        let (first, longest) = match self {
            Self::Conflict => (Duration::from_millis(100), Duration::from_secs(10)),
            Self::Transient => (Duration::from_secs(1), Duration::from_mins(1)),
            Self::Fenced => (Duration::from_secs(2), Duration::from_secs(30)),
            Self::Forbidden | Self::Bug => (Duration::from_secs(5), Duration::from_mins(5)),
            Self::InvalidSpec => (Duration::from_secs(30), Duration::from_mins(10)),
        };
        let doublings = failures.saturating_sub(1).min(16);
        first.saturating_mul(1 << doublings).min(longest)
    }

    /// Whether what failed may succeed when it is done again.
    pub fn recovery(self) -> Recovery {
        match self {
            Self::Transient | Self::Conflict | Self::Fenced => Recovery::Soon,
            Self::InvalidSpec | Self::Forbidden => Recovery::Later,
            Self::Bug => Recovery::Never,
        }
    }

    /// Whether an Event is worth a user's attention at the `failures`-th failure in a row: hiccups are not.
    pub fn is_worth_an_event(self, failures: u32) -> bool {
        match self {
            Self::Transient => failures >= 4,
            Self::Conflict | Self::Fenced => failures >= 16,
            Self::InvalidSpec | Self::Forbidden | Self::Bug => true,
        }
    }
}

/// Whether what failed may succeed when it is done again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Within moments, by itself: network, timeout, overload.
    Soon,
    /// With another attempt: a person may correct rights, credentials or a spec meanwhile, and what was damaged on its way may arrive whole.
    Later,
    /// Not at all: the cause lies in what is stored or asked for, or in the program.
    Never,
}

/// An error that knows its class and its name. Every reconcile's error enum implements it.
pub trait Classified: std::error::Error + Send + Sync + 'static {
    /// Picks the retry.
    fn class(&self) -> ErrorClass;
    /// CamelCase, stable, of few values: Event reason, condition reason, metric label.
    fn reason(&self) -> &'static str;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_bound() {
        let transient: Vec<u64> = (1..=8)
            .map(|n| ErrorClass::Transient.delay(n).as_secs())
            .collect();
        assert_eq!(transient, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(ErrorClass::Bug.delay(u32::MAX).as_secs(), 300);
        assert_eq!(ErrorClass::Conflict.delay(0).as_millis(), 100);
    }

    #[test]
    fn what_a_person_has_to_change_is_not_tried_soon() {
        assert_eq!(ErrorClass::Transient.recovery(), Recovery::Soon);
        assert_eq!(ErrorClass::InvalidSpec.recovery(), Recovery::Later);
        assert_eq!(ErrorClass::Forbidden.recovery(), Recovery::Later);
        assert_eq!(ErrorClass::Bug.recovery(), Recovery::Never);
    }
}

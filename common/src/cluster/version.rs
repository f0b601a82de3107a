//! Versions of servers, compared: which of them can read the data of which.
//!
//! The patch releases of a series (7.0.1 to 7.0.15) share one format of RDB files, of append-only files and of the replication stream
//! (`RDB_VERSION` in `rdb.h`). A newer series reads what an older one has written; an older one refuses what it does not know ("Can't handle
//! RDB format version").

use super::info::{Family, ServerInfo};
use std::fmt;

/// A released version of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerVersion {
    /// Redis or Valkey.
    pub family: Family,
    /// First number.
    pub major: u32,
    /// Second number: together with the first one it names the series.
    pub minor: u32,
    /// Third number.
    pub patch: u32,
}

impl ServerVersion {
    /// Three numbers with dots between them. None: it is no release.
    pub fn parse(family: Family, version: &str) -> Option<Self> {
        let mut numbers = version.split('.').map(|number| number.parse().ok());
        let (major, minor, patch) = (numbers.next()??, numbers.next()??, numbers.next()??);
        numbers.next().is_none().then_some(Self {
            family,
            major,
            minor,
            patch,
        })
    }

    /// What a server reports of itself.
    pub fn of(server: &ServerInfo) -> Option<Self> {
        Self::parse(server.family, &server.version)
    }

    /// The text that [`ServerInfo`] is shown as, for example `Redis 7.0.15`.
    pub fn read(text: &str) -> Option<Self> {
        let (family, version) = text.split_once(' ')?;
        let family = [Family::Redis, Family::Valkey]
            .into_iter()
            .find(|known| known.to_string() == family)?;
        Self::parse(family, version)
    }

    /// The series, whose patch releases share their data format.
    pub fn series(&self) -> (u32, u32) {
        (self.major, self.minor)
    }

    /// Whether a server of this version may be unable to read what the other one has written: it is of an older series. Of another family
    /// nothing is known.
    pub fn is_older_series_than(&self, other: &Self) -> bool {
        self.family == other.family && self.series() < other.series()
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            family,
            major,
            minor,
            patch,
        } = self;
        write!(out, "{family} {major}.{minor}.{patch}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_again() {
        for text in ["Redis 7.0.15", "Valkey 9.1.2", "Redis 10.0.0"] {
            assert_eq!(ServerVersion::read(text).unwrap().to_string(), text);
        }
        let odd = [
            "7.0.15",
            "Redis 7.0",
            "Redis 7.0.x",
            "KeyDB 6.3.4",
            "Redis 7.0.15.1",
            "Redis ",
        ];
        for text in odd {
            assert_eq!(ServerVersion::read(text), None, "{text}");
        }
    }

    #[test]
    fn numbers_are_compared_as_numbers() {
        let of = |text: &str| ServerVersion::read(text).unwrap();
        assert!(of("Redis 7.2.4").is_older_series_than(&of("Redis 7.10.0")));
        assert!(of("Redis 9.0.0").is_older_series_than(&of("Redis 10.0.0")));
        assert!(!of("Redis 7.0.1").is_older_series_than(&of("Redis 7.0.15")));
        assert!(!of("Redis 7.0.1").is_older_series_than(&of("Valkey 9.0.0")));
    }
}

//! What an answer to `MIGRATE` means. Pure.
//!
//! The texts are those of `migrateCommand` in the engine's `cluster.c`; what the target answered comes after a fixed prefix.

/// What an answer to `MIGRATE` means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MigrateReply {
    /// The keys are at the target and no longer at the source.
    Moved,
    /// None of the keys exists any more.
    NoKeys,
    /// The source lost the target in the middle, or could not connect: keys may be on both sides.
    Broken,
    /// The target has one of the keys already. The others were moved.
    Exists,
    /// The target is out of memory. Some keys may have been moved.
    Full,
    /// One of the nodes sees the cluster as down, or is loading.
    Down,
    /// One of the nodes sends the keys elsewhere: the slot is not as it was planned.
    Elsewhere,
    /// Anything else.
    Refused,
}

/// Words of an error, as far as they matter, and what they mean. The first that occurs counts.
const MEANINGS: [(&str, MigrateReply); 8] = [
    ("IOERR", MigrateReply::Broken),
    ("BUSYKEY", MigrateReply::Exists),
    ("OOM ", MigrateReply::Full),
    ("CLUSTERDOWN", MigrateReply::Down),
    ("LOADING", MigrateReply::Down),
    ("MOVED ", MigrateReply::Elsewhere),
    ("ASK ", MigrateReply::Elsewhere),
    ("READONLY", MigrateReply::Elsewhere),
];

impl MigrateReply {
    /// The meaning of a status.
    pub(super) fn of_status(status: &str) -> Self {
        if status == "NOKEY" {
            Self::NoKeys
        } else {
            Self::Moved
        }
    }

    /// The meaning of an error, given as code and text.
    pub(super) fn of_error(text: &str) -> Self {
        let text = text.trim_start_matches("ERR ");
        let text = text.trim_start_matches("Target instance replied with error: ");
        let found = MEANINGS.iter().find(|(start, _)| text.starts_with(start));
        found.map_or(Self::Refused, |(_, meaning)| *meaning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_servers_are_recognised() {
        for (text, meaning) in [
            (
                "IOERR error or timeout reading to target instance",
                MigrateReply::Broken,
            ),
            (
                "IOERR error or timeout connecting to the client",
                MigrateReply::Broken,
            ),
            (
                "ERR Target instance replied with error: BUSYKEY Target key name already exists.",
                MigrateReply::Exists,
            ),
            (
                "ERR Target instance replied with error: OOM command not allowed when used memory > 'maxmemory'.",
                MigrateReply::Full,
            ),
            (
                "ERR Target instance replied with error: CLUSTERDOWN The cluster is down",
                MigrateReply::Down,
            ),
            ("CLUSTERDOWN Hash slot not served", MigrateReply::Down),
            ("MOVED 5 10.0.0.1:6379", MigrateReply::Elsewhere),
            (
                "ERR Target instance replied with error: MOVED 5 10.0.0.1:6379",
                MigrateReply::Elsewhere,
            ),
            (
                "ERR Target instance replied with error: NOAUTH Authentication required.",
                MigrateReply::Refused,
            ),
            ("ERR syntax error", MigrateReply::Refused),
        ] {
            assert_eq!(MigrateReply::of_error(text), meaning, "{text}");
        }
        assert_eq!(MigrateReply::of_status("OK"), MigrateReply::Moved);
        assert_eq!(MigrateReply::of_status("NOKEY"), MigrateReply::NoKeys);
    }
}

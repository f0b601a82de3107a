//! What is asked of a server by `CONFIG SET`, and what it answers. Pure.

use common::cluster::topology::NodeId;

/// A setting to be set on a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveChange {
    /// Index of the member.
    pub member: usize,
    /// Name of its pod.
    pub pod: String,
    /// Its id: no other server gets the command.
    pub node: NodeId,
    /// Name of the setting.
    pub name: String,
    /// The value as `CONFIG SET` is given it.
    pub value: String,
    /// What the server reports now; none where it does not know the setting.
    pub was: Option<String>,
    /// Whether the server had it as wanted before.
    pub drifted: bool,
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LiveResult {
    /// It took the value, and reports it so.
    Reads(String),
    /// It takes such a value only from redis.conf.
    OnlyAtStart,
    /// It refuses the value, in its own words.
    Refused(String),
}

/// A change and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveOutcome {
    /// What was asked of the server.
    pub change: LiveChange,
    /// What the server answered.
    pub result: LiveResult,
}

/// What a refusal of `CONFIG SET` means. Redis 7.0 and newer and Valkey name the cause; 6.2 answers the same to settings it does not know
/// and to those it takes only at its start (`configSetCommand` in the engine's `config.c`). What a server does not know at all it has
/// refused in redis.conf before.
pub fn refusal(words: &str) -> LiveResult {
    const AT_START: [&str; 4] = [
        "can't set immutable config",
        "can't set protected config",
        "Unsupported CONFIG parameter",
        "Unknown option or number of arguments",
    ];
    if AT_START.iter().any(|one| words.contains(one)) {
        return LiveResult::OnlyAtStart;
    }
    // `CONFIG SET failed (possibly related to argument 'hz') - argument must be …`: the cause alone.
    let cause = words
        .starts_with("CONFIG SET failed")
        .then(|| words.split_once(" - "))
        .flatten();
    let cause = cause.map_or(words, |(_, cause)| cause);
    LiveResult::Refused(cause.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers of real servers: 6.2.14, 7.0.15.
    #[test]
    fn refusals_say_whether_a_restart_helps() {
        let at_start = [
            "CONFIG SET failed (possibly related to argument 'databases') - can't set immutable config",
            "CONFIG SET failed (possibly related to argument 'dir') - can't set protected config",
            "Unsupported CONFIG parameter: databases",
            "Unknown option or number of arguments for CONFIG SET - 'loadmodule'",
        ];
        for words in at_start {
            assert_eq!(refusal(words), LiveResult::OnlyAtStart, "{words}");
        }
        let refused = [
            (
                "CONFIG SET failed (possibly related to argument 'hz') - argument couldn't be parsed into an integer",
                "argument couldn't be parsed into an integer",
            ),
            (
                "Invalid argument 'x' for CONFIG SET 'hz' - argument couldn't be parsed into an integer",
                "Invalid argument 'x' for CONFIG SET 'hz' - argument couldn't be parsed into an integer",
            ),
        ];
        for (words, cause) in refused {
            assert_eq!(refusal(words), LiveResult::Refused(cause.to_owned()));
        }
    }
}

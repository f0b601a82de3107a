//! What each own user may do: the commands that its program sends, and no other. Pure.
//!
//! A server does not start with a rule whose command it does not know, so what not every server has is an [`Ability`] that is added
//! once all of them have it.

use crds::OwnUser;
use serde::{Deserialize, Serialize};

/// What newer servers can do besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abilities {
    /// FUNCTION: Redis and Valkey from 7.0 on.
    #[serde(default)]
    pub functions: bool,
    /// CLUSTER MIGRATESLOTS: Valkey from 9.0 on.
    #[serde(default)]
    pub moves: bool,
}

/// Asks for the topology, for everything that a node says of itself, and for proof of its id.
const LOOKS: &str = "+info +cluster|info +cluster|nodes +cluster|myid";

/// Observes and repairs, changes settings and users, moves slots. `MIGRATE` has the source log in to the target as the same user.
const OPERATOR: &str = "+acl|list +acl|setuser +acl|deluser +config|get +config|set +client|list +client|kill +client|pause \
    +cluster|meet +cluster|replicate +cluster|forget +cluster|failover +cluster|addslots +cluster|addslotsrange +cluster|delslots \
    +cluster|bumpepoch +cluster|set-config-epoch +cluster|setslot +cluster|countkeysinslot +cluster|getkeysinslot \
    +command|info +wait +multi +exec +watch +unwatch +asking +select +dump +restore-asking +migrate +exists +ttl +memory|usage \
    +unlink";
/// `CLUSTER DELSLOTSRANGE` came with 7.0, with functions.
const OPERATOR_FUNCTIONS: &str = "+cluster|delslotsrange +function|dump +function|restore";
const OPERATOR_MOVES: &str =
    "+cluster|migrateslots +cluster|getslotmigrations +cluster|cancelslotmigrations";

/// What a server sends to the one that it copies. It sends PING before it logs in, and takes every refusal of that as an answer
/// (`syncWithMaster` in the engine's `replication.c`).
const REPLICATION: &str = "+replconf +psync";
/// What the source of moved slots sends to the target: a snapshot as commands, and what clients write meanwhile, of transactions each command. A
/// replica takes that from its primary whatever its users may do; the target of moved slots takes it as this user.
const REPLICATION_MOVES: &str = "~* +cluster|syncslots +select +@write";

/// What the stop script does: hands a primary over.
const PROBE: &str = "+info +role +cluster|nodes +cluster|myid +cluster|failover";

/// What collectors of metrics ask for, CLIENT LIST with the argument that `extraArgs` has as its example. CONFIG GET is left out: it reports the
/// password by which a server copies another one.
const EXPORTER: &str =
    "+info +cluster|info +client|list +client|setname +slowlog|get +slowlog|len +latency|latest";
/// `LATENCY HISTOGRAM` came with 7.0, with functions.
const EXPORTER_FUNCTIONS: &str = "+latency|histogram";

/// The rules of an own user.
pub fn rules(user: OwnUser, abilities: Abilities) -> String {
    let mut parts = Vec::new();
    match user {
        OwnUser::Operator => {
            parts.extend(["~*", LOOKS, OPERATOR]);
            parts.extend(abilities.functions.then_some(OPERATOR_FUNCTIONS));
            parts.extend(abilities.moves.then_some(OPERATOR_MOVES));
        }
        OwnUser::Replication => {
            parts.push(REPLICATION);
            parts.extend(abilities.moves.then_some(REPLICATION_MOVES));
        }
        OwnUser::Backup => parts.extend([LOOKS, "+replconf +psync"]),
        OwnUser::Restore => {
            parts.extend(["~*", LOOKS, "+restore +asking +cluster|countkeysinslot"]);
            let functions = "+function|load +function|list";
            parts.extend(abilities.functions.then_some(functions));
        }
        OwnUser::Probe => parts.push(PROBE),
        OwnUser::Exporter => {
            parts.push(EXPORTER);
            parts.extend(abilities.functions.then_some(EXPORTER_FUNCTIONS));
        }
    }
    let words = parts.iter().flat_map(|part| part.split_whitespace());
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_own_user_may_do_everything() {
        let all = Abilities {
            functions: true,
            moves: true,
        };
        for user in OwnUser::ALL {
            let rules = rules(user, all);
            let words: Vec<&str> = rules.split(' ').collect();
            for word in &words {
                let moves = user == OwnUser::Replication && *word == "+@write";
                let named = word.starts_with('+') && !word.contains('@') || *word == "~*" || moves;
                assert!(named, "{user:?}: {word}");
            }
            let unique: BTreeSet<&&str> = words.iter().collect();
            assert_eq!(unique.len(), words.len(), "{user:?}: {rules}");
        }
    }

    /// Whatever is copied or replayed needs keys; who only looks gets none.
    #[test]
    fn only_those_that_write_reach_keys() {
        let reaches = |user| rules(user, Abilities::default()).contains("~*");
        let writers = OwnUser::ALL.into_iter().filter(|user| reaches(*user));
        let writers: Vec<OwnUser> = writers.collect();
        assert_eq!(writers, [OwnUser::Operator, OwnUser::Restore]);
    }
}

//! What is next: which users the servers are to have from now on, given what the spec says and what they have. Pure.
//!
//! Nothing is taken away before what replaces it is on every server. A password: first its hash is added, then the suite's own programs log
//! in by it, then the one before goes. Users of a cluster that had none: first they are added and pods made that start with them, then
//! `default` is closed. And backwards the same.

use super::{
    own::{self, Abilities},
    state::{AcceptedUser, UsersState},
    wanted::{WantedUser, WantedUsers},
};
use crate::{pods::Mounted, redis::users::PasswordHash};
use crds::{Authentication, OwnUser, PasswordSecretRef};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// So long after a Secret has changed the kubelets have put it into running pods (`syncFrequency`, a minute, and some). A server that
/// restarts before starts with the users of before, and none logs in to it by a password that it does not know then.
const MOUNTED_AFTER: SignedDuration = SignedDuration::from_secs(150);

/// The passwords of an own user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnHashes {
    /// The one that is wanted.
    pub wanted: PasswordHash,
    /// The one that every server has accepted.
    pub accepted: PasswordHash,
}

/// A server, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsersOfServer {
    /// Hash of the users that it was given and still has.
    pub applied: Option<String>,
    /// By which password it copies other servers.
    pub copies_with: Option<PasswordHash>,
    /// What it can do besides.
    pub abilities: Abilities,
}

/// What is known.
pub struct UsersInputs<'a> {
    /// What the spec says.
    pub wanted: &'a WantedUsers,
    /// What the servers are to have until now.
    pub state: &'a UsersState,
    /// The passwords of the own users.
    pub own: &'a BTreeMap<OwnUser, OwnHashes>,
    /// The passwords of clients' users; none where the Secret or the key is missing.
    pub passwords: &'a BTreeMap<PasswordSecretRef, Option<PasswordHash>>,
    /// The servers; none where not every one answers and feeds replicas.
    pub servers: Option<&'a [UsersOfServer]>,
    /// Whether every pod, or none, starts with the users.
    pub mounted: Mounted,
    /// Whether nothing would lose its connection if `default` were closed: no slots move, no operation holds the cluster, and every replica
    /// has logged in as the user for replicas.
    pub may_close: bool,
    /// What servers answered to rules: by user and rules, their words where they refused.
    pub answers: &'a BTreeMap<(String, String), Option<String>>,
    /// Now.
    pub now: Timestamp,
}

/// What is next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsersPlan {
    /// What the servers are to have.
    pub state: UsersState,
    /// Rules that every server has to be asked about, by user.
    pub trials: Vec<(String, String)>,
    /// Own users whose wanted password every server knows: their programs can log in by it.
    pub accept: Vec<OwnUser>,
    /// Whether servers copy each other by the wanted password already, rather than by the accepted one.
    pub copies_by_wanted: bool,
    /// Whether no pod starts with the users any more, so that they can be removed.
    pub remove: bool,
    /// What the user has to correct: reason and message.
    pub problems: Vec<UsersProblem>,
}

/// What keeps the users of the spec from being applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UsersProblem {
    /// Servers refuse rules.
    RulesRefused {
        /// Name of the user, as in the spec.
        user: String,
        /// What they say.
        words: String,
    },
    /// There is no password.
    PasswordMissing {
        /// Name of the user, as in the spec.
        user: String,
        /// Where it was looked for.
        place: PasswordSecretRef,
    },
}

impl UsersProblem {
    /// CamelCase.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::RulesRefused { .. } => "RulesRefused",
            Self::PasswordMissing { .. } => "PasswordMissing",
        }
    }
}

impl std::fmt::Display for UsersProblem {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::RulesRefused { user, words } => write!(
                out,
                "user {user}: the servers refuse its rules ({words}); correct them in spec.auth, until then nothing of them applies"
            ),
            Self::PasswordMissing { user, place } => write!(
                out,
                "user {user}: Secret {} has no key {} with a password; create it, or correct spec.auth",
                place.name, place.key
            ),
        }
    }
}

/// The users of a cluster that begins to have some.
pub fn first(
    phase: Authentication,
    abilities: Abilities,
    own: &BTreeMap<OwnUser, OwnHashes>,
) -> UsersState {
    let mut state = UsersState {
        phase,
        abilities,
        ..UsersState::default()
    };
    add_own(
        &mut state,
        own,
        (Timestamp::UNIX_EPOCH, SignedDuration::ZERO),
    );
    state
}

/// What is next.
pub fn plan(inputs: &UsersInputs<'_>) -> UsersPlan {
    let mut plan = UsersPlan {
        state: inputs.state.clone(),
        ..UsersPlan::default()
    };
    plan.state.abilities = abilities(inputs);
    add_own(
        &mut plan.state,
        inputs.own,
        (inputs.now, inputs.wanted.overlap),
    );
    add_clients(&mut plan, inputs);
    let settled = settled(inputs);
    if settled {
        drop_replaced(&mut plan.state, inputs);
        accept(&mut plan, inputs);
    }
    let lets_all_in = lets_all_in(&plan.state, inputs.wanted);
    let (phase, remove) = phase(inputs, settled, lets_all_in);
    if phase != plan.state.phase {
        plan.state.phase = phase;
        plan.state.since = inputs.now;
    }
    plan.remove = remove;
    plan
}

/// Drops replaced passwords. A server that was started by an older mount may still copy others by one.
fn drop_replaced(state: &mut UsersState, inputs: &UsersInputs<'_>) {
    let servers = inputs.servers.unwrap_or_default().iter();
    let copied_with: Vec<&PasswordHash> = servers
        .filter_map(|server| server.copies_with.as_ref())
        .collect();
    for (name, user) in &mut state.users {
        let is_for_copies = name == OwnUser::Replication.name();
        let used: &[&PasswordHash] = if is_for_copies { &copied_with } else { &[] };
        user.drop_replaced(inputs.now, used);
    }
}

/// Whether every user of the spec that is on can log in: a client whose user the servers have refused is let in as `default` until then.
fn lets_all_in(state: &UsersState, wanted: &WantedUsers) -> bool {
    let mut users = wanted.users.iter().filter(|user| user.enabled);
    users.all(|user| {
        let known = state.users.get(&user.name);
        known.is_some_and(|one| one.no_password || !one.passwords.is_empty())
    })
}

/// Whether every server has what it was given last.
fn settled(inputs: &UsersInputs<'_>) -> bool {
    let hash = inputs.state.hash();
    inputs.servers.is_some_and(|servers| {
        let mut servers = servers.iter();
        servers.all(|server| server.applied.as_ref() == Some(&hash))
    })
}

/// An ability is added once every server has it, and stays: servers do not go back over a series.
fn abilities(inputs: &UsersInputs<'_>) -> Abilities {
    let before = inputs.state.abilities;
    let servers = inputs.servers.unwrap_or_default();
    let all = |has: fn(&Abilities) -> bool| {
        !servers.is_empty() && servers.iter().all(|one| has(&one.abilities))
    };
    Abilities {
        functions: before.functions || all(|one| one.functions),
        moves: before.moves || all(|one| one.moves),
    }
}

fn add_own(
    state: &mut UsersState,
    own: &BTreeMap<OwnUser, OwnHashes>,
    time: (Timestamp, SignedDuration),
) {
    for (user, hashes) in own {
        let one = state.users.entry(user.name().to_owned()).or_default();
        one.enabled = true;
        one.rules = own::rules(*user, state.abilities);
        one.set_passwords(&[hashes.wanted.clone(), hashes.accepted.clone()], time);
    }
}

/// Takes over what the spec says of each user, as far as it is known to work.
fn add_clients(plan: &mut UsersPlan, inputs: &UsersInputs<'_>) {
    let wanted: BTreeSet<&str> = inputs
        .wanted
        .users
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    let own: BTreeSet<&str> = OwnUser::ALL.iter().map(|user| user.name()).collect();
    let is_wanted = |name: &str| wanted.contains(name) || own.contains(name);
    // While it is turned off, its users stay until they all go.
    if inputs.wanted.enabled != Some(false) {
        plan.state.users.retain(|name, _| is_wanted(name));
    }
    for user in &inputs.wanted.users {
        let Some(rules) = taken_rules(plan, inputs, user) else {
            continue;
        };
        let passwords = passwords(plan, inputs, user);
        let one = plan.state.users.entry(user.name.clone()).or_default();
        one.rules = rules;
        one.enabled = user.enabled;
        one.no_password = user.no_password;
        if let Some(passwords) = passwords {
            one.set_passwords(&passwords, (inputs.now, inputs.wanted.overlap));
        }
    }
}

/// The rules that a user is to have: those of the spec once every server takes them, else those that it had.
fn taken_rules(
    plan: &mut UsersPlan,
    inputs: &UsersInputs<'_>,
    user: &WantedUser,
) -> Option<String> {
    let before = plan.state.users.get(&user.name).map(|one| &one.rules);
    if before == Some(&user.rules) || user.is_plain() {
        return Some(user.rules.clone());
    }
    let key = (user.name.clone(), user.rules.clone());
    match inputs.answers.get(&key) {
        Some(None) => Some(user.rules.clone()),
        Some(Some(words)) => {
            let kept = before.cloned();
            plan.problems.push(UsersProblem::RulesRefused {
                user: user.name.clone(),
                words: words.clone(),
            });
            kept
        }
        None => {
            let kept = before.cloned();
            plan.trials.push(key);
            kept
        }
    }
}

/// The passwords of the spec. None: one is missing, so those that it had stay.
fn passwords(
    plan: &mut UsersPlan,
    inputs: &UsersInputs<'_>,
    user: &WantedUser,
) -> Option<Vec<PasswordHash>> {
    let mut found = Vec::new();
    for place in &user.passwords {
        if let Some(Some(hash)) = inputs.passwords.get(place) {
            found.push(hash.clone());
        } else {
            plan.problems.push(UsersProblem::PasswordMissing {
                user: user.name.clone(),
                place: place.clone(),
            });
        }
    }
    (found.len() == user.passwords.len()).then_some(found)
}

/// Own users whose wanted password every server knows. Servers copy each other by it before it counts as accepted.
fn accept(plan: &mut UsersPlan, inputs: &UsersInputs<'_>) {
    for (user, hashes) in inputs.own {
        let known = inputs.state.users.get(user.name());
        let is_known = known.is_some_and(|one: &AcceptedUser| {
            let since = one
                .changed
                .map(|changed| inputs.now.duration_since(changed));
            let is_mounted = since.is_none_or(|since| since >= MOUNTED_AFTER);
            one.knows(&hashes.wanted) && is_mounted
        });
        if !is_known {
            continue;
        }
        let is_used = match user {
            OwnUser::Replication => {
                plan.copies_by_wanted = true;
                let mut servers = inputs.servers.unwrap_or_default().iter();
                servers.all(|one| one.copies_with.as_ref() == Some(&hashes.wanted))
            }
            OwnUser::Operator
            | OwnUser::Backup
            | OwnUser::Restore
            | OwnUser::Probe
            | OwnUser::Exporter => true,
        };
        if is_used && hashes.wanted != hashes.accepted {
            plan.accept.push(*user);
        }
    }
}

/// How far clients have to log in, and whether the users can be removed.
fn phase(inputs: &UsersInputs<'_>, settled: bool, lets_all_in: bool) -> (Authentication, bool) {
    // So long a server may restart with what was mounted in the phase before.
    let is_mounted = inputs.now.duration_since(inputs.state.since) >= MOUNTED_AFTER;
    let off = inputs.wanted.enabled == Some(false);
    match inputs.state.phase {
        Authentication::Required if off => (Authentication::Introducing, false),
        Authentication::Required => (Authentication::Required, false),
        // Pods are made without the users once every server lets clients in without.
        Authentication::Introducing if off && settled && is_mounted => {
            (Authentication::Withdrawing, false)
        }
        Authentication::Withdrawing if off => {
            let remove = settled && inputs.mounted == Mounted::None;
            (Authentication::Withdrawing, remove)
        }
        // The templates are still those without users.
        Authentication::Off | Authentication::Withdrawing => (Authentication::Introducing, false),
        Authentication::Introducing => {
            let is_ready = settled && lets_all_in && inputs.mounted == Mounted::All;
            let next = if !off && is_ready && inputs.may_close {
                Authentication::Required
            } else {
                Authentication::Introducing
            };
            (next, false)
        }
    }
}

#[cfg(test)]
mod tests;

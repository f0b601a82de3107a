use super::*;
use crate::{
    build::RELOAD_SECONDS,
    redis::users::DEFAULT,
    users::{
        state::{EVERYTHING, UserLine},
        wanted::WantedUser,
    },
};
use proptest::prelude::*;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;
const OVERLAP: SignedDuration = SignedDuration::from_mins(5);

fn hash(text: &str) -> PasswordHash {
    PasswordHash::of(text)
}

fn place(name: &str) -> PasswordSecretRef {
    PasswordSecretRef {
        name: name.to_owned(),
        key: "password".to_owned(),
    }
}

/// A cluster of two servers that have what they were given last.
#[derive(Clone)]
struct Stage {
    wanted: WantedUsers,
    state: UsersState,
    own: BTreeMap<OwnUser, OwnHashes>,
    passwords: BTreeMap<PasswordSecretRef, Option<PasswordHash>>,
    /// What each server was given last, and by which password it copies.
    servers: Vec<(Option<UsersState>, Option<PasswordHash>)>,
    mounted: Mounted,
    may_close: bool,
    answers: BTreeMap<(String, String), Option<String>>,
    now: Timestamp,
}

impl Stage {
    fn new(phase: Authentication) -> Self {
        let own = OwnUser::ALL.into_iter().map(|user| {
            let accepted = hash(user.name());
            let wanted = accepted.clone();
            (user, OwnHashes { wanted, accepted })
        });
        let own: BTreeMap<OwnUser, OwnHashes> = own.collect();
        let state = first(phase, Abilities::default(), &own);
        let copies_with = Some(own[&OwnUser::Replication].accepted.clone());
        Self {
            wanted: WantedUsers {
                enabled: Some(true),
                users: Vec::new(),
                overlap: OVERLAP,
            },
            servers: vec![(Some(state.clone()), copies_with); 2],
            state,
            own,
            passwords: BTreeMap::new(),
            mounted: Mounted::All,
            may_close: true,
            answers: BTreeMap::new(),
            now: NOW,
        }
    }

    fn wants(&mut self, name: &str, rules: &str) {
        self.wanted.users.retain(|user| user.name != name);
        self.wanted.users.push(WantedUser {
            name: name.to_owned(),
            enabled: true,
            no_password: false,
            rules: rules.to_owned(),
            passwords: vec![place(name)],
        });
        self.passwords
            .entry(place(name))
            .or_insert(Some(hash(name)));
    }

    fn answers(&mut self, name: &str, rules: &str, refused: Option<&str>) {
        let key = (name.to_owned(), rules.to_owned());
        self.answers.insert(key, refused.map(ToOwned::to_owned));
    }

    fn plan(&self) -> UsersPlan {
        let servers: Vec<UsersOfServer> = self
            .servers
            .iter()
            .map(|(state, copies_with)| UsersOfServer {
                applied: state.as_ref().map(UsersState::hash),
                copies_with: copies_with.clone(),
                abilities: Abilities {
                    functions: true,
                    moves: false,
                },
            })
            .collect();
        plan(&UsersInputs {
            wanted: &self.wanted,
            state: &self.state,
            own: &self.own,
            passwords: &self.passwords,
            servers: Some(&servers),
            mounted: self.mounted,
            may_close: self.may_close,
            answers: &self.answers,
            now: self.now,
        })
    }

    /// Does what a plan says, on all servers but those that miss it.
    fn reconcile(&mut self, misses: &[usize]) -> UsersPlan {
        let settled = settled_on(self);
        let plan = self.plan();
        for user in &plan.accept {
            let hashes = self.own.get_mut(user).unwrap();
            hashes.accepted = hashes.wanted.clone();
        }
        self.state = plan.state.clone();
        for (index, server) in self.servers.iter_mut().enumerate() {
            if misses.contains(&index) {
                continue;
            }
            server.0 = Some(plan.state.clone());
            if settled {
                let hashes = &self.own[&OwnUser::Replication];
                let by = if plan.copies_by_wanted {
                    &hashes.wanted
                } else {
                    &hashes.accepted
                };
                server.1 = Some(by.clone());
            }
        }
        plan
    }

    fn pass(&mut self, time: SignedDuration) {
        self.now += time;
    }

    fn line(&self, name: &str) -> Option<UserLine> {
        self.state.lines().into_iter().find(|(one, _)| one == name)
    }
}

fn settled_on(stage: &Stage) -> bool {
    let hash = stage.state.hash();
    let mut servers = stage.servers.iter();
    servers.all(|(state, _)| state.as_ref().is_some_and(|one| one.hash() == hash))
}

#[test]
fn refused_rules_change_nothing_and_are_named() {
    let mut stage = Stage::new(Authentication::Required);
    stage.wants("app", "+get");
    let asked = stage.plan();
    assert_eq!(asked.trials, [("app".to_owned(), "+get".to_owned())]);
    assert!(!asked.state.users.contains_key("app"), "before it is tried");
    stage.answers("app", "+get", None);
    stage.reconcile(&[]);
    let before = stage.line("app").unwrap();
    stage.wants("app", "+gett");
    stage.answers("app", "+gett", Some("Unknown command"));
    let plan = stage.reconcile(&[]);
    assert_eq!(plan.problems.len(), 1);
    assert_eq!(plan.problems[0].reason(), "RulesRefused");
    assert_eq!(stage.line("app").unwrap(), before);
}

#[test]
fn a_missing_password_keeps_the_one_before() {
    let mut stage = Stage::new(Authentication::Required);
    stage.wants("app", EVERYTHING);
    stage.reconcile(&[]);
    let before = stage.line("app").unwrap();
    stage.passwords.insert(place("app"), None);
    let plan = stage.reconcile(&[]);
    assert_eq!(plan.problems[0].reason(), "PasswordMissing");
    assert!(plan.problems[0].to_string().contains("Secret app"));
    assert_eq!(stage.line("app").unwrap(), before);
}

#[test]
fn a_user_that_is_taken_out_is_removed() {
    let mut stage = Stage::new(Authentication::Required);
    stage.wants("app", EVERYTHING);
    stage.reconcile(&[]);
    stage.wanted.users.clear();
    stage.reconcile(&[]);
    assert_eq!(stage.line("app"), None);
    assert!(stage.line(OwnUser::Operator.name()).is_some());
}

#[test]
fn a_password_is_used_once_every_server_knows_it() {
    let mut stage = Stage::new(Authentication::Required);
    stage.reconcile(&[]);
    let new = hash("new");
    for hashes in stage.own.values_mut() {
        hashes.wanted = new.clone();
    }
    assert!(stage.reconcile(&[1]).accept.is_empty());
    stage.pass(MOUNTED_AFTER);
    assert!(stage.reconcile(&[1]).accept.is_empty(), "one lacks it");
    stage.reconcile(&[]);
    let accepted = stage.reconcile(&[]).accept;
    assert!(accepted.contains(&OwnUser::Operator));
    assert!(
        !accepted.contains(&OwnUser::Replication),
        "no server uses it"
    );
    assert!(stage.reconcile(&[]).accept.contains(&OwnUser::Replication));
    let line = stage.line(OwnUser::Operator.name()).unwrap().1;
    let old = hash(OwnUser::Operator.name());
    assert!(line.contains(&old.rule()) && line.contains(&new.rule()));
    stage.reconcile(&[]);
    stage.pass(OVERLAP);
    stage.reconcile(&[]);
    let line = stage.line(OwnUser::Operator.name()).unwrap().1;
    assert!(!line.contains(&old.rule()) && line.contains(&new.rule()));
}

/// A server that restarts before its pod has the Secret would refuse it.
#[test]
fn a_password_is_used_once_running_pods_mount_it() {
    let mut stage = Stage::new(Authentication::Required);
    stage.reconcile(&[]);
    stage.own.get_mut(&OwnUser::Operator).unwrap().wanted = hash("new");
    stage.reconcile(&[]);
    stage.pass(MOUNTED_AFTER - SignedDuration::from_secs(1));
    assert!(stage.reconcile(&[]).accept.is_empty());
    stage.pass(SignedDuration::from_secs(1));
    assert_eq!(stage.reconcile(&[]).accept, [OwnUser::Operator]);
}

/// Its Secret has the accepted password alone: it takes a kubelet and a probe until it uses that.
#[test]
fn an_exporter_has_the_new_password_in_time() {
    let mut stage = Stage::new(Authentication::Required);
    stage.wanted.overlap = SignedDuration::from_mins(3);
    stage.reconcile(&[]);
    stage.own.get_mut(&OwnUser::Exporter).unwrap().wanted = hash("new");
    stage.reconcile(&[]);
    stage.pass(MOUNTED_AFTER);
    assert_eq!(stage.reconcile(&[]).accept, [OwnUser::Exporter]);
    stage.reconcile(&[]);
    let until_used = MOUNTED_AFTER + SignedDuration::from_secs(RELOAD_SECONDS.into());
    stage.pass(until_used - SignedDuration::from_secs(1));
    stage.reconcile(&[]);
    let old = hash(OwnUser::Exporter.name());
    let line = stage.line(OwnUser::Exporter.name()).unwrap().1;
    assert!(line.contains(&old.rule()), "{line}");
}

#[test]
fn default_closes_once_nothing_needs_it() {
    let closes = |change: &dyn Fn(&mut Stage)| {
        let mut stage = Stage::new(Authentication::Introducing);
        stage.may_close = false;
        stage.reconcile(&[]);
        stage.may_close = true;
        change(&mut stage);
        stage.plan().state.phase == Authentication::Required
    };
    assert!(closes(&|_| ()));
    assert!(!closes(&|stage| stage.mounted = Mounted::Some));
    assert!(!closes(&|stage| stage.mounted = Mounted::None));
    assert!(!closes(&|stage| stage.may_close = false));
    assert!(!closes(&|stage| stage.servers[0].0 = None));
    assert!(!closes(&|stage| stage.wanted.enabled = Some(false)));
}

#[test]
fn users_go_once_no_pod_starts_with_them() {
    let mut stage = Stage::new(Authentication::Required);
    stage.wants("app", EVERYTHING);
    stage.reconcile(&[]);
    stage.wanted.enabled = Some(false);
    stage.wanted.users.clear();
    // First every server lets clients in without, also one that restarts; then pods are made without.
    let phase = |stage: &mut Stage, misses: &[usize]| stage.reconcile(misses).state.phase;
    assert_eq!(phase(&mut stage, &[1]), Authentication::Introducing);
    assert_eq!(phase(&mut stage, &[]), Authentication::Introducing);
    assert_eq!(phase(&mut stage, &[]), Authentication::Introducing);
    stage.pass(MOUNTED_AFTER);
    assert_eq!(phase(&mut stage, &[]), Authentication::Withdrawing);
    assert!(stage.line("app").is_some(), "its clients may still log in");
    stage.reconcile(&[]);
    stage.mounted = Mounted::Some;
    assert!(!stage.reconcile(&[]).remove);
    stage.mounted = Mounted::None;
    assert!(stage.reconcile(&[]).remove);
    // The templates have no users yet.
    stage.wanted.enabled = Some(true);
    stage.mounted = Mounted::All;
    assert_eq!(phase(&mut stage, &[]), Authentication::Introducing);
}

#[test]
fn default_stays_open_while_a_client_has_no_user() {
    let mut stage = Stage::new(Authentication::Introducing);
    let phase = |stage: &mut Stage| stage.reconcile(&[]).state.phase;
    stage.wants("app", "+gett");
    phase(&mut stage);
    assert_eq!(phase(&mut stage), Authentication::Introducing);
    stage.answers("app", "+gett", Some("Unknown command"));
    assert_eq!(phase(&mut stage), Authentication::Introducing);
    stage.wants("app", EVERYTHING);
    phase(&mut stage);
    assert_eq!(phase(&mut stage), Authentication::Required);
}

#[test]
fn a_replaced_password_stays_while_a_server_copies_by_it() {
    let mut stage = Stage::new(Authentication::Required);
    stage.reconcile(&[]);
    let old = stage.own[&OwnUser::Replication].accepted.clone();
    let hashes = stage.own.get_mut(&OwnUser::Replication).unwrap();
    (hashes.wanted, hashes.accepted) = (hash("new"), hash("new"));
    stage.reconcile(&[]);
    for (_, copies_with) in &mut stage.servers {
        *copies_with = Some(old.clone());
    }
    stage.pass(OVERLAP);
    let knows = |plan: UsersPlan| {
        let user = plan.state.users[OwnUser::Replication.name()].clone();
        user.replaced.contains_key(old.digits())
    };
    assert!(knows(stage.plan()));
    for (_, copies_with) in &mut stage.servers {
        *copies_with = Some(hash("new"));
    }
    assert!(!knows(stage.plan()));
}

#[test]
fn abilities_are_used_once_every_server_has_them() {
    let mut stage = Stage::new(Authentication::Required);
    let rules = |stage: &Stage| stage.line(OwnUser::Operator.name()).unwrap().1;
    assert!(!rules(&stage).contains("+function|dump"));
    stage.reconcile(&[]);
    assert!(rules(&stage).contains("+function|dump"));
    assert!(!rules(&stage).contains("migrateslots"));
}

/// What happens between two reconciles.
#[derive(Clone, Debug)]
enum Happening {
    Password(usize, u8),
    AppPassword(u8),
    Enabled(bool),
    Restart(usize),
    Roll(usize),
    Pass(i64),
    Reconcile(Vec<usize>),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        1 => (0..OwnUser::ALL.len(), 0..3_u8).prop_map(|(user, new)| Happening::Password(user, new)),
        1 => (0..3_u8).prop_map(Happening::AppPassword),
        1 => any::<bool>().prop_map(Happening::Enabled),
        1 => (0..2_usize).prop_map(Happening::Restart),
        1 => (0..2_usize).prop_map(Happening::Roll),
        1 => (0..600_i64).prop_map(Happening::Pass),
        6 => prop::collection::vec(0..2_usize, 0..2).prop_map(Happening::Reconcile),
    ]
}

/// The stage with what the pods of its servers mount: none where a pod was made without users, else the newest and the one of up to two
/// minutes ago, each with the password to copy by.
struct Life {
    stage: Stage,
    mounts: Vec<bool>,
    written: Vec<(Timestamp, UsersState, PasswordHash)>,
}

impl Life {
    fn new() -> Self {
        let mut stage = Stage::new(Authentication::Introducing);
        stage.mounted = Mounted::None;
        stage.servers = vec![(None, None); 2];
        stage.wants("app", EVERYTHING);
        let mut life = Self {
            stage,
            mounts: vec![false; 2],
            written: Vec::new(),
        };
        life.write();
        life
    }

    fn write(&mut self) {
        let by = self.stage.own[&OwnUser::Replication].accepted.clone();
        let now = self.stage.now;
        self.written.push((now, self.stage.state.clone(), by));
    }

    /// What a pod has that was last brought up to date two minutes ago at the latest.
    fn stale(&self) -> (UsersState, PasswordHash) {
        let oldest = self.stage.now - MOUNTED_AFTER;
        let mut known = self.written.iter().rev();
        let found = known.find(|(at, ..)| *at <= oldest);
        let (_, state, by) = found.unwrap_or(&self.written[0]);
        (state.clone(), by.clone())
    }

    fn happens(&mut self, event: &Happening) {
        let stage = &mut self.stage;
        match event {
            Happening::Password(user, new) => {
                let user = OwnUser::ALL[*user];
                let new = hash(&format!("{} {new}", user.name()));
                stage.own.get_mut(&user).unwrap().wanted = new;
            }
            Happening::AppPassword(new) => {
                let new = Some(hash(&format!("app {new}")));
                stage.passwords.insert(place("app"), new);
            }
            Happening::Enabled(enabled) => stage.wanted.enabled = Some(*enabled),
            Happening::Restart(index) => {
                self.stage.servers[*index] = if self.mounts[*index] {
                    let (users, by) = self.stale();
                    (Some(users), Some(by))
                } else {
                    (None, None)
                };
            }
            Happening::Roll(index) => {
                self.mounts[*index] = stage.state.phase != Authentication::Withdrawing;
                let (_, users, by) = self.written.last().unwrap().clone();
                self.stage.servers[*index] = if self.mounts[*index] {
                    (Some(users), Some(by))
                } else {
                    (None, None)
                };
            }
            Happening::Pass(seconds) => stage.pass(SignedDuration::from_secs(*seconds)),
            Happening::Reconcile(misses) => {
                self.stage.reconcile(misses);
                self.write();
            }
        }
        self.stage.mounted = match self.mounts.iter().filter(|mounts| **mounts).count() {
            0 => Mounted::None,
            2 => Mounted::All,
            _ => Mounted::Some,
        };
    }

    /// Every program of ours is let in, by the password that it uses now, and servers can copy each other. One that restarts without users
    /// cannot be copied until it is given them.
    fn check(&self) {
        let lets_in = |state: &Option<UsersState>, user: OwnUser, password: &PasswordHash| {
            let Some(state) = state else { return true };
            let lines = state.lines();
            let line = lines.iter().find(|(name, _)| name == user.name());
            let knows = line.is_some_and(|(_, rules)| rules.contains(&password.rule()));
            knows || state.phase != Authentication::Required
        };
        for (state, copies_with) in &self.stage.servers {
            for (user, hashes) in &self.stage.own {
                assert!(
                    lets_in(state, *user, &hashes.accepted),
                    "{user:?} is refused"
                );
            }
            if let Some(state) = state
                && state.phase == Authentication::Required
            {
                assert!(self.mounts.iter().all(|mounts| *mounts), "closed too early");
            }
            let Some(by) = copies_with else { continue };
            for (other, _) in &self.stage.servers {
                assert!(
                    other.is_none() || lets_in(other, OwnUser::Replication, by),
                    "a server cannot copy another one"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn none_of_ours_is_ever_refused(events in prop::collection::vec(happening(), 0..60)) {
        let mut life = Life::new();
        for event in &events {
            life.happens(event);
            life.check();
        }
        // And in the end all is as wanted.
        for _ in 0..12 {
            life.happens(&Happening::Reconcile(Vec::new()));
            life.check();
            for index in 0..2 {
                if life.mounts[index] == (life.stage.state.phase == Authentication::Withdrawing) {
                    life.happens(&Happening::Roll(index));
                }
            }
            life.happens(&Happening::Pass(600));
            life.check();
        }
        let plan = life.stage.plan();
        if life.stage.wanted.enabled == Some(false) {
            prop_assert!(plan.remove);
        } else {
            prop_assert_eq!(plan.state.phase, Authentication::Required);
            prop_assert!(plan.state.users.values().all(|user| user.replaced.is_empty()));
            prop_assert!(life.stage.own.values().all(|one| one.wanted == one.accepted));
            prop_assert!(!plan.state.users.contains_key(DEFAULT));
        }
    }
}

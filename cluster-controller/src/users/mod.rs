//! The users of a cluster's servers: those of the spec for clients, and own ones by which the suite's programs log in.
//!
//! Data and decisions, pure: [`wanted`], [`own`], [`state`], [`plan`]. Input and output: [`secrets`], [`servers`], and both together here.
//! What the servers are to have is written into a Secret first, with which pods start, and then given to servers that run; so a server that
//! restarts has it. What a server says of its users is read by [`crate::redis::users`].

pub mod error;
pub mod own;
pub mod plan;
pub mod report;
pub mod secrets;
pub mod servers;
pub mod state;
pub mod tracker;
pub mod wanted;

use crate::{
    context::Context,
    observe::Observed,
    pods::{self, Mounted, Pods},
    redis::{
        member::{Member, Report},
        users::PasswordHash,
    },
    validate::Shape,
};
use common::{
    cluster::{endpoint::Login, info::Family},
    kubernetes::expectations::OwnerKey,
};
use crds::{Authentication, OwnUser, PasswordSecretRef, RedisCluster, VOLUME_USERS};
use error::UsersError;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::OwnerReference, jiff::Timestamp};
use own::Abilities;
use plan::{OwnHashes, UsersInputs, UsersOfServer, UsersPlan, plan};
use report::UsersReport;
use secrecy::{ExposeSecret, SecretString};
use secrets::{OwnPassword, Passwords};
use state::UsersState;
use std::collections::BTreeMap;
use wanted::{Rules, WantedUsers};

/// The users of a cluster, as its Secrets and its spec have them.
#[derive(Clone, Debug, Default)]
pub struct ClusterUsers {
    /// How the controller logs in.
    pub login: Login,
    /// How far clients have to log in.
    phase: Authentication,
    /// None: there are none, or they cannot be read just now.
    known: Option<KnownUsers>,
}

#[derive(Clone, Debug)]
struct KnownUsers {
    owner: OwnerReference,
    wanted: WantedUsers,
    state: UsersState,
    own: BTreeMap<OwnUser, OwnPassword>,
    passwords: BTreeMap<PasswordSecretRef, Option<SecretString>>,
    templates: Mounted,
}

/// What tells whether a cluster has users at all.
#[derive(Clone, Copy, Debug)]
pub struct UsersEvidence {
    /// Whether nothing of the cluster exists yet.
    pub is_new: bool,
    /// Whether a pod starts with users.
    pub mounts: bool,
    /// Whether the templates of pods do.
    pub templates: Mounted,
}

impl ClusterUsers {
    /// Whether pods are to start with the users.
    pub fn are_mounted(&self) -> bool {
        match self.phase {
            Authentication::Introducing | Authentication::Required => true,
            Authentication::Off | Authentication::Withdrawing => false,
        }
    }
}

/// Reads the Secrets, and makes those that are missing. A cluster without users has none, and needs no right to read any.
pub async fn read(
    context: &Context,
    object: &RedisCluster,
    shape: &Shape,
    owner: OwnerReference,
    evidence: UsersEvidence,
) -> Result<ClusterUsers, UsersError> {
    let wanted = WantedUsers::of(object);
    let status = object.status.as_ref();
    let before = status.map(|status| status.authentication);
    let Some(phase) = phase(&wanted, before.unwrap_or_default(), evidence) else {
        return Ok(ClusterUsers::default());
    };
    let place = (shape.namespace.as_str(), shape.name.as_str());
    let secrets = Passwords(context.secrets_of(place, &owner, !shape.paused));
    let mut own = BTreeMap::new();
    for user in OwnUser::ALL {
        own.insert(user, secrets.own(user).await?);
    }
    let passwords = secrets.passwords(wanted.secrets()).await?;
    let state = if let Some(state) = secrets.state().await? {
        state
    } else {
        let state = plan::first(phase, Abilities::default(), &hashes(&own));
        write(&secrets, &state, &own).await?;
        state
    };
    let login = login(&own, state.phase);
    let phase = state.phase;
    let known = KnownUsers {
        owner,
        wanted,
        state,
        own,
        passwords,
        templates: evidence.templates,
    };
    Ok(ClusterUsers {
        login,
        phase,
        known: Some(known),
    })
}

/// How the controller logs in where the Secrets cannot be read just now: as it did before. None: that is not known either.
pub fn remembered(context: &Context, object: &RedisCluster, shape: &Shape) -> Option<ClusterUsers> {
    let phase = object.status.as_ref()?.authentication;
    let memory = &context.secrets;
    let password = memory.accepted(&shape.namespace, &shape.name, OwnUser::Operator)?;
    if phase == Authentication::Off {
        return None;
    }
    let login = Login::of(OwnUser::Operator, password, phase);
    Some(ClusterUsers {
        login,
        phase,
        known: None,
    })
}

/// How far the clients of a cluster have to log in that has no state of its users yet; none where it is to have none.
fn phase(
    wanted: &WantedUsers,
    before: Authentication,
    evidence: UsersEvidence,
) -> Option<Authentication> {
    if before != Authentication::Off {
        return Some(before);
    }
    // One whose controller ended before it wrote the status.
    if evidence.mounts || evidence.templates != Mounted::None {
        return Some(Authentication::Required);
    }
    match wanted.enabled {
        None | Some(true) if evidence.is_new => Some(Authentication::Required),
        Some(true) => Some(Authentication::Introducing),
        // Without a word about users, one from before there were any stays as it is.
        None | Some(false) => None,
    }
}

fn login(own: &BTreeMap<OwnUser, OwnPassword>, phase: Authentication) -> Login {
    let Some(password) = own.get(&OwnUser::Operator) else {
        return Login::None;
    };
    Login::of(OwnUser::Operator, password.accepted.clone(), phase)
}

fn hashes(own: &BTreeMap<OwnUser, OwnPassword>) -> BTreeMap<OwnUser, OwnHashes> {
    let of = |password: &SecretString| PasswordHash::of(password.expose_secret());
    let pairs = own.iter().map(|(user, passwords)| {
        let hashes = OwnHashes {
            wanted: of(&passwords.wanted),
            accepted: of(&passwords.accepted),
        };
        (*user, hashes)
    });
    pairs.collect()
}

async fn write(
    secrets: &Passwords<'_>,
    state: &UsersState,
    own: &BTreeMap<OwnUser, OwnPassword>,
) -> Result<(), UsersError> {
    let accepted = |user| {
        let passwords: Option<&OwnPassword> = own.get(&user);
        passwords.map_or_else(SecretString::default, |one| one.accepted.clone())
    };
    let (replication, probe) = (accepted(OwnUser::Replication), accepted(OwnUser::Probe));
    secrets.write_state(state, &replication, &probe).await
}

/// Takes the next step: tries rules, writes what the servers are to have, gives it to them.
pub async fn carry_out(
    context: &Context,
    owner: &OwnerKey,
    users: &ClusterUsers,
    observed: &Observed,
) -> Result<UsersReport, UsersError> {
    let Some(known) = &users.known else {
        return Ok(seen(users, observed));
    };
    let place = (owner.namespace.as_str(), owner.name.as_str());
    let secrets = Passwords(context.secrets_of(place, &known.owner, true));
    let connections = context.connections.of(place);
    let members = &observed.members;
    let now = Timestamp::now();
    let next = |may_close| {
        let answers = context.rules.answers(place);
        decide(known, observed, &answers, may_close, now)
    };
    let mut plan = next(false);
    let asked = context.rules.due(place, &plan.trials, now);
    if !asked.is_empty() {
        let answers = servers::ask_rules(members, &connections, &asked).await;
        context.rules.note(place, answers, now);
        plan = next(false);
    }
    // What is asked for it costs more than the rest, so it is asked only where all else is ready.
    let closed = next(true);
    if closed.state.phase != plan.state.phase
        && context.is_idle(place).await
        && servers::replicas_log_in(members, &connections).await
    {
        plan = closed;
    }
    if plan.remove {
        if servers::remove(members, &connections).await {
            secrets.remove().await?;
            return Ok(UsersReport::default());
        }
        return Ok(report(known, &plan, members));
    }
    let mut own = known.own.clone();
    for user in &plan.accept {
        if let Some(passwords) = own.get_mut(user) {
            secrets.accept(*user, passwords).await?;
            passwords.accepted = passwords.wanted.clone();
        }
    }
    write(&secrets, &plan.state, &own).await?;
    servers::give(members, &connections, &plan.state).await;
    let settled = lacking(members, &known.state).is_empty();
    if let Some(passwords) = own.get(&OwnUser::Replication)
        && settled
        && plan.state.phase != Authentication::Withdrawing
    {
        let password = if plan.copies_by_wanted {
            &passwords.wanted
        } else {
            &passwords.accepted
        };
        servers::copy_by(members, &connections, password).await;
    }
    Ok(report(known, &plan, members))
}

/// What would be next if nothing were done: for a cluster that is not acted upon.
pub fn seen(users: &ClusterUsers, observed: &Observed) -> UsersReport {
    let Some(known) = &users.known else {
        return UsersReport {
            authentication: users.phase,
            ..UsersReport::default()
        };
    };
    UsersReport {
        authentication: known.state.phase,
        lacking: lacking(&observed.members, &known.state),
        ..UsersReport::default()
    }
}

fn decide(
    known: &KnownUsers,
    observed: &Observed,
    answers: &BTreeMap<Rules, Option<String>>,
    may_close: bool,
    now: Timestamp,
) -> UsersPlan {
    let members = &observed.members;
    let servers: Option<Vec<UsersOfServer>> = members.iter().map(of_server).collect();
    let passwords = known.passwords.iter().map(|(place, password)| {
        let hash = |one: &SecretString| PasswordHash::of(one.expose_secret());
        (place.clone(), password.as_ref().map(hash))
    });
    plan(&UsersInputs {
        wanted: &known.wanted,
        state: &known.state,
        own: &hashes(&known.own),
        passwords: &passwords.collect(),
        servers: servers.as_deref(),
        mounted: mounted(&observed.pods, known.templates),
        may_close,
        answers,
        now,
    })
}

/// None: it does not answer, or feeds no replica yet.
fn of_server(member: &Member) -> Option<UsersOfServer> {
    let report = member.report().filter(|report| report.feeds)?;
    Some(UsersOfServer {
        applied: report.users.applied.clone(),
        copies_with: report.users.copies_with.clone(),
        abilities: abilities(report),
    })
}

fn abilities(report: &Report) -> Abilities {
    let server = &report.server;
    Abilities {
        functions: server.at_least(7, 0),
        moves: server.family == Family::Valkey && server.at_least(9, 0),
    }
}

/// A pod that is made by a template counts before there is one.
fn mounted(pods: &Pods, templates: Mounted) -> Mounted {
    let pods = Mounted::of(pods.values().map(|pod| pods::mounts(pod, VOLUME_USERS)));
    if pods == templates {
        pods
    } else {
        Mounted::Some
    }
}

fn lacking(members: &[Member], state: &UsersState) -> Vec<String> {
    let hash = Some(state.hash());
    let lacks = |member: &&Member| of_server(member).is_none_or(|one| one.applied != hash);
    let lacking = members.iter().filter(lacks);
    lacking.map(|member| member.expected.pod.clone()).collect()
}

fn report(known: &KnownUsers, plan: &UsersPlan, members: &[Member]) -> UsersReport {
    let lacking = lacking(members, &plan.state);
    let replacing = known.own.iter().filter(|(_, passwords)| {
        passwords.wanted.expose_secret() != passwords.accepted.expose_secret()
    });
    let replacing: Vec<OwnUser> = replacing.map(|(user, _)| *user).collect();
    UsersReport {
        authentication: plan.state.phase,
        problems: plan.problems.clone(),
        changed: plan.state != known.state || !lacking.is_empty(),
        lacking,
        replacing,
    }
}

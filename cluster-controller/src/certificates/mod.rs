//! The certificates of a cluster's servers: those of the Secret that `spec.tls` names, given to servers while they run.
//!
//! Data and decisions, pure: [`material`], [`state`], [`plan`]. Input and output: [`servers`], and all together here. What the servers are to
//! have is written into a Secret first, with which pods start, and then set on servers that run. The name of a file has the number of its step
//! and a hash of its content: a server can take a step only once its pod has the files, and reports by the name which one it uses.

pub mod error;
pub mod known;
pub mod material;
pub mod plan;
pub mod report;
pub mod servers;
pub mod state;
pub mod tracker;

use crate::{
    context::Context,
    observe::Observed,
    redis::member::{Answer, Member},
    secrets::READ_AGAIN,
    validate::Shape,
};
use common::{
    cluster::{
        kept_connections::ClusterConnections,
        transport::{TlsAccess, Transport},
    },
    kubernetes::expectations::OwnerKey,
};
use crds::{RedisCluster, TlsStatus, certificates_secret_name};
use error::CertificatesError;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{OwnerReference, Time},
    jiff::Timestamp,
};
pub use known::ClusterCertificates;
use known::KnownCertificates;
use material::{Material, MaterialError};
use report::CertificatesReport;
use state::{CertificatesState, ServerFiles};
use tracker::PodIdentity;

/// Reads the Secrets, and makes the one that the pods mount.
pub async fn read(
    context: &Context,
    object: &RedisCluster,
    shape: &Shape,
    owner: OwnerReference,
) -> Result<ClusterCertificates, CertificatesError> {
    let Some(policy) = object.spec.tls.clone() else {
        return Ok(ClusterCertificates::default());
    };
    let place = (shape.namespace.as_str(), shape.name.as_str());
    let secrets = context.secrets_of(place, &owner, !shape.paused);
    // What cannot be read just now keeps nothing else from going on.
    let wanted = match secrets.read(&policy.secret_name, READ_AGAIN).await {
        Ok(Some(secret)) => Material::of(&secret.data.unwrap_or_default(), Timestamp::now()),
        Ok(None) => Err(MaterialError::NoSecret),
        Err(error) => Err(MaterialError::NotRead(error.to_string())),
    };
    let name = certificates_secret_name(&shape.name);
    let found = secrets.read_own(&name, |_| false).await?;
    let stored = found.as_ref().and_then(|secret| secret.data.as_ref());
    let last = context.certificates.last(place, &owner.uid);
    let remembered = last.as_ref().and_then(|last| last.known.as_ref());
    // Made again of what servers use, if that is remembered: they accept no other.
    let known = stored
        .and_then(CertificatesState::stored)
        .or_else(|| Some(remembered?.state.clone()));
    let state = match (known, &wanted) {
        (Some(state), _) => state,
        (None, Ok(material)) => CertificatesState::first(material, policy.client_auth),
        (None, Err(source)) => {
            return Err(CertificatesError::Refused {
                secret: policy.secret_name,
                source: source.clone(),
            });
        }
    };
    // One of an earlier cluster of this name, whose servers may still run, must not go with that.
    let is_ours = found.as_ref().is_some_and(|one| secrets.is_owned(one));
    if !is_ours || stored != Some(&state.data()) {
        secrets.replace(&name, found, state.data()).await?;
    }
    let same = last.filter(|last| {
        last.known
            .as_ref()
            .is_some_and(|known| known.state == state)
    });
    let transport = if let Some(last) = same {
        last.transport
    } else {
        let access = TlsAccess::from_files(&state.access_files());
        Transport::Tls(access.map_err(|source| CertificatesError::Unusable {
            secret: name,
            source,
        })?)
    };
    let certificates = ClusterCertificates {
        transport,
        known: Some(KnownCertificates {
            owner,
            policy,
            state,
            wanted,
        }),
    };
    context.certificates.remember(place, &certificates);
    Ok(certificates)
}

/// Takes the next step: writes what the servers are to have, gives it to them, and asks them to show it.
pub async fn carry_out(
    context: &Context,
    owner: &OwnerKey,
    certificates: &ClusterCertificates,
    observed: &Observed,
) -> Result<CertificatesReport, CertificatesError> {
    let Some(known) = &certificates.known else {
        return Ok(CertificatesReport::default());
    };
    let place = (owner.namespace.as_str(), owner.name.as_str());
    let connections = context.connections.of(place);
    let members = &observed.members;
    confirm(context, place, (members, &connections), &known.state).await;
    let mut state = known.state.clone();
    let policy = known.policy.client_auth;
    state::clients(policy).clone_into(&mut state.wanted.clients);
    if let Ok(wanted) = &known.wanted {
        let used = used(context, place, members, &known.state);
        let facts = known.state.facts();
        let expired = facts.is_ok_and(|facts| facts.not_after <= Timestamp::now());
        let next = plan::next(&known.state, wanted, policy, used.as_deref(), expired);
        // A backup, a restore or a move of slots opens more connections with what it has read at its begin.
        if expired || next.wanted == state.wanted || context.is_idle(place).await {
            state = next;
        }
    }
    if state != known.state {
        let secrets = context.secrets_of(place, &known.owner, true);
        let name = certificates_secret_name(place.1);
        let found = secrets.read_own(&name, |_| false).await?;
        secrets.replace(&name, found, state.data()).await?;
    }
    servers::give(members, &connections, &state.wanted).await;
    Ok(report(context, place, known, &state, members))
}

/// The report of a cluster that is only observed.
pub fn seen(
    context: &Context,
    place: (&str, &str),
    certificates: &ClusterCertificates,
    observed: &Observed,
) -> CertificatesReport {
    let Some(known) = &certificates.known else {
        return CertificatesReport::default();
    };
    report(context, place, known, &known.state, &observed.members)
}

/// Lets the servers that use the wanted certificate show it, each once.
async fn confirm(
    context: &Context,
    place: (&str, &str),
    (members, connections): (&[Member], &ClusterConnections),
    state: &CertificatesState,
) {
    let certificate = &state.wanted.certificate;
    let due = members.iter().filter(|member| {
        let uses = member.report().and_then(servers::reported);
        uses.is_some_and(|files| files.certificate == *certificate)
            && !context
                .certificates
                .has_presented(place, member, certificate)
    });
    let due: Vec<Member> = due.cloned().collect();
    if due.is_empty() {
        return;
    }
    // No other certificate will do.
    let Ok(access) = TlsAccess::from_files(&state.only_wanted().access_files()) else {
        return;
    };
    let shown = servers::handshake(&due, connections, &Transport::Tls(access)).await;
    let shown = shown.into_iter().map(|pod| (pod, certificate.clone()));
    let exists = |by: &PodIdentity| members.iter().any(|member| PodIdentity::of(member) == *by);
    context.certificates.note(place, shown.collect(), exists);
}

/// What each server uses. None: one that may run does not say, or has not shown what it says.
fn used(
    context: &Context,
    place: (&str, &str),
    members: &[Member],
    state: &CertificatesState,
) -> Option<Vec<ServerFiles>> {
    let mut used = Vec::new();
    for member in members {
        match &member.answer {
            Answer::Report(report) => {
                if !context
                    .certificates
                    .has_presented(place, member, &state.wanted.certificate)
                {
                    return None;
                }
                used.push(servers::reported(report)?);
            }
            Answer::Loading | Answer::Busy | Answer::Unresponsive(_) => return None,
            // Its pod may have mounted an earlier step, and start with that.
            Answer::Absent(_) if member.expected.kubernetes_node.is_some() => return None,
            // It starts with what its pod will mount.
            Answer::Absent(_) | Answer::Foreign(_) => {}
        }
    }
    Some(used)
}

fn report(
    context: &Context,
    place: (&str, &str),
    known: &KnownCertificates,
    state: &CertificatesState,
    members: &[Member],
) -> CertificatesReport {
    let lacks = |member: &&Member| {
        if !member.expected.exists {
            return false;
        }
        let uses = member.report().and_then(servers::reported);
        uses.as_ref() != Some(&state.wanted)
            || !context
                .certificates
                .has_presented(place, member, &state.wanted.certificate)
    };
    let lacking = members.iter().filter(lacks);
    let lacking: Vec<String> = lacking.map(|one| one.expected.pod.clone()).collect();
    let refused = known.wanted.as_ref().err().map(|error| {
        let words = format!("spec.tls: Secret {}: {error}", known.policy.secret_name);
        (error.reason(), words)
    });
    // Its certificate was checked before it was stored.
    let facts = state.facts().ok();
    CertificatesReport {
        shown: facts.map(|facts| TlsStatus {
            serial: facts.serial,
            not_after: Time(facts.not_after),
        }),
        refused,
        changed: *state != known.state || !lacking.is_empty(),
        lacking,
    }
}

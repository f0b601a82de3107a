//! The certificates of a cluster's servers: those of the Secret that `spec.tls` names, given to servers while they run.
//!
//! Data and decisions, pure: [`material`], [`state`], [`plan`], [`encryption`]. Input and output: [`servers`], and all together here. What the servers are to
//! have is written into a Secret first, with which pods start, and then set on servers that run. The name of a file has the number of its step
//! and a hash of its content: a server can take a step only once its pod has the files, and reports by the name which one it uses.

pub mod encryption;
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
    pods::Mounted,
    redis::member::{Answer, Member},
    secrets::{READ_AGAIN, SecretsOf},
    validate::{Shape, wanted_encryption},
};
use common::{
    cluster::{
        kept_connections::ClusterConnections,
        transport::{TlsAccess, Transport},
    },
    kubernetes::expectations::OwnerKey,
};
use crds::{Encryption, RedisCluster, TlsPolicy, TlsStatus, certificates_secret_name};
use encryption::{EncryptionEvidence, Settled};
use error::CertificatesError;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{OwnerReference, Time},
    jiff::Timestamp,
};
pub use known::{CertificatesEvidence, ClusterCertificates};
use known::{KnownCertificates, WantedCertificates};
use material::{Material, MaterialError};
use report::CertificatesReport;
use state::{CertificatesState, ServerTls};
use tracker::PodIdentity;

/// Reads the Secrets, and makes the one that the pods mount.
pub async fn read(
    context: &Context,
    object: &RedisCluster,
    (shape, evidence): (&Shape, CertificatesEvidence),
    owner: OwnerReference,
) -> Result<ClusterCertificates, CertificatesError> {
    let policy = object.spec.tls.clone();
    let before = object
        .status
        .as_ref()
        .and_then(|status| status.tls.as_ref());
    if policy.is_none() && evidence.mounted == Mounted::None && before.is_none() {
        return Ok(ClusterCertificates::default());
    }
    let place = (shape.namespace.as_str(), shape.name.as_str());
    let secrets = context.secrets_of(place, &owner, !shape.paused);
    let wanted = match policy {
        Some(policy) => {
            let material = material(&secrets, &policy).await;
            Some(WantedCertificates { policy, material })
        }
        None => None,
    };
    let name = certificates_secret_name(&shape.name);
    let found = secrets.read_own(&name, |_| false).await?;
    let last = context.certificates.last(place, &owner.uid);
    // One of an earlier cluster of this name, whose servers may still run, must not go with that.
    let is_ours = found.as_ref().is_some_and(|one| secrets.is_owned(one));
    let stored = found.as_ref().and_then(|secret| secret.data.as_ref());
    let stored = stored.filter(|_| wanted.is_some() || is_ours);
    let remembered = last.as_ref().and_then(|last| last.known.as_ref());
    // Made again of what servers use, if that is remembered: they accept no other.
    let known = stored
        .and_then(CertificatesState::stored)
        .or_else(|| Some(remembered?.state.clone()));
    let known = known.filter(|state| {
        let is_over = wanted.is_none() && state.encryption() == Encryption::Off;
        !is_over || evidence.mounted != Mounted::None
    });
    let state = match (known, &wanted) {
        (Some(state), _) => state,
        (None, Some(wanted)) => first(wanted, evidence)?,
        (None, None) if evidence.mounted != Mounted::None => {
            return Err(CertificatesError::Lost { secret: name });
        }
        (None, None) => {
            if is_ours && secrets.writes {
                secrets.remove(&name).await?;
            }
            context.certificates.forget(place.0, place.1);
            return Ok(ClusterCertificates::default());
        }
    };
    if !is_ours || stored != Some(&state.data()) {
        secrets.replace(&name, found, state.data()).await?;
    }
    let same = last.filter(|last| {
        last.known
            .as_ref()
            .is_some_and(|known| known.state == state)
    });
    let transport = match same {
        Some(last) => last.transport,
        None => transport(&state, name)?,
    };
    let certificates = ClusterCertificates {
        transport,
        known: Some(KnownCertificates {
            owner,
            state,
            mounted: evidence.mounted,
            wanted,
        }),
    };
    context.certificates.remember(place, &certificates);
    Ok(certificates)
}

/// What cannot be read just now keeps nothing else from going on.
async fn material(secrets: &SecretsOf<'_>, policy: &TlsPolicy) -> Result<Material, MaterialError> {
    match secrets.read(&policy.secret_name, READ_AGAIN).await {
        Ok(Some(secret)) => Material::of(&secret.data.unwrap_or_default(), Timestamp::now()),
        Ok(None) => Err(MaterialError::NoSecret),
        Err(error) => Err(MaterialError::NotRead(error.to_string())),
    }
}

/// Of a cluster whose Secret is not known.
fn first(
    wanted: &WantedCertificates,
    evidence: CertificatesEvidence,
) -> Result<CertificatesState, CertificatesError> {
    let policy = &wanted.policy;
    let material = wanted.material.as_ref().map_err(|source| {
        let secret = policy.secret_name.clone();
        let source = source.clone();
        CertificatesError::Refused { secret, source }
    })?;
    // Where all have certificates, all listen on the encrypted port, however far they encrypt.
    let encryption = if evidence.is_new || evidence.mounted == Mounted::All {
        wanted_encryption(Some(policy))
    } else {
        Encryption::Prepared
    };
    Ok(CertificatesState::first(
        material,
        policy.client_auth,
        encryption,
    ))
}

/// How the controllers reach the servers.
fn transport(state: &CertificatesState, secret: String) -> Result<Transport, CertificatesError> {
    if !state.encryption().is_used() {
        return Ok(Transport::Plain);
    }
    let access = TlsAccess::from_files(&state.access_files());
    let access = access.map_err(|source| CertificatesError::Unusable { secret, source })?;
    Ok(Transport::Tls(access))
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
    let used = used(context, place, members, &known.state);
    let step = step(known, (members, used.as_deref()), Timestamp::now());
    // A backup, a restore or a move of slots opens more connections with what it has read at its begin.
    let is_held = step.next != step.at_once && !context.is_idle(place).await;
    let state = if is_held { step.at_once } else { step.next };
    if state != known.state {
        let secrets = context.secrets_of(place, &known.owner, true);
        let name = certificates_secret_name(place.1);
        let found = secrets.read_own(&name, |_| false).await?;
        secrets.replace(&name, found, state.data()).await?;
        let (encryption, certificate) = (state.encryption(), &state.wanted.certificate);
        tracing::info!(namespace = place.0, name = place.1, ?encryption, %certificate, "servers get certificates");
    }
    servers::give(members, &connections, &state.wanted).await;
    close_plaintext(context, place, (members, &connections), &state).await;
    let mut report = report(context, place, known, &state, members);
    report.is_held = is_held;
    Ok(report)
}

/// Once servers have closed the port, each ends what is left of it.
async fn close_plaintext(
    context: &Context,
    place: (&str, &str),
    (members, connections): (&[Member], &ClusterConnections),
    state: &CertificatesState,
) {
    let tracker = &context.certificates;
    if state.encryption() != Encryption::Only {
        tracker.note_encrypted_only(place, Vec::new(), &[]);
        return;
    }
    let due = members.iter().filter(|member| {
        let uses = member.report().and_then(servers::reported);
        let is_closed = uses.is_some_and(|uses| uses.encryption == Encryption::Only);
        is_closed && !tracker.is_encrypted_only(place, member)
    });
    let due: Vec<Member> = due.cloned().collect();
    if !due.is_empty() {
        let closed = servers::end_plaintext(&due, connections).await;
        tracker.note_encrypted_only(place, closed, members);
    }
}

/// What is to come.
struct Step {
    /// What waits for nothing.
    at_once: CertificatesState,
    /// What waits until no operation is under way; the same where nothing does.
    next: CertificatesState,
}

/// First the certificate, then how far servers encrypt.
fn step(
    known: &KnownCertificates,
    (members, used): (&[Member], Option<&[ServerTls]>),
    now: Timestamp,
) -> Step {
    let mut at_once = known.state.clone();
    let policy = known.wanted.as_ref().map(|wanted| &wanted.policy);
    if let Some(policy) = policy {
        state::clients(policy.client_auth).clone_into(&mut at_once.wanted.clients);
    }
    if let Some(WantedCertificates {
        policy,
        material: Ok(material),
    }) = &known.wanted
    {
        let facts = known.state.facts();
        let expired = facts.is_ok_and(|facts| facts.not_after <= now);
        let next = plan::next(&known.state, material, policy.client_auth, used, expired);
        if next != at_once {
            let at_once = if expired { next.clone() } else { at_once };
            return Step { at_once, next };
        }
    }
    let settled = used.is_some_and(|all| all.iter().all(|one| *one == at_once.wanted));
    let evidence = EncryptionEvidence {
        settled: match settled {
            false => Settled::No,
            true if at_once.is_mounted_since() => Settled::AndMounted,
            true => Settled::Yes,
        },
        all_mount: known.mounted == Mounted::All,
        all_plain: servers::all_plain(members),
    };
    let (now, goal) = (at_once.encryption(), wanted_encryption(policy));
    let next = if encryption::needs_mounts(now, goal, evidence) {
        at_once.shown_again()
    } else {
        let encryption = encryption::next(now, goal, evidence);
        at_once.clone().encrypting(encryption)
    };
    Step { at_once, next }
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
) -> Option<Vec<ServerTls>> {
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
    let addresses = servers::addresses(members);
    let lacks = |member: &&Member| {
        if !member.expected.exists {
            return false;
        }
        let uses = member.report().and_then(servers::reported);
        uses.as_ref() != Some(&state.wanted)
            || !context
                .certificates
                .has_presented(place, member, &state.wanted.certificate)
            || state.encryption() == Encryption::Only
                && !context.certificates.is_encrypted_only(place, member)
            || servers::redirects_to_other_ports(member, &addresses)
    };
    let mut lacking = Vec::new();
    if state.encryption().has_certificates() {
        let pods = members.iter().filter(lacks);
        lacking.extend(pods.map(|one| one.expected.pod.clone()));
    }
    let policy = known.wanted.as_ref().map(|wanted| &wanted.policy);
    let refused = known.wanted.as_ref().and_then(|wanted| {
        let error = wanted.material.as_ref().err()?;
        let words = format!("spec.tls: Secret {}: {error}", wanted.policy.secret_name);
        Some((error.reason(), words))
    });
    // Its certificate was checked before it was stored.
    let facts = state.facts().ok();
    CertificatesReport {
        shown: facts.map(|facts| TlsStatus {
            serial: facts.serial,
            not_after: Time(facts.not_after),
            encryption: state.encryption(),
        }),
        refused,
        changed: *state != known.state || !lacking.is_empty(),
        lacking,
        goal: wanted_encryption(policy),
        is_held: false,
    }
}

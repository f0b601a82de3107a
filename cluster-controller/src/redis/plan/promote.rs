//! Primaries that are gone for good: a replica takes over where the servers' own failover cannot.
//!
//! The servers elect a replica by themselves when the primary's address goes dead and a majority of the primaries is left. They do
//! not when the majority is lost, nor when another node answers at the primary's address: its id is then kept without an
//! address ("PONG contains mismatching sender id" in the log) and never counts as failed.
//!
//! Whether the primary may still return is judged by the shard of the pod that it was last seen in; a replica may be in a pod of another
//! shard (before 7.0 the servers move replicas to primaries without one).

use super::{Action, Blocker, Plan, PromotedCopy, age, fence};
use crate::redis::{
    member::{Answer, Member, ProcessEvidence, Report},
    survey::{Live, MissingNode, Survey},
};
use common::cluster::{node::FailoverMode, slots::SlotSet, topology::NodeId};
use crds::{ANNOTATION_TAKEOVER, LostSlots, Takeover};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::{cmp::Reverse, time::Duration};

/// A volume that has not been attached by then is not coming: Kubernetes detaches one from a machine that is off after six minutes
/// (`maxWaitForUnmountDuration` in its attach-detach controller).
pub(super) const ATTACHED_BY: SignedDuration = SignedDuration::from_mins(15);

/// Plans at most one promotion: the next look decides about the next one.
pub fn promote(survey: &Survey<'_>, now: Timestamp, plan: &mut Plan) {
    for (id, missing_node) in &survey.missing {
        if missing_node.slots.is_empty() {
            let Some(heir) = heir_without_slots(survey, (*id, missing_node), now) else {
                continue;
            };
            return inherit(heir, *id, plan);
        }
        let Some(choice) = choose(survey, (*id, missing_node), now) else {
            continue;
        };
        let lost = LostPrimary {
            id: *id,
            missing_node,
            shard: survey
                .home(missing_node)
                .map_or(choice.replica.shard(), |home| home.expected.shard),
        };
        match decide(survey, &lost, &choice, now) {
            Ok((mode, why)) => {
                let unheard = unheard(choice.replica, *id, missing_node);
                let action = Action::Promote {
                    member: choice.replica.index,
                    primary: *id,
                    // It does not stand for election with a primary that it knows no slots of, and would be elected without some.
                    mode: if unheard.is_empty() {
                        mode
                    } else {
                        FailoverMode::Takeover
                    },
                    unheard: unheard.ranges(),
                    copy: if choice.is_copy {
                        PromotedCopy::Held
                    } else {
                        PromotedCopy::Lost
                    },
                };
                plan.step(action, why);
                return;
            }
            Err(blocker) => plan.blockers.push(blocker),
        }
    }
}

/// Slots of the primary that its replica does not list: the primary was lost before all nodes had heard what it serves.
fn unheard(replica: Live<'_>, id: NodeId, missing_node: &MissingNode) -> SlotSet {
    let listed = replica.report.view.get(id);
    let listed = listed.map(|node| node.slots.clone()).unwrap_or_default();
    missing_node.slots.difference(&listed)
}

/// The replica of a primary that was lost before it had slots. Keys that it had been given already are nowhere else, and as a primary the
/// replica gives them back to those who serve their slots. Without keys it is needed where no other node can be the shard's primary. Keys
/// of a primary that lives would come back from it as they were.
fn heir_without_slots<'a>(
    survey: &Survey<'a>,
    (id, missing_node): (NodeId, &MissingNode),
    now: Timestamp,
) -> Option<Live<'a>> {
    if missing_node.listed_with_slots || missing_node.pod.is_some() || !missing_node.is_gone() {
        return None;
    }
    let choice = choose(survey, (id, missing_node), now)?;
    let shard = choice.replica.shard();
    let has_keys = choice.replica.report.keys > 0;
    let is_needed = if has_keys {
        choice.is_copy
    } else {
        survey.free.is_empty() && shard < survey.wanted.shards
    };
    (is_needed && survey.primary_of(shard).is_none() && survey.shard_all_live(shard))
        .then_some(choice.replica)
}

fn inherit(heir: Live<'_>, primary: NodeId, plan: &mut Plan) {
    let (pod, empty) = (heir.pod(), heir.report.keys == 0);
    let why = if empty {
        format!(
            "the primary of {pod} is gone for good, before it got slots: {pod} becomes the primary that will get them"
        )
    } else {
        format!(
            "the primary of {pod} is gone for good, before it got the slots of keys that it had: {pod} has them, and no slots to take over"
        )
    };
    let action = Action::Promote {
        member: heir.index,
        primary,
        mode: FailoverMode::Takeover,
        unheard: Vec::new(),
        copy: if empty {
            PromotedCopy::NotNeeded
        } else {
            PromotedCopy::Held
        },
    };
    plan.step(action, why);
}

/// A primary that gives no report.
struct LostPrimary<'a> {
    id: NodeId,
    missing_node: &'a MissingNode,
    /// The shard of the pod that it was last seen in.
    shard: usize,
}

/// The replica that is to take over.
struct Choice<'a> {
    replica: Live<'a>,
    /// Whether it has a copy of what the primary had.
    is_copy: bool,
    /// It, and the others whose copy is of the same history and not newer: it lacks no more than any of these.
    same_history: Vec<Live<'a>>,
    /// Pods of replicas with a copy of another history: how far these are cannot be compared.
    incomparable: Vec<&'a str>,
}

/// The replica that has applied the most of what the primary wrote. Offsets count within one history only, and a replica that is started
/// again may begin another one. Between histories: the one that had everything for the longest, before those of which that is not known, and
/// then the one with more keys. Of equals, one whose pod stays.
fn choose<'a>(
    survey: &Survey<'a>,
    (id, missing_node): (NodeId, &MissingNode),
    now: Timestamp,
) -> Option<Choice<'a>> {
    let all: Vec<Live<'a>> = missing_node
        .replicas
        .iter()
        .filter_map(|index| survey.by_index(*index))
        .collect();
    let (copies, empty): (Vec<Live<'a>>, Vec<Live<'a>>) = all
        .into_iter()
        .partition(|one| one.report.has_copied() && !copied_elsewhere(survey, id, one.report));
    let is_copy = !copies.is_empty();
    let candidates = if is_copy { copies } else { empty };
    let first = candidates.iter().max_by_key(|one| {
        let expected = &one.member.expected;
        (
            age::current_until(**one, now),
            !expected.terminating,
            one.report.keys,
            Reverse(expected.ordinal),
        )
    })?;
    let history = &first.report.replication;
    let (same, others): (Vec<Live<'a>>, Vec<Live<'a>>) = candidates
        .iter()
        .partition(|one| one.report.replication.shares_history(history));
    let home = survey.home(missing_node).map(|home| home.expected.shard);
    let replica = same.iter().copied().max_by_key(|one| {
        let expected = &one.member.expected;
        (
            one.report.replication.offset,
            !expected.terminating,
            one.report.keys,
            Some(expected.shard) == home,
            Reverse(expected.ordinal),
        )
    })?;
    let incomparable = others.into_iter().filter(|_| is_copy);
    Some(Choice {
        replica,
        is_copy,
        same_history: same,
        incomparable: incomparable
            .map(|one| one.member.expected.pod.as_str())
            .collect(),
    })
}

/// Whether what a replica has is still the copy of another primary, which lives: it was given to this one and has not copied it yet.
fn copied_elsewhere(survey: &Survey<'_>, id: NodeId, report: &Report) -> bool {
    let history = &report.replication.id;
    !history.is_empty()
        && survey.live.iter().any(|one| {
            let own = one.report.own();
            own.is_primary() && own.id != id && one.report.replication.id == *history
        })
}

fn decide(
    survey: &Survey<'_>,
    lost: &LostPrimary<'_>,
    choice: &Choice<'_>,
    now: Timestamp,
) -> Result<(FailoverMode, String), Blocker> {
    let (shard, id) = (lost.shard, lost.id);
    let pod = choice.replica.pod();
    let home = survey.home(lost.missing_node);
    if let Some(busy) = home.filter(|_| lost.missing_node.busy) {
        return Err(Blocker::ScriptRunning {
            pod: busy.expected.pod.clone(),
        });
    }
    let down = || Blocker::PrimaryDown {
        shard,
        id,
        loading: survey.loading_in(shard).map(|member| {
            let (pod, why) = member.explained();
            format!("{pod}, which is {why}")
        }),
    };
    // A primary that any of ours is linked to is alive, wherever it runs; and what one that is loading reads is the truth.
    if !lost.missing_node.is_lost() || home.is_some_and(|home| home.answer == Answer::Loading) {
        return Err(down());
    }
    let requested = survey.wanted.recovery.requested.names(shard);
    // Without a majority the primary may have gone on for as long as no controller looked: its volume has that, and is about to be here.
    let accepts = requested || survey.wanted.recovery.takeover == Takeover::Auto;
    let starting = home.filter(|home| is_starting(home, now));
    if let Some(starting) = starting.filter(|_| !survey.has_quorum() && !accepts) {
        let pod = &starting.expected.pod;
        return Err(Blocker::PrimaryDown {
            shard,
            id,
            loading: Some(format!(
                "{pod}, whose volume is on its way; the annotation {ANNOTATION_TAKEOVER} accepts the loss of what only that has"
            )),
        });
    }
    // One that was never seen in a pod is not the cluster's to give up: that pods answer says nothing about it.
    let gone = lost.missing_node.recorded && survey.shard_all_live(shard) && !survey.may_return(id);
    // The primary may still come back with its data: give it time.
    let waited = is_over(survey, choice.replica, shard, now);
    if !gone && !waited && !requested {
        return Err(down());
    }
    // A replica that has never been linked looks like the copy of an empty shard: only a person knows which of both it is. In memory
    // there is nothing to wait for once the primary's pod has started again.
    let memory_is_lost = gone && !survey.may_have_volume(lost.missing_node);
    let accepted = gone && survey.wanted.recovery.lost_slots == LostSlots::RecreateEmpty;
    if !choice.is_copy && !memory_is_lost && !accepted {
        return Err(Blocker::EmptyCopy {
            shard,
            id,
            pod: pod.to_owned(),
        });
    }
    if choice.is_copy && !gone && !accepts && !is_lost_with_its_memory(survey, lost) {
        check_age(survey, lost, choice, now)?;
    }
    let (mode, how) = if survey.has_quorum() {
        (FailoverMode::Force, "by election".to_owned())
    } else {
        let how = without_majority(survey, lost, choice, waited)?;
        (FailoverMode::Takeover, how)
    };
    let seconds = survey.wanted.recovery.after.as_secs();
    let mut why = if !choice.is_copy {
        format!(
            "no copy of shard {shard} is left: its primary is gone for good, and {pod} had not copied it yet; {pod} serves \
             its slots empty, {how}"
        )
    } else if gone {
        format!(
            "the primary of {pod} is gone for good, no pod of its shard has its id: {pod} takes over {how}"
        )
    } else if waited {
        format!(
            "the primary of {pod} has been down for more than {seconds} s: {pod} ({}) takes over {how}",
            behind(choice.replica.report)
        )
    } else {
        format!("the primary of {pod} is down: {pod} takes over {how}")
    };
    if !choice.incomparable.is_empty() {
        why += "; ";
        why += &choice.incomparable.join(", ");
        why += " has a copy of another replication history, which cannot be compared with this one";
    }
    Ok((mode, why))
}

/// Whether a pod with a volume has found its Kubernetes node and has yet to start its server there: its volume is being attached.
fn is_starting(home: &Member, now: Timestamp) -> bool {
    let expected = &home.expected;
    let down_since = expected.down_since;
    expected.has_volume
        && home.report().is_none()
        && expected.is_being_created
        && expected.last_started.is_none()
        && down_since.is_none_or(|since| now.duration_since(since) < ATTACHED_BY)
}

/// Whether the primary kept its data in memory only, and its process has ended: it comes back with another id, and without data.
fn is_lost_with_its_memory(survey: &Survey<'_>, lost: &LostPrimary<'_>) -> bool {
    let home = survey.home(lost.missing_node);
    let evidence = home.and_then(|home| home.expected.former.get(&lost.id));
    !survey.may_have_volume(lost.missing_node)
        && matches!(evidence, Some(ProcessEvidence::Ended(_)))
}

/// Refuses a copy that may be too old while the primary may come back.
fn check_age(
    survey: &Survey<'_>,
    lost: &LostPrimary<'_>,
    choice: &Choice<'_>,
    now: Timestamp,
) -> Result<(), Blocker> {
    let copies = choice.same_history.iter();
    let age = copies
        .filter_map(|one| age::age(survey, (lost.id, lost.missing_node), *one, now))
        .min();
    let most = age::most(survey.wanted.node_timeout);
    if age.is_some_and(|age| age <= most) {
        return Ok(());
    }
    Err(Blocker::OldCopy {
        shard: lost.shard,
        id: lost.id,
        pod: choice.replica.pod().to_owned(),
        older_than: age.map(|_| most),
    })
}

/// How a replica takes over without a majority of the primaries, or why it does not.
fn without_majority(
    survey: &Survey<'_>,
    lost: &LostPrimary<'_>,
    choice: &Choice<'_>,
    waited: bool,
) -> Result<String, Blocker> {
    let (voters, all) = survey.quorum();
    let how = format!("without an election, since only {voters} of {all} primaries are left");
    let recovery = &survey.wanted.recovery;
    if recovery.requested.names(lost.shard) {
        return Ok(format!("{how}, as the annotation asks"));
    }
    let replica = format!(
        "{} ({})",
        choice.replica.pod(),
        behind(choice.replica.report)
    );
    let doubt = match recovery.takeover {
        Takeover::Manual => {
            return Err(Blocker::TakeoverManual {
                shard: lost.shard,
                replica,
            });
        }
        Takeover::WhenFenced | Takeover::Auto => fence::doubt(survey),
    };
    match doubt {
        None => Ok(how),
        Some(doubt) if waited && recovery.takeover == Takeover::Auto => Ok(format!(
            "{how}; spec.recovery.takeover accepts that {} may still acknowledge writes",
            doubt.node
        )),
        Some(doubt) => Err(Blocker::Unfenced {
            shard: lost.shard,
            replica,
            doubt,
        }),
    }
}

/// How far a replica may be behind its lost primary, in words that change seldom.
fn behind(report: &Report) -> String {
    let link = report.replication.upstream.as_ref();
    let Some(seconds) = link.and_then(|link| link.down_seconds) else {
        return match link.filter(|link| link.up) {
            Some(_) => "still linked".to_owned(),
            None => "not linked since its start".to_owned(),
        };
    };
    let reached = [3600, 600, 60, 30, 10]
        .into_iter()
        .find(|limit| seconds >= *limit);
    match reached {
        Some(limit) => format!("unlinked for more than {limit} s"),
        None => "unlinked for some seconds".to_owned(),
    }
}

/// Whether the primary has had its time. After a loss of everything the first to answer must not be the first to be served: the
/// time starts again when the replica itself has just come up.
fn is_over(survey: &Survey<'_>, replica: Live<'_>, shard: usize, now: Timestamp) -> bool {
    let after = survey.wanted.recovery.after;
    let up = Duration::from_secs(replica.report.server.uptime_seconds);
    up >= after && survey.is_overdue(shard, after, now)
}

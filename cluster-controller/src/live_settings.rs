//! Sets on the servers what `CONFIG SET` can change while they run.

use crate::{
    context::Context,
    decision::{Decision, Goal, decide},
    observe::NODE_TIMEOUT,
    pod_patch,
    redis::{
        member::{Answer, Member},
        observe::process,
    },
    settings::{
        answer::{LiveChange, LiveOutcome, LiveResult, refusal},
        assess::SettingsGoal,
        live, stamp,
    },
    validate::ValidatedCluster,
};
use common::{
    cluster::{
        kept_connections::ClusterConnections,
        node::{NodeClient, NodeError},
    },
    kubernetes::call::ApiError,
};
use crds::UpdateStrategy;
use futures::{StreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use redis::cmd;
use std::collections::BTreeMap;

/// Servers that are changed at the same time.
const CONCURRENCY: usize = 64;

/// Sets them all, those of one server one after the other. What was not answered is missing: the next reconcile tries it again. A server
/// that is not the one which was observed gets no command.
pub async fn set(
    changes: Vec<LiveChange>,
    members: &[Member],
    connections: &ClusterConnections,
) -> Vec<LiveOutcome> {
    let mut of_member: BTreeMap<usize, Vec<LiveChange>> = BTreeMap::new();
    for change in changes {
        of_member.entry(change.member).or_default().push(change);
    }
    let known = of_member.into_iter().filter_map(|(index, changes)| {
        let expected = &members.get(index)?.expected;
        let endpoint = connections.endpoint(expected.address?.client(), NODE_TIMEOUT);
        Some((process(expected), endpoint, changes))
    });
    let outcomes: Vec<Vec<LiveOutcome>> = stream::iter(known)
        .map(|(process, endpoint, changes)| async move {
            let Some(change) = changes.first() else {
                return Vec::new();
            };
            let endpoint = endpoint.expecting(change.node);
            match connections.proven(process.as_ref(), &endpoint).await {
                Ok(client) => of_server(&client, changes).await,
                Err(error) => {
                    tracing::info!(%error, "settings wait for the node");
                    Vec::new()
                }
            }
        })
        .buffered(CONCURRENCY)
        .collect()
        .await;
    outcomes.into_iter().flatten().collect()
}

async fn of_server(client: &NodeClient, changes: Vec<LiveChange>) -> Vec<LiveOutcome> {
    let mut outcomes = Vec::with_capacity(changes.len());
    for change in changes {
        match one(client, &change).await {
            Ok(result) => {
                let LiveChange {
                    pod, name, value, ..
                } = &change;
                tracing::info!(pod, name, value, ?result, "setting sent");
                outcomes.push(LiveOutcome { change, result });
            }
            Err(error) => {
                tracing::info!(%error, "settings wait for the node");
                break;
            }
        }
    }
    outcomes
}

async fn one(client: &NodeClient, change: &LiveChange) -> Result<LiveResult, NodeError> {
    if let Err(error) = client.config_set(&change.name, &change.value).await {
        return match error.refusal() {
            Some(words) => Ok(refusal(words)),
            None => Err(error),
        };
    }
    let mut question = cmd("CONFIG");
    question.arg("GET").arg(&change.name);
    let answer: Vec<String> = client.ask("CONFIG GET", &question).await?;
    Ok(LiveResult::Reads(
        answer.into_iter().nth(1).unwrap_or_default(),
    ))
}

/// Sets what differs and remembers the answers. A pod first says what a setting was before: one that is taken out of the spec becomes that
/// again. The decision that comes back knows the answers.
pub async fn carry_out(
    context: &Context,
    goal: &Goal<'_>,
    wanted: &SettingsGoal,
    mut seen: Decision,
) -> (Decision, Result<Vec<LiveOutcome>, ApiError>) {
    let place = (goal.shape.namespace.as_str(), goal.shape.name.as_str());
    let pods = &seen.observed.pods;
    let mut patches = live::annotations(&seen.settings, pods);
    patches.extend(
        goal.cluster
            .into_iter()
            .flat_map(|one| stamp::changes(one, pods)),
    );
    if let Err(error) = pod_patch::write(context, place.0, patches).await {
        return (seen, Err(error));
    }
    let connections = context.connections.of(place);
    let changes = live::changes(&seen.settings);
    let outcomes = set(changes, &seen.observed.members, &connections).await;
    if !outcomes.is_empty() {
        let now = Timestamp::now();
        context.settings.note(place, &outcomes, now);
        update(&mut seen.observed.members, &outcomes);
        // The StatefulSets are applied already.
        let Decision { observed, sets, .. } = seen;
        seen = decide(goal, observed, &context.settings.answers(place), now);
        seen.sets = sets;
    }
    let members = seen.observed.members.iter();
    let nodes = members.filter_map(|member| Some(member.report()?.id()));
    let names = wanted.names(&seen.observed.pods);
    let rolls = |one: &ValidatedCluster| one.update.strategy == UpdateStrategy::RollingUpdate;
    let restart_due = goal.cluster.is_some_and(rolls) && !seen.settings.restart.is_empty();
    let is_wanted = |name: &str| names.contains(name);
    let tracker = &context.settings;
    tracker.keep(place, &nodes.collect(), is_wanted, restart_due);
    (seen, Ok(outcomes))
}

/// Puts what servers report after a change into what was observed.
pub fn update(members: &mut [Member], outcomes: &[LiveOutcome]) {
    for LiveOutcome { change, result } in outcomes {
        let answer = members.get_mut(change.member).map(|one| &mut one.answer);
        if let (Some(Answer::Report(report)), LiveResult::Reads(value)) = (answer, result) {
            report.settings.insert(change.name.clone(), value.clone());
        }
    }
}

//! Asks servers about rules and gives them their users. A server that is not the one which was observed gets no command.

use super::{state::UsersState, wanted::Rules};
use crate::redis::{
    each_server::each,
    member::Member,
    users::{self, DEFAULT, PasswordHash, ReportedUsers},
};
use common::cluster::{
    kept_connections::ClusterConnections,
    node::{NodeClient, NodeError},
};
use crds::OwnUser;
use redis::{Cmd, cmd};
use secrecy::{ExposeSecret, SecretString};
use std::collections::BTreeMap;

/// The user that tries rules. It is off, and there only for a moment.
const TRIAL: &str = "redis-operator-trial";

/// What servers answer to rules: by user and rules, their words where one of them refuses. Nothing where one has not answered: it would not
/// start with rules that it refuses.
pub async fn ask_rules(
    members: &[Member],
    connections: &ClusterConnections,
    trials: &[Rules],
) -> BTreeMap<Rules, Option<String>> {
    let answers = each(members, connections, |client, _| async move {
        let mut refused = Vec::with_capacity(trials.len());
        for (_, rules) in trials {
            refused.push(try_rules(&client, rules).await?);
        }
        Ok(refused)
    });
    let answers = answers.await;
    let mut found = BTreeMap::new();
    if answers.len() < members.len() {
        return found;
    }
    for refused in answers {
        for (rules, words) in trials.iter().zip(refused) {
            let known = found.entry(rules.clone()).or_insert(None);
            if known.is_none() {
                *known = words;
            }
        }
    }
    found
}

/// In its own words why a server refuses rules.
async fn try_rules(client: &NodeClient, rules: &str) -> Result<Option<String>, NodeError> {
    let trial = set_user(TRIAL, &format!("off {rules}"));
    let refused = match client.ask::<()>("ACL SETUSER", &trial).await {
        Ok(()) => None,
        Err(error) => match error.refusal() {
            Some(words) => Some(words.to_owned()),
            None => return Err(error),
        },
    };
    delete(client, &[TRIAL.to_owned()]).await?;
    Ok(refused)
}

/// Gives its users to every server that has other ones. One without a role of its own is left out: it gets them with its role.
pub async fn give(members: &[Member], connections: &ClusterConnections, state: &UsersState) {
    let hash = &state.hash();
    let lines = &state.lines();
    each(members, connections, |client, server| async move {
        if !server.feeds || server.users.applied.as_ref() == Some(hash) {
            return Ok(());
        }
        for (name, rules) in lines {
            client
                .ask::<()>("ACL SETUSER", &set_user(name, rules))
                .await?;
        }
        let ReportedUsers { names, marks, .. } = &server.users;
        let is_wanted = |name: &&String| lines.iter().any(|(wanted, _)| *name == wanted);
        let others = names.iter().filter(|name| !is_wanted(name)).chain(marks);
        delete(&client, &others.cloned().collect::<Vec<_>>()).await?;
        let mut list = cmd("ACL");
        list.arg("LIST");
        let list: Vec<String> = client.ask("ACL LIST", &list).await?;
        let mark = users::mark(hash, &list);
        client
            .ask::<()>("ACL SETUSER", &set_user(&mark, "off"))
            .await?;
        tracing::info!(address = %client.address(), "a server has its users");
        Ok(())
    })
    .await;
}

/// Lets every server copy others by this password.
pub async fn copy_by(
    members: &[Member],
    connections: &ClusterConnections,
    password: &SecretString,
) {
    let wanted = &Some(PasswordHash::of(password.expose_secret()));
    each(members, connections, |client, server| async move {
        if server.users.copies_with == *wanted {
            return Ok(());
        }
        let name = OwnUser::Replication.name();
        client.config_set("masteruser", name).await?;
        client
            .config_set("masterauth", password.expose_secret())
            .await?;
        tracing::info!(address = %client.address(), "a server has its password for copies");
        Ok(())
    })
    .await;
}

/// Takes all users but `default` from every server, which copies others without a login from then on. Whether every one answered.
pub async fn remove(members: &[Member], connections: &ClusterConnections) -> bool {
    // First no server needs them any more.
    let copies = each(members, connections, |client, _| async move {
        client.config_set("masterauth", "").await?;
        client.config_set("masteruser", "").await
    });
    if copies.await.len() < members.len() {
        return false;
    }
    let removed = each(members, connections, |client, server| async move {
        let ReportedUsers { names, marks, .. } = &server.users;
        let others = names.iter().filter(|name| *name != DEFAULT).chain(marks);
        let (own, mut others): (Vec<String>, Vec<String>) = others
            .cloned()
            .partition(|name| name == OwnUser::Operator.name());
        // This connection ends with its user.
        others.extend(own);
        delete(&client, &others).await
    });
    removed.await.len() == members.len()
}

/// Whether all replicas have logged in as the user for replicas.
pub async fn replicas_log_in(members: &[Member], connections: &ClusterConnections) -> bool {
    let answers = each(members, connections, |client, _| async move {
        let mut list = cmd("CLIENT");
        list.arg("LIST").arg("TYPE").arg("replica");
        let clients: String = client.ask("CLIENT LIST", &list).await?;
        Ok(users::replicas_log_in(&clients))
    });
    let answers = answers.await;
    answers.len() == members.len() && answers.into_iter().all(|logged_in| logged_in)
}

/// In one step: a server takes all of it or nothing, and no client is without its rights meanwhile.
fn set_user(name: &str, rules: &str) -> Cmd {
    let mut command = cmd("ACL");
    command.arg("SETUSER").arg(name).arg("reset");
    for rule in rules.split_ascii_whitespace() {
        command.arg(rule);
    }
    command
}

async fn delete(client: &NodeClient, names: &[String]) -> Result<(), NodeError> {
    if names.is_empty() {
        return Ok(());
    }
    let mut command = cmd("ACL");
    command.arg("DELUSER").arg(names);
    match client.ask::<()>("ACL DELUSER", &command).await {
        // The connection ended with its user.
        Err(error)
            if error.is_unanswered() && names.iter().any(|one| one == OwnUser::Operator.name()) =>
        {
            Ok(())
        }
        done => done,
    }
}

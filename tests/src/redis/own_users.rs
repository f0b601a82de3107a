//! The own users of the product on the servers of a test: what a suite does through the product, it does with the rights of the user that
//! does it there. Clients of the test log in as nothing else: `default` stays open.

use super::RedisServer;
use crate::servers::ServerProgram;
use anyhow::{Context, Result};
use cluster_controller::{
    redis::users::{DEFAULT, PasswordHash},
    users::{
        own::Abilities,
        plan::{OwnHashes, first},
        state::{AcceptedUser, UsersState},
    },
};
use common::cluster::{
    endpoint::{Login, NodeAccess, NodeCredentials},
    kept_connections::ClusterConnections,
};
use crds::{Authentication, OwnUser};
use secrecy::SecretString;
use std::{
    collections::BTreeMap,
    env,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// `user word`: takes one word out of the rules of an own user, so that a suite shows what it is needed for.
const WITHOUT: &str = "WITHOUT_RIGHT";
/// How long a server may take to say what it has refused.
const ANSWER: Duration = Duration::from_secs(1);

/// The password of an own user, also in a line of redis.conf.
pub fn password(user: OwnUser) -> String {
    format!("password-of-{}", user.name())
}

/// How the program of an own user logs in.
pub fn login(user: OwnUser) -> Login {
    let password = SecretString::from(password(user));
    Login::Required(NodeCredentials::new(user.name(), password))
}

/// Connections to one cluster, as the cluster-controller has them.
pub fn connections() -> ClusterConnections {
    ClusterConnections::alone(NodeAccess {
        login: login(OwnUser::Operator),
        ..NodeAccess::default()
    })
}

/// The users of servers of this release.
///
/// # Panics
///
/// Where the variable names a right that there is not.
pub fn users(program: &ServerProgram) -> UsersState {
    let abilities = Abilities {
        functions: program.at_least(7, 0),
        moves: program.moves_slots(),
    };
    let own = OwnUser::ALL.into_iter().map(|user| {
        let hash = PasswordHash::of(&password(user));
        let hashes = OwnHashes {
            wanted: hash.clone(),
            accepted: hash,
        };
        (user, hashes)
    });
    let mut state = first(Authentication::Required, abilities, &own.collect());
    let open = AcceptedUser::may_everything();
    state.users.insert(DEFAULT.to_owned(), open);
    if let Some((user, word)) = without() {
        let known = state.users.get_mut(&user);
        let known = known.unwrap_or_else(|| panic!("{WITHOUT}: no own user {user}"));
        let words = known.rules.split(' ').filter(|one| *one != word);
        let left = words.collect::<Vec<_>>().join(" ");
        assert_ne!(left, known.rules, "{WITHOUT}: {user} has no {word}");
        known.rules = left;
    }
    state
}

fn without() -> Option<(String, String)> {
    let text = env::var(WITHOUT).ok()?;
    let (user, word) = text.split_once(' ')?;
    Some((user.to_owned(), word.to_owned()))
}

/// Prints what a server has refused, where a right was taken out: a failed test shows by it that the right was missed.
pub(super) fn print_refusals(address: SocketAddr) {
    if without().is_some() {
        let refused = refusals(address).unwrap_or_else(|error| error.to_string());
        println!("--- refused by {address}: {refused}");
    }
}

/// The words of `ACL LOG`. Without a runtime: a server also ends while a test panics.
fn refusals(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(b"ACL LOG\r\nQUIT\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let lines = answer.lines();
    let words: Vec<&str> = lines.filter(|line| !line.starts_with(['*', '$'])).collect();
    Ok(words.join(" "))
}

/// The users as arguments of a server that is started without a file of them.
pub(super) fn arguments(program: &ServerProgram) -> Vec<String> {
    let lines = users(program).lines().into_iter();
    let own = lines.filter(|(name, _)| name != DEFAULT);
    let mut words = Vec::new();
    for (name, rules) in own {
        words.extend(["--user".to_owned(), name]);
        words.extend(rules.split_ascii_whitespace().map(ToOwned::to_owned));
    }
    for (name, value) in replication() {
        words.extend([format!("--{name}"), value]);
    }
    words
}

/// What a server needs to copy another one.
pub(super) fn replication() -> [(&'static str, String); 2] {
    let user = OwnUser::Replication;
    [
        ("masteruser", user.name().to_owned()),
        ("masterauth", password(user)),
    ]
}

/// What the pods of a cluster with these users mount.
pub(super) fn files(program: &ServerProgram) -> BTreeMap<String, Vec<u8>> {
    let users = users(program);
    let replication = replication().map(|(name, value)| format!("{name} {value}\n"));
    let files = [
        ("users.conf", users.file()),
        ("users-without-role.conf", users.file_without_role()),
        ("replication.conf", replication.concat()),
        ("probe", password(OwnUser::Probe)),
    ];
    let bytes = files.map(|(name, text)| (name.to_owned(), text.into_bytes()));
    bytes.into()
}

/// Whether the replicas of a server have logged in as they should.
pub async fn replicas_log_in(server: &RedisServer) -> Result<bool> {
    let clients: String = server.call("CLIENT LIST TYPE replica").await?;
    let first = clients.lines().next().context("no replica")?;
    println!("  {first}");
    Ok(cluster_controller::redis::users::replicas_log_in(&clients))
}

//! How a node is reached: everything a connection needs to know before it is opened.

use super::{topology::NodeId, transport::Transport};
use crds::{Authentication, OwnUser};
use secrecy::{ExposeSecret, SecretString};
use std::{collections::BTreeSet, fmt, net::SocketAddr, sync::Arc, time::Duration};

/// A user of the servers and its password.
#[derive(Clone)]
pub struct NodeCredentials {
    /// Name of the ACL user.
    pub username: String,
    /// Sent in AUTH; never logged.
    pub password: SecretString,
}

impl NodeCredentials {
    /// The user whom `requirepass` gives a password. A server that asks for none accepts any of this user.
    pub const DEFAULT_USER: &str = "default";

    /// Credentials of an ACL user.
    pub fn new(username: impl Into<String>, password: SecretString) -> Self {
        Self {
            username: username.into(),
            password,
        }
    }
}

impl PartialEq for NodeCredentials {
    fn eq(&self, other: &Self) -> bool {
        let password = self.password.expose_secret();
        self.username == other.username && password == other.password.expose_secret()
    }
}

impl Eq for NodeCredentials {}

impl fmt::Debug for NodeCredentials {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("NodeCredentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// How to log in to the servers of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Login {
    /// Not at all: their user `default` may do everything.
    #[default]
    None,
    /// As this user. A server that refuses it gets no command.
    Required(NodeCredentials),
    /// As this user; not at all where the server does not know it, because its users come or go just now.
    Optional(NodeCredentials),
}

impl Login {
    /// As an own user of a cluster whose clients have to log in so far.
    pub fn of(user: OwnUser, password: SecretString, authentication: Authentication) -> Self {
        let credentials = NodeCredentials::new(user.name(), password);
        match authentication {
            Authentication::Off => Self::None,
            Authentication::Required => Self::Required(credentials),
            Authentication::Introducing | Authentication::Withdrawing => {
                Self::Optional(credentials)
            }
        }
    }

    /// User and password, if there are any.
    pub fn credentials(&self) -> Option<&NodeCredentials> {
        match self {
            Self::None => None,
            Self::Required(credentials) | Self::Optional(credentials) => Some(credentials),
        }
    }
}

/// How the nodes of a cluster are reached and recognized: by their certificates, by logging in, and by their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAccess {
    /// Whether what is sent is encrypted.
    pub transport: Transport,
    /// How to log in.
    pub login: Login,
    /// Which nodes count.
    pub expected: ExpectedIdentity,
}

impl NodeAccess {
    /// The same, for these nodes only.
    #[must_use]
    pub fn expecting(&self, expected: impl Into<ExpectedIdentity>) -> Self {
        Self {
            expected: expected.into(),
            ..self.clone()
        }
    }

    /// One of the nodes, at this address. `timeout` bounds the connecting and each answer.
    pub fn endpoint(&self, address: SocketAddr, timeout: Duration) -> Endpoint {
        Endpoint::new(address, timeout)
            .with_transport(self.transport.clone())
            .with_login(self.login.clone())
            .expecting(self.expected.clone())
    }
}

/// Which node may answer at an address. Addresses of pods are given to other pods, of other clusters too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ExpectedIdentity {
    /// Any: nothing is asked.
    #[default]
    Any,
    /// The node with this id.
    Id(NodeId),
    /// Any node of one cluster.
    OneOf(Arc<BTreeSet<NodeId>>),
}

impl ExpectedIdentity {
    /// Whether a node with this id may answer.
    pub fn accepts(&self, id: NodeId) -> bool {
        match self {
            Self::Any => true,
            Self::Id(expected) => *expected == id,
            Self::OneOf(members) => members.contains(&id),
        }
    }
}

impl From<NodeId> for ExpectedIdentity {
    fn from(id: NodeId) -> Self {
        Self::Id(id)
    }
}

impl From<Arc<BTreeSet<NodeId>>> for ExpectedIdentity {
    fn from(members: Arc<BTreeSet<NodeId>>) -> Self {
        Self::OneOf(members)
    }
}

impl fmt::Display for ExpectedIdentity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => out.write_str("any node"),
            Self::Id(id) => write!(out, "node {id}"),
            Self::OneOf(members) => write!(out, "one of the cluster's {} nodes", members.len()),
        }
    }
}

/// A node's address, whether to encrypt, how to log in there, which node is expected, and how long it may take to answer.
#[derive(Clone, Debug)]
pub struct Endpoint {
    address: SocketAddr,
    transport: Transport,
    login: Login,
    expected: ExpectedIdentity,
    timeout: Duration,
    answer_timeout: Duration,
}

impl Endpoint {
    /// A node that asks for no credentials, whichever it is. `timeout` bounds the connecting with everything that belongs to
    /// it, and each answer later.
    pub fn new(address: SocketAddr, timeout: Duration) -> Self {
        Self {
            address,
            transport: Transport::Plain,
            login: Login::None,
            expected: ExpectedIdentity::Any,
            timeout,
            answer_timeout: timeout,
        }
    }

    /// The same node at another of its ports.
    #[must_use]
    pub fn at_port(mut self, port: u16) -> Self {
        self.address.set_port(port);
        self
    }

    /// Encrypts so.
    #[must_use]
    pub fn with_transport(self, transport: Transport) -> Self {
        Self { transport, ..self }
    }

    /// Logs in with these credentials.
    #[must_use]
    pub fn with_credentials(self, credentials: NodeCredentials) -> Self {
        self.with_login(Login::Required(credentials))
    }

    /// Logs in so.
    #[must_use]
    pub fn with_login(self, login: Login) -> Self {
        Self { login, ..self }
    }

    /// Refuses a connection to any other node.
    #[must_use]
    pub fn expecting(self, expected: impl Into<ExpectedIdentity>) -> Self {
        Self {
            expected: expected.into(),
            ..self
        }
    }

    /// Connects within another time; the time for answers stays.
    #[must_use]
    pub fn connecting_within(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Waits longer for answers than for the connection, for commands that take long.
    #[must_use]
    pub fn with_answer_timeout(self, answer_timeout: Duration) -> Self {
        Self {
            answer_timeout,
            ..self
        }
    }

    /// Where the node listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether what is sent is encrypted.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// How to log in.
    pub fn login(&self) -> &Login {
        &self.login
    }

    /// User and password, if it logs in.
    pub fn credentials(&self) -> Option<&NodeCredentials> {
        self.login.credentials()
    }

    /// Which node may answer.
    pub fn expected(&self) -> &ExpectedIdentity {
        &self.expected
    }

    /// How long connecting may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// How long each answer may take once the connection is open: as long as connecting, unless set otherwise.
    pub fn answer_timeout(&self) -> Duration {
        self.answer_timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_hides_the_password() {
        let credentials = NodeCredentials::new("backup", SecretString::from("hunter2"));
        let endpoint = Endpoint::new(([10, 0, 0, 1], 6379).into(), Duration::from_secs(1))
            .with_credentials(credentials);
        let text = format!("{endpoint:?}");
        assert!(
            text.contains("backup") && !text.contains("hunter2"),
            "{text}"
        );
    }

    #[test]
    fn only_expected_nodes_are_accepted() {
        let [a, b] = [1, 2].map(|byte| NodeId::from_bytes([byte; 20]));
        assert!(ExpectedIdentity::Any.accepts(a));
        assert!(ExpectedIdentity::from(a).accepts(a) && !ExpectedIdentity::from(a).accepts(b));
        let members = ExpectedIdentity::from(Arc::new(BTreeSet::from([b])));
        assert!(members.accepts(b) && !members.accepts(a));
    }
}

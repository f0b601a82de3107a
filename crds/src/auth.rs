//! Who may log in to the servers of a RedisCluster, and with which rights.

use kube::{KubeSchema, core::Rule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who may log in to the servers, and with which rights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthPolicy {
    /// While true, the controllers log in as users of their own, and clients as the users that are given here. Set to true on a cluster
    /// that runs, the users come first, then the pods are replaced as update says, and in the end the user default is as defaultUser
    /// says. Set to false, the same is done backwards: every client may do everything.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// The user default, as which a client logs in that gives no name. Absent: it is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_user: Option<DefaultUser>,
    /// Users of clients. One that is taken out is removed from the servers, and its connections are closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub users: Vec<ClusterUser>,
    /// How long a password that was replaced still lets its user in, for example 5m: 3 minutes to 24 hours.
    #[serde(default = "five_minutes")]
    #[schemars(length(max = 8), regex(pattern = r"^[0-9]{1,5}(s|m|h)$"))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('3m') && duration(self) <= duration('24h')").message("auth.overlap is 3m to 24h"))]
    pub overlap: String,
}

fn yes() -> bool {
    true
}

fn five_minutes() -> String {
    "5m".to_owned()
}

impl Default for AuthPolicy {
    fn default() -> Self {
        Self {
            enabled: true,
            default_user: None,
            users: Vec::new(),
            overlap: five_minutes(),
        }
    }
}

/// The user default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.noPassword) && self.noPassword) != has(self.passwordSecretRefs)").message("auth.defaultUser: give exactly one of noPassword: true and passwordSecretRefs"))]
pub struct DefaultUser {
    /// While true, it needs no password: every client that reaches a server may do what rules say.
    #[serde(default)]
    pub no_password: bool,
    /// Its passwords: every one of them lets it in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 4))]
    pub password_secret_refs: Vec<PasswordSecretRef>,
    /// What it may do, as in ACL SETUSER.
    #[serde(default = "everything")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[^\x00-\x1f\x7f]+$"))]
    #[x_kube(validation = rights_alone())]
    pub rules: String,
}

fn everything() -> String {
    "~* &* +@all".to_owned()
}

/// A user of clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterUser {
    /// Its name: letters, digits, dots, dashes and underscores. Not default, and nothing that begins with redis-operator.
    #[schemars(
        length(min = 1, max = 64),
        regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    )]
    #[x_kube(validation = Rule::new("self.lowerAscii() != 'default' && !self.lowerAscii().startsWith('redis-operator')").message("auth.users: default is auth.defaultUser, and names that begin with redis-operator belong to the controllers"))]
    pub name: String,
    /// Its passwords: every one of them lets it in. One whose Secret changes is replaced on the servers; the one before lets it in for the
    /// time in auth.overlap.
    #[schemars(length(min = 1, max = 4))]
    pub password_secret_refs: Vec<PasswordSecretRef>,
    /// What it may do, as in ACL SETUSER, for example "~orders:* +@read +@write". Rules that the servers refuse are named in the condition
    /// UsersApplied, and the user keeps those that it had.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[^\x00-\x1f\x7f]+$"))]
    #[x_kube(validation = rights_alone())]
    pub rules: String,
    /// While false, it cannot log in.
    #[serde(default = "yes")]
    pub enabled: bool,
}

/// Where a password is: a key of a Secret in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PasswordSecretRef {
    /// Name of the Secret.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Key in its data. A line break at the end is no part of the password.
    #[serde(default = "password_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn password_key() -> String {
    crate::KEY_PASSWORD.to_owned()
}

/// Passwords are in Secrets, and whether a user is on has a field: rules are what it may do.
fn rights_alone() -> Rule {
    Rule::new("!self.matches('(?i)(^| )([><#!]|(on|off|nopass|resetpass|reset)( |$))')").message(
        "rules say what the user may do: passwords (>, <, #, !, nopass, resetpass), on, off and reset have no place in them",
    )
}

/// How far clients have to log in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Authentication {
    /// The servers know no users but default, which may do everything.
    #[default]
    Off,
    /// The servers know the users; default may still do everything.
    Introducing,
    /// What the spec says is in force.
    Required,
    /// The servers still know the users; default may do everything again.
    Withdrawing,
}

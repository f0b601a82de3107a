//! How far the servers of a cluster have their users, for the status.

use super::plan::UsersProblem;
use crds::{Authentication, OwnUser};

/// How far the servers have the users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsersReport {
    /// How far clients have to log in.
    pub authentication: Authentication,
    /// What the user has to correct.
    pub problems: Vec<UsersProblem>,
    /// Pods whose servers do not have them yet.
    pub lacking: Vec<String>,
    /// Own users whose password is being replaced.
    pub replacing: Vec<OwnUser>,
    /// Whether something was changed just now.
    pub changed: bool,
}

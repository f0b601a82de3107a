//! The condition `UsersApplied`: whether every server has the users of the spec.

use crate::users::report::UsersReport;
use common::{kubernetes::conditions::ConditionUpdate, sentence::names};
use crds::{Authentication, CONDITION_USERS as KIND};

/// The condition. What the user has to correct comes first.
pub(super) fn users_applied(users: &UsersReport) -> ConditionUpdate {
    if users.authentication == Authentication::Off {
        let message = "every client that reaches a server may do everything: spec.auth gives the cluster users";
        return ConditionUpdate::no(KIND, "NoUsers", message);
    }
    if let Some(first) = users.problems.first() {
        let sentences: Vec<String> = users.problems.iter().map(ToString::to_string).collect();
        return ConditionUpdate::no(KIND, first.reason(), sentences.join("; "));
    }
    if !users.lacking.is_empty() {
        let pods = names("pod", &users.lacking);
        return ConditionUpdate::no(
            KIND,
            "Applying",
            format!("{pods}: the users are not set yet"),
        );
    }
    if !users.replacing.is_empty() {
        let replacing: Vec<String> = users
            .replacing
            .iter()
            .map(|user| user.name().to_owned())
            .collect();
        let users = names("user", &replacing);
        return ConditionUpdate::no(
            KIND,
            "ReplacingPasswords",
            format!("{users}: the password is being replaced"),
        );
    }
    match users.authentication {
        Authentication::Introducing => {
            let message = "the servers know the users; default may do everything until every pod was made with them";
            ConditionUpdate::no(KIND, "Introducing", message)
        }
        Authentication::Withdrawing => {
            let message =
                "every client may do everything; the users go once every pod was made without them";
            ConditionUpdate::no(KIND, "Withdrawing", message)
        }
        Authentication::Off | Authentication::Required => {
            ConditionUpdate::yes(KIND, "Applied", "every server has the users of spec.auth")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::users::plan::UsersProblem;

    #[test]
    fn what_a_person_has_to_correct_comes_first() {
        let reason = |users: &UsersReport| {
            let found = users_applied(users);
            (found.holds, found.reason)
        };
        let mut users = UsersReport::default();
        assert_eq!(reason(&users), (Some(false), "NoUsers"));
        users.authentication = Authentication::Required;
        assert_eq!(reason(&users), (Some(true), "Applied"));
        users.lacking = vec!["shop-0-0".to_owned()];
        assert_eq!(reason(&users), (Some(false), "Applying"));
        users.problems = vec![UsersProblem::RulesRefused {
            user: "app".to_owned(),
            words: "Unknown command".to_owned(),
        }];
        assert_eq!(reason(&users), (Some(false), "RulesRefused"));
        let found = users_applied(&users);
        assert!(found.message.contains("user app") && found.message.contains("spec.auth"));
    }
}

//! The condition `AccessReady`: whether clients outside the network of the pods reach every server.

use crate::access::report::AccessReport;
use common::{
    kubernetes::conditions::ConditionUpdate,
    sentence::{names, shortened},
};
use crds::{CONDITION_ACCESS as KIND, access_service_name};

/// The condition; none where clients outside are not to reach the servers, and none is sent to a load balancer any more.
pub(super) fn access_ready(found: &AccessReport) -> Option<ConditionUpdate> {
    let redirects = found.status.as_ref()?.redirects;
    let lacking = || names("pod", &found.lacking);
    if !found.is_wanted {
        let message = if found.lacking.is_empty() {
            "clients are not sent to load balancers any more, which go now".to_owned()
        } else {
            format!("{}: clients are still sent to load balancers", lacking())
        };
        return Some(ConditionUpdate::no(KIND, "Withdrawing", message));
    }
    if let Some((pod, address)) = found.unusable.first() {
        let message = format!(
            "Service {}: servers can announce a name of letters, digits, dots and dashes, or an address of IP version 4, not {address}: give it one of these, for example by access.annotations",
            access_service_name(pod)
        );
        return Some(ConditionUpdate::no(KIND, "AddressNotUsable", message));
    }
    if !found.old.is_empty() {
        let pods = names("pod", &found.old);
        let message = format!(
            "{pods}: servers before Redis 7.0 cannot tell clients the addresses of load balancers: set spec.version or spec.image to a newer one"
        );
        return Some(ConditionUpdate::no(KIND, "ServerTooOld", message));
    }
    if !found.without.is_empty() {
        let services: Vec<String> = found
            .without
            .iter()
            .map(|pod| access_service_name(pod))
            .collect();
        let message = format!(
            "{}: no load balancer has been assigned yet; kubectl describe shows what its provider says",
            names("Service", &services)
        );
        return Some(ConditionUpdate::no(
            KIND,
            "NoLoadBalancer",
            shortened(&message),
        ));
    }
    if !found.lacking.is_empty() || !redirects || found.begins {
        let message = if found.lacking.is_empty() {
            "every server announces its load balancer; clients are redirected to them once all servers know all of them".to_owned()
        } else {
            format!("{}: clients are not given the load balancer yet", lacking())
        };
        return Some(ConditionUpdate::no(KIND, "Announcing", message));
    }
    let message = "every server redirects clients to the load balancers of the pods";
    Some(ConditionUpdate::yes(KIND, "Announced", message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::AccessStatus;

    #[test]
    fn what_a_person_has_to_correct_comes_first() {
        let reason = |found: &AccessReport| {
            access_ready(found).map(|condition| (condition.holds, condition.reason))
        };
        let mut found = AccessReport::default();
        assert_eq!(reason(&found), None);
        found.status = Some(AccessStatus::default());
        assert_eq!(reason(&found), Some((Some(false), "Withdrawing")));
        found.is_wanted = true;
        assert_eq!(reason(&found), Some((Some(false), "Announcing")));
        found.status.as_mut().unwrap().redirects = true;
        assert_eq!(reason(&found), Some((Some(true), "Announced")));
        found.lacking = vec!["shop-0-0".to_owned()];
        assert_eq!(reason(&found), Some((Some(false), "Announcing")));
        found.without = vec!["shop-0-1".to_owned()];
        assert_eq!(reason(&found), Some((Some(false), "NoLoadBalancer")));
        let message = access_ready(&found).unwrap().message;
        assert!(message.contains("shop-0-1-access"), "{message}");
        found.old = vec!["shop-0-1".to_owned()];
        assert_eq!(reason(&found), Some((Some(false), "ServerTooOld")));
        found.unusable = vec![("shop-1-0".to_owned(), "2001:db8::1".to_owned())];
        assert_eq!(reason(&found), Some((Some(false), "AddressNotUsable")));
    }
}

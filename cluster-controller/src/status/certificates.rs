//! The condition `CertificatesValid`: whether every server shows the certificate that is wanted, and for how long that is valid.

use crate::certificates::report::CertificatesReport;
use common::{kubernetes::conditions::ConditionUpdate, sentence::names};
use crds::{CONDITION_CERTIFICATES as KIND, Encryption};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// How long before its end a certificate is warned of.
const WARNED: SignedDuration = SignedDuration::from_hours(14 * 24);

/// The condition; none where nothing is encrypted.
pub(super) fn certificates_valid(
    found: &CertificatesReport,
    now: Timestamp,
) -> Option<ConditionUpdate> {
    let shown = found.shown.as_ref()?;
    let (serial, until) = (&shown.serial, shown.not_after.0);
    if until <= now {
        let mut message =
            format!("the certificate {serial} of the servers was valid until {until}");
        if let Some((_, words)) = &found.refused {
            message.push_str("; ");
            message.push_str(words);
        }
        return Some(ConditionUpdate::no(KIND, "Expired", message));
    }
    if let Some((reason, words)) = &found.refused {
        let message =
            format!("{words}; the servers keep the certificate {serial}, valid until {until}");
        return Some(ConditionUpdate::no(KIND, reason, message));
    }
    let step = waits(found, shown.encryption).map(|waits| {
        format!(
            "status.tls.encryption is {} and becomes {}: {waits}",
            shown.encryption.name(),
            found.goal.name()
        )
    });
    if until < now + WARNED {
        let mut message =
            format!("the certificate {serial} of the servers is valid until {until}: renew it");
        if let Some(step) = step {
            message.push_str("; ");
            message.push_str(&step);
        }
        return Some(ConditionUpdate::no(KIND, "ExpiresSoon", message));
    }
    if let Some(message) = step {
        return Some(ConditionUpdate::no(KIND, "Applying", message));
    }
    if !found.lacking.is_empty() {
        let pods = names("pod", &found.lacking);
        let message = format!(
            "{pods}: the certificate {serial} is not shown yet, connections in the clear are not closed yet, or clients are still redirected to ports of before"
        );
        return Some(ConditionUpdate::no(KIND, "Applying", message));
    }
    let message = format!("every server shows the certificate {serial}, valid until {until}");
    Some(ConditionUpdate::yes(KIND, "Valid", message))
}

/// What the next step waits for, while servers do not encrypt as far as they are to.
fn waits(found: &CertificatesReport, now: Encryption) -> Option<String> {
    let goes_on = now < found.goal;
    if now == found.goal && now.has_certificates() {
        return None;
    }
    if found.is_held {
        return Some(
            "waiting for the backup, restore or move of slots that is under way".to_owned(),
        );
    }
    let lacking = names("pod", &found.lacking);
    Some(match now {
        Encryption::Off => "pods that have certificates are replaced, as update says".to_owned(),
        Encryption::Prepared if goes_on && !found.lacking.is_empty() => format!(
            "{lacking}: replaced by pods with certificates, as update says; where its strategy is OnDelete, delete them"
        ),
        _ if !found.lacking.is_empty() => {
            format!("{lacking}: the server has not taken the present step yet")
        }
        Encryption::Prepared | Encryption::Both | Encryption::Only => {
            "the next step follows".to_owned()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::TlsStatus;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn a_certificate_is_warned_of_before_its_end() {
        let day = SignedDuration::from_hours(24);
        let end = Timestamp::UNIX_EPOCH + day * 100;
        let mut found = CertificatesReport::default();
        assert_eq!(certificates_valid(&found, end), None);
        found.shown = Some(TlsStatus {
            serial: "07".to_owned(),
            not_after: Time(end),
            encryption: Encryption::Only,
        });
        found.goal = Encryption::Only;
        let reason = |found: &CertificatesReport, days: i32| {
            let condition = certificates_valid(found, Timestamp::UNIX_EPOCH + day * days).unwrap();
            (condition.holds, condition.reason)
        };
        assert_eq!(reason(&found, 85), (Some(true), "Valid"));
        assert_eq!(reason(&found, 87), (Some(false), "ExpiresSoon"));
        assert_eq!(reason(&found, 100), (Some(false), "Expired"));
        found.lacking = vec!["shop-0-0".to_owned()];
        assert_eq!(reason(&found, 85), (Some(false), "Applying"));
        assert_eq!(reason(&found, 87), (Some(false), "ExpiresSoon"));
        found.lacking.clear();
        found.refused = None;
        found.goal = Encryption::Off;
        assert_eq!(reason(&found, 85), (Some(false), "Applying"));
        let soon = certificates_valid(&found, Timestamp::UNIX_EPOCH + day * 87).unwrap();
        assert!(soon.message.contains("renew it") && soon.message.contains("becomes Off"));
        let mut removed = found.clone();
        removed.shown.as_mut().unwrap().encryption = Encryption::Off;
        assert_eq!(reason(&removed, 85), (Some(false), "Applying"));
        found.refused = Some(("SecretExpired", "Secret a: over".to_owned()));
        assert_eq!(reason(&found, 87), (Some(false), "SecretExpired"));
    }
}

//! Whether the version that a cluster runs should still be run, as the catalog says. Pure.

use common::kubernetes::conditions::ConditionUpdate;
use crds::RedisVersionSpec;
use k8s_openapi::jiff::{Timestamp, civil::Date, tz::TimeZone};

/// Type of the condition.
pub const CONDITION: &str = "VersionSupported";

/// What the catalog says of the version that a cluster runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VersionSupport {
    /// No entry says anything: the spec gives the image, or the entry is gone.
    #[default]
    Unlisted,
    /// It is supported, until this day.
    Supported(Option<Date>),
    /// It should not be run any more; a sentence of the catalog.
    Deprecated(String),
    /// It has had no fixes since this day. A sentence of the catalog, if there is one.
    Ended(Date, Option<String>),
}

impl VersionSupport {
    /// What an entry says at a time. The day begins in UTC.
    pub fn of(entry: &RedisVersionSpec, now: Timestamp) -> Self {
        let end = entry
            .end_of_life
            .as_deref()
            .and_then(|day| day.parse::<Date>().ok());
        let today = now.to_zoned(TimeZone::UTC).date();
        match (end, &entry.deprecated) {
            (Some(end), why) if end <= today => Self::Ended(end, why.clone()),
            (_, Some(why)) => Self::Deprecated(why.clone()),
            (end, None) => Self::Supported(end),
        }
    }

    /// The condition of a cluster with this entry. It does not touch `Ready`: the cluster serves.
    pub fn condition(&self, entry: Option<&str>) -> ConditionUpdate {
        let entry = entry.unwrap_or("?");
        let cure = "name a newer one in spec.version";
        match self {
            Self::Unlisted => ConditionUpdate::unknown(
                CONDITION,
                "NotInCatalog",
                "no RedisVersion says how long this server is supported",
            ),
            Self::Supported(None) => ConditionUpdate::yes(
                CONDITION,
                "Supported",
                format!("RedisVersion {entry} has no end of life"),
            ),
            Self::Supported(Some(end)) => ConditionUpdate::yes(
                CONDITION,
                "Supported",
                format!("RedisVersion {entry} is supported until {end}"),
            ),
            Self::Deprecated(why) => ConditionUpdate::no(
                CONDITION,
                "VersionDeprecated",
                format!("RedisVersion {entry} is deprecated: {why}; {cure}"),
            ),
            Self::Ended(end, why) => {
                let why = why.as_ref().map(|why| format!(": {why}"));
                let why = why.unwrap_or_default();
                ConditionUpdate::no(
                    CONDITION,
                    "VersionEndOfLife",
                    format!(
                        "RedisVersion {entry} has had its end of life on {end}, and gets no fixes{why}; {cure}"
                    ),
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::Distribution;

    fn at(entry: &RedisVersionSpec, time: &str) -> ConditionUpdate {
        let time = time.parse().unwrap();
        VersionSupport::of(entry, time).condition(Some("redis-7"))
    }

    #[test]
    fn the_end_of_life_begins_with_its_day() {
        let mut entry = RedisVersionSpec {
            version: "7.0.15".into(),
            distribution: Distribution::Redis,
            image: "image".into(),
            upgrades_from: Vec::new(),
            deprecated: None,
            end_of_life: Some("2027-05-31".into()),
        };
        let before = at(&entry, "2027-05-30T23:59:59Z");
        assert_eq!((before.holds, before.reason), (Some(true), "Supported"));
        assert!(before.message.contains("2027-05-31"), "{before:?}");
        let after = at(&entry, "2027-05-31T00:00:00Z");
        assert_eq!(
            (after.holds, after.reason),
            (Some(false), "VersionEndOfLife")
        );
        entry.deprecated = Some("7.0.16 repairs CVE-2030-1".into());
        let both = at(&entry, "2027-05-30T00:00:00Z");
        assert_eq!(both.reason, "VersionDeprecated");
        assert_eq!(
            both.message,
            "RedisVersion redis-7 is deprecated: 7.0.16 repairs CVE-2030-1; name a newer one in spec.version"
        );
        let ended = at(&entry, "2028-01-01T00:00:00Z");
        assert!(ended.message.contains("CVE-2030-1"), "{ended:?}");
        // A day that does not exist passes no schema, and warns of nothing.
        entry.end_of_life = Some("2027-02-31".into());
        entry.deprecated = None;
        assert_eq!(at(&entry, "2028-01-01T00:00:00Z").holds, Some(true));
        let unlisted = VersionSupport::Unlisted.condition(None);
        assert_eq!(unlisted.holds, None);
    }
}

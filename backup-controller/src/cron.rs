//! Cron expressions as Kubernetes reads them: five fields, or a descriptor such as `@daily`
//! (<https://pkg.go.dev/github.com/robfig/cron/v3#ParseStandard>, which the API server validates with). General cron libraries also
//! accept what it refuses (seconds, `7` for Sunday, `L`, `#`).

use std::fmt;

/// One of the five fields.
struct Field {
    name: &'static str,
    least: u32,
    most: u32,
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field {
        name: "minute",
        least: 0,
        most: 59,
        names: &[],
    },
    Field {
        name: "hour",
        least: 0,
        most: 23,
        names: &[],
    },
    Field {
        name: "day of month",
        least: 1,
        most: 31,
        names: &[],
    },
    Field {
        name: "month",
        least: 1,
        most: 12,
        names: &[
            "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
        ],
    },
    Field {
        name: "day of week",
        least: 0,
        most: 6,
        names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
    },
];

const DESCRIPTORS: [&str; 7] = [
    "@yearly",
    "@annually",
    "@monthly",
    "@weekly",
    "@daily",
    "@midnight",
    "@hourly",
];

/// Why an expression is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvalidCron {
    /// Another number of fields.
    Fields(usize),
    /// Neither a known descriptor nor `@every` with a duration.
    Descriptor,
    /// A time zone in the expression: Kubernetes has a field for it.
    TimeZone,
    /// A part of a field.
    Part {
        /// Name of the field in messages, for example `minute`.
        field: &'static str,
        /// What was written.
        part: String,
        /// The least allowed value.
        least: u32,
        /// The largest allowed value.
        most: u32,
    },
}

impl fmt::Display for InvalidCron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fields(count) => write!(
                f,
                "{count} fields instead of five (minute hour day month weekday)"
            ),
            Self::Descriptor => write!(
                f,
                "unknown descriptor; known are {} and @every <duration>",
                DESCRIPTORS.join(", ")
            ),
            Self::TimeZone => write!(f, "set timeZone instead of TZ= or CRON_TZ="),
            Self::Part {
                field,
                part,
                least,
                most,
            } => write!(f, "{field} `{part}` is not within {least}-{most}"),
        }
    }
}

/// Whether Kubernetes accepts the expression.
pub fn check(expression: &str) -> Result<(), InvalidCron> {
    if expression.contains("TZ") {
        return Err(InvalidCron::TimeZone);
    }
    if expression.starts_with('@') {
        let every = expression.strip_prefix("@every ");
        let known = DESCRIPTORS.contains(&expression) || every.is_some_and(is_duration);
        return if known {
            Ok(())
        } else {
            Err(InvalidCron::Descriptor)
        };
    }
    let words: Vec<&str> = expression.split_whitespace().collect();
    if words.len() != FIELDS.len() {
        return Err(InvalidCron::Fields(words.len()));
    }
    for (field, word) in FIELDS.iter().zip(words) {
        for part in word.split(',') {
            if !field.accepts(part) {
                return Err(InvalidCron::Part {
                    field: field.name,
                    part: part.to_owned(),
                    least: field.least,
                    most: field.most,
                });
            }
        }
    }
    Ok(())
}

impl Field {
    /// `*`, `?`, a value or a range, each with an optional step.
    fn accepts(&self, part: &str) -> bool {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (part, None),
        };
        let step_is_good = step.is_none_or(|step| number(step).is_some_and(|step| step > 0));
        let range_is_good = match range.split_once('-') {
            _ if matches!(range, "*" | "?") => true,
            None => self.value(range).is_some(),
            Some((first, last)) => match (self.value(first), self.value(last)) {
                (Some(first), Some(last)) => first <= last,
                (None, _) | (_, None) => false,
            },
        };
        step_is_good && range_is_good
    }

    fn value(&self, word: &str) -> Option<u32> {
        let named = self.names.iter().zip(self.least..);
        let named = named
            .filter(|(name, _)| name.eq_ignore_ascii_case(word))
            .map(|(_, value)| value)
            .next();
        let value = named.or_else(|| number(word))?;
        (self.least..=self.most).contains(&value).then_some(value)
    }
}

fn number(word: &str) -> Option<u32> {
    word.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| word.parse().ok())?
}

/// A duration of Go, for example `1h30m`.
fn is_duration(text: &str) -> bool {
    const UNITS: [&str; 7] = ["ns", "us", "µs", "ms", "h", "m", "s"];
    let mut rest = text.trim();
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let unit = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let digits = rest.len() > unit.len() && !rest.starts_with('.');
        let Some(after) = UNITS.iter().find_map(|known| unit.strip_prefix(known)) else {
            return false;
        };
        if !digits {
            return false;
        }
        rest = after;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubernetes_accepts_is_accepted() {
        for expression in [
            "30 2 * * *",
            "*/5 0-23/2 1,15 jan-MAR sun",
            "0 0 ? * 6",
            "5/15 * * * *",
            "  0 4\t* * 1-5 ",
            "@daily",
            "@every 1h30m",
        ] {
            assert_eq!(check(expression), Ok(()), "{expression}");
        }
    }

    #[test]
    fn a_refusal_names_the_field_and_its_limits() {
        for (expression, message) in [
            ("61 * * * *", "minute `61` is not within 0-59"),
            ("0 24 * * *", "hour `24` is not within 0-23"),
            ("0 0 0 * *", "day of month `0` is not within 1-31"),
            ("0 0 1 foo *", "month `foo` is not within 1-12"),
            ("0 0 * * 7", "day of week `7` is not within 0-6"),
            ("0,75 0 * * *", "minute `75` is not within 0-59"),
            ("9-3 0 * * *", "minute `9-3` is not within 0-59"),
            ("*/0 0 * * *", "minute `*/0` is not within 0-59"),
            ("1/2/3 0 * * *", "minute `1/2/3` is not within 0-59"),
            (
                " * * * *",
                "4 fields instead of five (minute hour day month weekday)",
            ),
            (
                "TZ=UTC 0 0 * * *",
                "set timeZone instead of TZ= or CRON_TZ=",
            ),
        ] {
            assert_eq!(check(expression).unwrap_err().to_string(), message);
        }
        assert_eq!(check("@nightly"), Err(InvalidCron::Descriptor));
        assert_eq!(check("@every night"), Err(InvalidCron::Descriptor));
    }
}

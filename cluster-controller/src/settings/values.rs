//! Values of settings, as users write them and as servers report them. Pure.

use k8s_openapi::{
    api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity,
};

/// A smaller limit gives no `maxmemory`: a server without keys needs a good part of it.
const SMALLEST_LIMIT: u64 = 32 << 20;

/// `maxmemory` in bytes for a container with these limits, where the user gives none: three quarters of the memory limit. The rest is for
/// what `maxmemory` does not count or what comes on top: pages copied while a child writes a snapshot or the append-only file, buffers of
/// replicas, fragmentation. None without a memory limit.
pub fn default_maxmemory(resources: Option<&ResourceRequirements>) -> Option<u64> {
    let limit = memory_limit(resources)?;
    (limit >= SMALLEST_LIMIT).then_some(limit - limit / 4)
}

/// The memory limit of a container, in bytes.
pub fn memory_limit(resources: Option<&ResourceRequirements>) -> Option<u64> {
    bytes(resources?.limits.as_ref()?.get("memory")?)
}

/// A quantity of Kubernetes in whole bytes: `512Mi`, `1.5Gi`, `1G`, `1000`. None for what is no such number.
pub fn bytes(quantity: &Quantity) -> Option<u64> {
    let text = quantity.0.as_str();
    let end = text.find(|one: char| !one.is_ascii_digit() && one != '.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let factor: u64 = match unit {
        "" => 1,
        "k" => 1000,
        "Ki" => 1 << 10,
        "M" => 1_000_000,
        "Mi" => 1 << 20,
        "G" => 1_000_000_000,
        "Gi" => 1 << 30,
        "T" => 1_000_000_000_000,
        "Ti" => 1 << 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().ok()?;
    // Twelve digits are less than a byte of a tebibyte.
    let digits: String = fraction.chars().take(12).collect();
    let scale = 10u128.pow(u32::try_from(digits.len()).ok()?);
    let part = if digits.is_empty() {
        0
    } else {
        digits.parse::<u128>().ok()?
    };
    let part = u64::try_from(u128::from(factor) * part / scale).ok()?;
    let bytes = whole.checked_mul(factor)?.checked_add(part)?;
    Some(bytes)
}

/// Whether a server that reports `actual` has what is wanted. Only what is sure: equal texts, or the same number of bytes
/// (`memtoull` in the engine's `util.c`). Other spellings are learned by setting them once.
pub fn is_same(wanted: &str, actual: &str) -> bool {
    wanted == actual
        || memory(wanted).is_some_and(|bytes| actual.parse::<u64>().ok() == Some(bytes))
}

fn memory(text: &str) -> Option<u64> {
    let end = text.find(|one: char| !one.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "b" => 1,
        "k" => 1000,
        "kb" => 1 << 10,
        "m" => 1_000_000,
        "mb" => 1 << 20,
        "g" => 1_000_000_000,
        "gb" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// What `CONFIG SET` has to be given for a value of redis.conf: the file is split into arguments between spaces, and quotes are taken
/// away (`sdssplitargs` in the engine's `sds.c`). A text that it would refuse stays as it is.
pub fn unquoted(value: &str) -> String {
    arguments(value).map_or_else(|| value.to_owned(), |arguments| arguments.join(" "))
}

fn arguments(text: &str) -> Option<Vec<String>> {
    let mut arguments = Vec::new();
    let mut rest = text.chars().peekable();
    loop {
        while rest.next_if(|one| one.is_whitespace()).is_some() {}
        if rest.peek().is_none() {
            return Some(arguments);
        }
        let mut argument = String::new();
        while let Some(one) = rest.next_if(|one| !one.is_whitespace()) {
            match one {
                '"' | '\'' => {
                    quoted(one, &mut rest, &mut argument)?;
                    // A closing quote ends the argument.
                    if rest.peek().is_some_and(|next| !next.is_whitespace()) {
                        return None;
                    }
                }
                other => argument.push(other),
            }
        }
        arguments.push(argument);
    }
}

/// Reads up to the closing quote. None: there is none.
fn quoted(quote: char, rest: &mut impl Iterator<Item = char>, argument: &mut String) -> Option<()> {
    loop {
        match rest.next()? {
            one if one == quote => return Some(()),
            '\\' if quote == '"' => argument.push(match rest.next()? {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'b' => '\u{8}',
                'a' => '\u{7}',
                other => other,
            }),
            '\\' => match rest.next()? {
                '\'' => argument.push('\''),
                other => argument.extend(['\\', other]),
            },
            other => argument.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn memory_is_compared_by_bytes() {
        assert!(is_same("1gb", "1073741824") && is_same("1GB", "1073741824"));
        assert!(is_same("64mb", "67108864") && is_same("1k", "1000") && is_same("5b", "5"));
        assert!(is_same("yes", "yes") && is_same("", ""));
        assert!(!is_same("1gb", "1073741823") && !is_same("yes", "YES"));
        assert!(!is_same("5%", "5") && !is_same("1gb", "1gigabyte") && !is_same("", "0"));
    }

    #[test]
    fn quotes_of_the_file_are_taken_away() {
        for (file, value) in [
            ("\"\"", ""),
            ("900 1  300 10", "900 1 300 10"),
            ("\"a b\"", "a b"),
            ("'it\\'s'", "it's"),
            (r#""a\"b\\c""#, r#"a"b\c"#),
            ("\"open", "\"open"),
            ("\"a\"b", "\"a\"b"),
            ("plain", "plain"),
        ] {
            assert_eq!(unquoted(file), value, "{file}");
        }
    }

    #[test]
    fn quantities_become_bytes() {
        for (text, expected) in [
            ("1Gi", Some(1 << 30)),
            ("1.5Gi", Some(3 << 29)),
            ("128Mi", Some(128 << 20)),
            ("1G", Some(1_000_000_000)),
            ("1000", Some(1000)),
            ("500m", None),
            ("1e3", None),
            ("", None),
        ] {
            assert_eq!(bytes(&Quantity(text.to_owned())), expected, "{text}");
        }
    }

    #[test]
    fn maxmemory_leaves_a_quarter_of_the_limit() {
        let limited = |memory: &str| ResourceRequirements {
            limits: Some([("memory".to_owned(), Quantity(memory.to_owned()))].into()),
            ..ResourceRequirements::default()
        };
        assert_eq!(default_maxmemory(Some(&limited("1Gi"))), Some(805_306_368));
        assert_eq!(default_maxmemory(Some(&limited("16Mi"))), None);
        assert_eq!(default_maxmemory(None), None);
        let none = ResourceRequirements::default();
        assert_eq!(default_maxmemory(Some(&none)), None);
    }

    proptest! {
        /// What is read back from any text is never mistaken for another number of bytes.
        #[test]
        fn different_bytes_are_never_the_same(number in 0u64..1 << 40, other in 0u64..1 << 40, unit in "(k|kb|m|mb|g|gb|b)?") {
            let wanted = format!("{number}{unit}");
            let factor = memory(&format!("1{unit}")).unwrap_or(1);
            let bytes = u128::from(number) * u128::from(factor);
            prop_assert_eq!(is_same(&wanted, &other.to_string()), bytes == u128::from(other));
        }

        #[test]
        fn words_without_quotes_stay(words in prop::collection::vec("[a-z0-9%:~*&+@.-]{1,8}", 1..5)) {
            prop_assert_eq!(unquoted(&words.join("  ")), words.join(" "));
        }
    }
}

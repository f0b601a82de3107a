//! Bytes as digits.

use std::fmt::Write;

/// Lower case hexadecimal digits, two a byte.
pub fn hexadecimal(bytes: &[u8]) -> String {
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing into a String cannot fail.
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}

/// A SHA-256 in short: the prefix names the form, and half of the digest is enough to tell contents apart.
pub fn short_hash(digest: &[u8]) -> String {
    format!("v1-{}", hexadecimal(digest.get(..16).unwrap_or(digest)))
}

//! The RDB format: records, RESTORE payloads, checksums, counts per slot.

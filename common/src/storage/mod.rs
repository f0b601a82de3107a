//! Backups in S3-compatible storage: layout, manifest, blocks, uploads, reads.

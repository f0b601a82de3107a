//! Backups in S3-compatible storage: layout, manifest, blocks, uploads, reads.
//!
//! Writing: [`ShardWriter`] takes the raw bytes of one shard, cuts them into blocks, compresses the blocks in parallel and
//! uploads the result in parts. The [`Manifest`] is written last; a backup without one does not exist.
//! Reading: [`BlockReader`] fetches blocks ahead and proves each one before it hands it out.

pub mod block;
mod classify;
mod client;
pub mod compression;
pub mod digest;
mod documents;
pub mod error;
pub mod index;
pub mod layout;
pub mod location;
pub mod manifest;
pub mod object_store;
pub mod reader;
mod retry;
pub mod upload;
pub mod writer;

pub use block::{BLOCK_BYTES, BlockEntry, FirstRecord};
pub use compression::{Compression, CompressionPool};
pub use digest::Sha256Digest;
pub use error::{Place, S3Cause, StorageError};
pub use index::{ShardIndex, SlotCount};
pub use layout::{BackupId, Layout};
pub use location::{Checksums, Credentials, Location};
pub use manifest::{Manifest, ManifestError, ShardRecord};
pub use object_store::ObjectStore;
pub use reader::{BlockReader, RawBlock};
pub use writer::{ShardWriter, StoredObject};

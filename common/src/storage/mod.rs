//! Backups in S3-compatible storage: layout, manifest, blocks, uploads, reads.
//!
//! Writing: [`ShardWriter`] takes the raw bytes of one shard, splits them into blocks, compresses the blocks in parallel and
//! uploads the result in parts. The [`Manifest`] is written last; a backup without one does not exist.
//! Reading: [`BlockReader`] fetches blocks ahead and verifies each one before it returns it.
//! Limits: [`StorageRules`] are the operator's for tenants; the client dials only addresses that [`AddressRule`] allows.

mod addresses;
mod authority;
pub mod block;
mod cause;
mod classify;
mod client;
pub mod codec;
mod connector;
pub mod digest;
mod documents;
pub mod error;
pub mod index;
pub mod layout;
pub mod location;
pub mod manifest;
pub mod object_store;
mod operation;
mod pool;
pub mod reader;
mod retry;
mod rules;
pub mod upload;
pub mod writer;

pub use addresses::{AddressRule, RefusedAddress};
pub use authority::{AuthorityError, CertificateAuthority};
pub use block::{BLOCK_BYTES, BlockEntry, FirstRecord};
pub use cause::S3Cause;
pub use client::{StoreAccess, StoreIdentity};
pub use codec::Compression;
pub use digest::Sha256Digest;
pub use error::{S3Path, StorageError};
pub use index::{ShardIndex, SlotCount};
pub use layout::{BackupId, Layout};
pub use location::{Checksums, Credentials, Location};
pub use manifest::{Manifest, ManifestError, ShardRecord};
pub use object_store::ObjectStore;
pub use operation::S3Operation;
pub use pool::{CompressionPool, WorkCancelled};
pub use reader::{BlockReader, RawBlock};
pub use rules::{AmbientRefusal, StorageArguments, StorageRules};
pub use writer::{ShardWriter, StoredObject};

//! The RDB format: records, RESTORE payloads, checksums, counts per slot.
//!
//! An RDB is one stream without lengths: header, then records one after another, then the end opcode and a CRC-64.
//! A reader has to know every type in it to find where a value ends; nothing here needs to
//! know what is inside a value. Facts come from the engines' `rdb.h` and `rdb.c` (Redis 5.0 to 8.x, Valkey 7.2 to 9.x).

pub mod checksum;
pub mod counts;
pub mod error;
pub mod event;
pub mod payload;
pub mod reader;
pub mod value_type;

mod cursor;
mod lzf;
#[cfg(test)]
mod reader_tests;
mod shape;
#[cfg(test)]
mod synthetic;
mod walker;

pub use error::RdbError;
pub use event::{Event, Key};
pub use reader::{RecordReader, Resume};
pub use value_type::{Flavour, Header, ValueType};

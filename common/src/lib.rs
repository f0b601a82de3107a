//! What at least two of the three controllers need, and nothing else.

pub mod access;
pub mod claims;
pub mod cluster;
pub mod errors;
pub mod hexadecimal;
pub mod kubernetes;
pub mod rdb;
pub mod runtime;
pub mod sentence;
pub mod storage;

//! The end: SIGTERM or SIGINT.

//! The settings of the servers: what is wanted, what runs, and how the difference ends. Pure.
//!
//! A configuration that no pod runs with is tried by a server of its own first (`trial`). What `CONFIG SET` can change is changed while
//! the servers run and compared with `CONFIG GET` in every reconcile (`assess`, `live`); which settings need a restart is no list: the
//! server says so when it refuses (`answer`). `values` compares what servers write differently, `file` reads redis.conf, `template` what a
//! StatefulSet names, `tracker` remembers what servers answered, `stamp` keeps the restart hashes of pods.

pub mod answer;
pub mod assess;
pub mod file;
pub mod live;
pub mod stamp;
pub mod template;
pub mod tracker;
pub mod trial;
pub mod values;

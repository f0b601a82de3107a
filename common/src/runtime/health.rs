//! `/livez` and `/readyz`.

use std::{sync::Arc, time::Instant};

/// What the probes are answered from. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health {}

/// A loop that must turn.
#[derive(Debug)]
pub struct Heartbeat {}

/// Something that must be there before the process is ready.
#[derive(Debug)]
pub struct Gate {}

impl Health {
    /// A loop that promises to beat at least every 60 s until it is retired.
    pub fn heartbeat(&self, name: &'static str) -> Heartbeat {
        todo!()
    }

    /// Not ready until the gate is opened.
    pub fn gate(&self, name: &'static str) -> Gate {
        todo!()
    }
}

impl Heartbeat {
    /// The loop turns.
    pub fn beat(&self) {
        todo!()
    }
    /// The loop has ended as it should.
    pub fn retire(self) {
        todo!()
    }
}

impl Gate {
    /// It is there.
    pub fn open(&self) {
        todo!()
    }
}

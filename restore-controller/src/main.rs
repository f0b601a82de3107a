//! The restore-controller. Everything is in the library.

use clap::Parser;
use restore_controller::{arguments::Arguments, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    run::main(Arguments::parse())
}

//! The backup-controller. Everything is in the library.

use backup_controller::{arguments::Arguments, run};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    run::main(Arguments::parse())
}

//! A controller that does nothing, for the suite that looks at what every controller does beside its work: probes, leases,
//! SIGTERM.

use clap::Parser;
use common::{
    kubernetes::{
        call::ApiError,
        controller::{Controller, Reconcile},
        leases::{Leadership, Membership},
        outcome::Outcome,
    },
    runtime::{self, BoxError, CommonArguments, Program, Runtime},
};
use crds::RedisBackup;
use std::{process::ExitCode, sync::Arc};

const PROGRAM: Program = Program {
    name: "run-controller",
    version: "1.0.0",
};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    common: CommonArguments,
}

struct Idle;

impl Reconcile<RedisBackup> for Idle {
    type Error = ApiError;
    async fn reconcile(&self, _: Arc<RedisBackup>) -> Result<Outcome, ApiError> {
        Ok(Outcome::finished())
    }
}

async fn work(runtime: Runtime) -> Result<(), BoxError> {
    let leadership = Leadership::start(&runtime);
    let _membership = Membership::start(&runtime);
    let mut controller = Controller::new(&runtime, runtime.api());
    controller.only_leader(&leadership);
    controller.run(Arc::new(Idle)).await;
    Ok(())
}

fn main() -> ExitCode {
    runtime::run(PROGRAM, &Arguments::parse().common, work)
}

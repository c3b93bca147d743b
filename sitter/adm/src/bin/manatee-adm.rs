//! The operator's command line. See [`manatee_adm`].

use std::process::ExitCode;

use clap::Parser;
use manatee_adm::{Arguments, Outcome, run};
use manatee_shared::telemetry::{self, LogSettings};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Silent unless asked: what matters is in the output.
    let filter = std::env::var("LOG_LEVEL").unwrap_or_else(|_| "off".to_owned());
    if let Err(error) = telemetry::init(&LogSettings { filter, ..LogSettings::default() }) {
        eprintln!("manatee-adm: LOG_LEVEL: {error}");
        return ExitCode::FAILURE;
    }
    match run(arguments).await {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Found) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("manatee-adm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

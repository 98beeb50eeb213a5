//! The command line. What it can do is in the library; here are flags, files, clocks and sentences.

mod backbone;
mod config;
mod doctor;
mod fault;
mod infer;
mod manual;
mod merge;
mod outputs;
mod plugin;
mod run;
mod say;
mod target;
mod task;
mod verify;
mod why;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use fault::Fault;

/// Classifies 3D scans beside the scanner.
///
/// For research and integration work; it makes no diagnostic claim.
#[derive(Parser)]
#[command(
    name = "scanside",
    version,
    after_help = "Exit codes: 0 done; 1 a fault of the machine (disk, memory, network); 2 wrong usage or a file that \
                  cannot be used.\nSCANSIDE_LOG=info (or warn, debug, MODULE=debug) writes a log to stderr."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Infer(infer::Infer),
    Run(run::Run),
    Why(why::Why),
    Merge(merge::Merge),
    Backbone(backbone::Inspect),
    /// Task plugins.
    #[command(subcommand)]
    Plugin(plugin::PluginCommand),
    Verify(verify::Verify),
    /// The service's configuration, device.toml.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    Doctor(doctor::Doctor),
    #[command(hide = true)]
    Manual(manual::Manual),
}

/// Parses the arguments, does what they say, and turns errors into a sentence on stderr and an exit code.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, with code 0.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    log(&cli.command);
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            // Where stderr is closed there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "scanside: {}", fault.sentence());
            ExitCode::from(if fault.is_bad_input() { 2 } else { 1 })
        }
    }
}

/// The log on stderr: the service's always, that of other commands where it is asked for.
fn log(command: &Command) {
    let default = if matches!(command, Command::Run(_)) { LevelFilter::INFO } else { LevelFilter::OFF };
    let asked = std::env::var("SCANSIDE_LOG").ok().and_then(|asked| asked.parse().ok());
    let filter = asked.unwrap_or_else(|| Targets::new().with_default(default));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let log = tracing_subscriber::registry().with(filter);
    // journald writes the time itself.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.with(lines.without_time()).init();
    } else {
        log.with(lines).init();
    }
}

impl Command {
    fn run(self) -> Result<(), Fault> {
        match self {
            Self::Infer(command) => command.run(),
            Self::Run(command) => command.run(),
            Self::Why(command) => command.run(),
            Self::Merge(command) => command.run(),
            Self::Backbone(command) => command.run(),
            Self::Plugin(command) => command.run(),
            Self::Verify(command) => command.run(),
            Self::Config(command) => command.run(),
            Self::Doctor(command) => command.run(),
            Self::Manual(command) => command.run(Cli::command()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_flags_do_not_contradict_each_other() {
        super::Cli::command().debug_assert();
    }
}

//! The command line.

mod audit;
mod desire;
mod key;
mod publish;
mod rollout;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::{Error, Result};
use crate::keys::Keyring;
use crate::repository::{Lifetimes, Renewal, Repository};

/// Signs task plugins, and tells the fleet's devices which to run
#[derive(Parser)]
#[command(name = "scanside-fleet", version, arg_required_else_help = true, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Where things are.
#[derive(clap::Args)]
pub struct Common {
    /// The repository's folder, which a file server hands out
    #[arg(long, global = true, default_value = "repository", value_name = "DIR")]
    pub repository: PathBuf,
    /// Folders and files with private keys; never inside the repository. May be given several times, for root keys on sticks
    #[arg(long, global = true, default_value = "keys", value_name = "PATH")]
    pub keys: Vec<PathBuf>,
    /// Your own trusted copy of the fleet's root [default: root.json in the first folder of keys]
    #[arg(long, global = true, value_name = "FILE")]
    pub root: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Make the keys and an empty repository
    Init(key::Init),
    /// Who may sign for what
    #[command(subcommand)]
    Key(key::Key),
    /// Sign a plugin for sites, or a backbone for all
    Publish(publish::Publish),
    /// Take a plugin or backbone out of the repository
    Unpublish(publish::Unpublish),
    /// Sign snapshot and timestamp again, before they expire (weekly), and the roles that are named
    Refresh(publish::Refresh),
    /// Copy what a site needs to the broker, for devices with `updates.source = "mqtt"`
    Mirror(publish::Mirror),
    /// Tell one device all that it shall run
    Desire(desire::Desire),
    /// Bring a version of a task to many devices, wave by wave
    #[command(subcommand)]
    Rollout(rollout::Command),
    /// What the devices run and what is under way
    Status(status::Status),
    /// Who signed what until when, and which device runs what
    Audit(audit::Audit),
}

/// Reads the command line, does what it asks and says how it ended.
pub fn run() -> ExitCode {
    let Cli { common, command } = Cli::parse();
    let done = match command {
        Command::Init(init) => init.run(&common),
        Command::Key(key) => key.run(&common),
        Command::Publish(publish) => publish.run(&common),
        Command::Unpublish(unpublish) => unpublish.run(&common),
        Command::Refresh(refresh) => refresh.run(&common),
        Command::Mirror(mirror) => mirror.run(&common),
        Command::Desire(desire) => desire.run(&common),
        Command::Rollout(rollout) => rollout.run(&common),
        Command::Status(status) => status.run(&common),
        Command::Audit(audit) => audit.run(&common),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(if matches!(error, Error::Input(_)) { 2 } else { 1 })
        }
    }
}

impl Common {
    /// The repository, verified.
    pub fn open(&self) -> Result<Repository> {
        Repository::open(&self.repository, &self.trusted())
    }

    /// The operator's copy of the root.
    pub fn trusted(&self) -> PathBuf {
        self.root.clone().unwrap_or_else(|| self.first().join("root.json"))
    }

    /// Where new keys go.
    pub fn first(&self) -> PathBuf {
        self.keys.first().cloned().unwrap_or_else(|| "keys".into())
    }

    /// The private keys at hand.
    pub fn keyring(&self) -> Result<Keyring> {
        Keyring::read(&self.keys)
    }
}

/// Signing with these keys, now.
pub fn renewal(keys: &Keyring) -> Renewal<'_> {
    Renewal { keys, now: jiff::Timestamp::now(), lifetimes: Lifetimes::default() }
}

/// A number of bytes, for people.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.2} MB", bytes as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        for (bytes, text) in [(12, "12 B"), (1_500, "1.5 kB"), (1_234_567, "1.23 MB")] {
            assert_eq!(size(bytes), text);
        }
    }
}

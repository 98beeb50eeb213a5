//! The demo: from scans to a result that a subscriber receives.

use std::process::Command;

use anyhow::Result;

use crate::assets::{self, Group};
use crate::system;
use crate::workspace::{self, cargo, run, step};

/// Fetches and builds what the demo needs, then runs it.
pub fn run_chore() -> Result<()> {
    step("Assets", || assets::ensure(&[Group::Libtorch, Group::Demo]))?;
    step("System packages", || system::ensure(system::FOR_BUILD))?;
    // The whole workspace, as the tests do: cargo picks features by what is built together, and would compile tract once more.
    step("Build", || run(cargo().args(["build", "--workspace", "--release", "--bins"])))?;
    let target = workspace::target();
    let binaries = target.join("release");
    println!();
    run(Command::new(binaries.join("demo"))
        .current_dir(workspace::root())
        .arg("--assets")
        .arg(workspace::assets())
        .arg("--out")
        .arg(target.join("demo"))
        .arg("--bin")
        .arg(&binaries))
}

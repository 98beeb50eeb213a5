//! Every test, in the order in which a mistake is cheapest to learn.

use std::time::Duration;

use anyhow::Result;

use crate::assets::{self, Group};
use crate::workspace::{cargo, run, seconds, step};
use crate::{cross, deb, peers, system};

/// Runs every test; `long` adds those that take minutes.
pub fn run_chore(long: bool) -> Result<()> {
    let cargo_step = |arguments: &[&str]| {
        let mut command = cargo();
        command.args(arguments);
        if long {
            command.env("SCANSIDE_LONG", "1");
        }
        run(&mut command)
    };
    let groups = [Group::Libtorch, Group::Demo, Group::Test, Group::Cross, Group::Emulated];
    let mut took: Vec<(&str, Duration)> = Vec::new();
    let mut timed = |title: &'static str, work: &dyn Fn() -> Result<()>| -> Result<()> {
        took.push((title, step(title, work)?));
        Ok(())
    };
    timed("Assets", &|| assets::ensure(&groups))?;
    timed("onnxruntime, to compare with", &|| peers::ensure().map(|_| ()))?;
    timed("System packages", &|| {
        system::ensure(system::FOR_BUILD)?;
        system::ensure(system::FOR_TESTS)
    })?;
    timed("Format", &|| cargo_step(&["fmt", "--all", "--check"]))?;
    timed("Clippy", &|| {
        cargo_step(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--release",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ])
    })?;
    // The integration tests start the programs, and cargo does not build another package's programs for them.
    timed("Build", &|| cargo_step(&["build", "--workspace", "--release", "--bins"]))?;
    timed("Tests", &|| cargo_step(&["test", "--workspace", "--release"]))?;
    // Again, in seconds, for what they say: what was tried, and what it was refused with.
    timed("Attacks and power cuts, told", &|| {
        let told = ["--quiet", "--", "--show-output"];
        let cuts = ["test", "--workspace", "--release", "--lib"];
        cargo_step(&[&cuts[..], &told, &["power_cut", "without_any_one_of_the_syncs"]].concat())?;
        let attacks = [
            "test",
            "--workspace",
            "--release",
            "--test",
            "update_attacks",
            "--test",
            "slots",
            "--test",
            "fleet",
        ];
        cargo_step(&[&attacks[..], &told].concat())
    })?;
    timed("Tests for aarch64, emulated", &|| cross::test(long))?;
    // The program as it was just built stands in for amd64's own build, which takes as long as all the others.
    timed("Debian packages", &deb::test)?;

    println!("\n== Everything passed");
    for (title, time) in &took {
        println!("   {title:<30} {:>14}", seconds(*time));
    }
    println!("   {:<30} {:>14}", "total", seconds(took.iter().map(|(_, time)| *time).sum()));
    Ok(())
}

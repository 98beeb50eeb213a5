//! How many instructions a slice takes on aarch64, by function, in scanside and in onnxruntime's wheel: what can be said of a processor
//! that is not at hand.
//!
//! Both are the programs that `cargo xtask bench` times, one thread and one slice, under QEMU's user mode. QEMU tells how often each block of instructions
//! ran while one word was answered, so that loading is not in it; the first run is not counted.

mod emulated;
mod profile;
mod symbols;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use self::emulated::Emulated;
use self::profile::Function;
use self::symbols::Symbols;
use crate::bench::case::CASES;
use crate::bench::row::{Peer, Row, table};
use crate::bench::worker::Worker;
use crate::bench::{self, encoder};
use crate::workspace::{self, root, step};
use crate::{cross, system};

/// What to show and keep.
#[derive(clap::Args)]
pub struct Options {
    /// Functions to show of each program
    #[arg(long, default_value_t = 12)]
    top: usize,
    /// Also keep the JSON as docs/benchmarks/NAME.json
    #[arg(long, value_name = "NAME")]
    keep: Option<String>,
}

/// What one program did for a slice.
struct Profile {
    /// With the graph.
    title: String,
    instructions: u64,
    functions: Vec<Function>,
    logits: Vec<f64>,
}

/// Counts, prints tables and leaves `target/count/count.json`.
pub fn run_chore(options: &Options) -> Result<()> {
    let folder = workspace::target().join("count");
    fs::create_dir_all(&folder)?;
    let folder = folder.canonicalize()?;
    let mut files = vec![folder.join("count.json")];
    files.extend(options.keep.as_deref().map(bench::kept).transpose()?);
    // The first of the bench's cases: one slice.
    let case = CASES[0];
    let (mut emulated, mut graphs, mut worker) = (None, None, None);
    step("System packages", || {
        system::ensure(system::FOR_BUILD)?;
        system::ensure(system::FOR_COUNT)
    })?;
    step("Emulator", || {
        emulated = Some(emulated::ensure(&folder)?);
        Ok(())
    })?;
    step("Build", || {
        encoder::build()?;
        graphs = Some(encoder::graphs(case, &folder)?);
        worker = Some(cross::example("bench_worker")?);
        Ok(())
    })?;
    let (Some(emulated), Some([(_, full), (_, trimmed)]), Some(worker)) = (emulated, graphs, worker) else {
        unreachable!("each step leaves what it made");
    };

    let mut known = BTreeMap::new();
    let mut count = |title: &str, graph: &Path| {
        let mut profile = None;
        step(&format!("{title}, counted"), || {
            let counts = folder.join("counts.txt");
            let command = if let Some(precision) = title.strip_prefix("scanside, ") {
                let mut command = emulated.command(&worker, &counts);
                command.args(["--precision", precision]);
                command
            } else {
                let mut command = emulated.python(&counts);
                command.arg(root().join("xtask/peers/onnxruntime_bench.py"));
                command
            };
            profile = Some(self::count(title, command, graph, &counts, &mut known)?);
            Ok(())
        })?;
        profile.context("a step leaves what it made")
    };
    let profiles = [
        count("scanside, f32", &trimmed)?,
        count("onnxruntime, full graph", &full)?,
        count("onnxruntime, trimmed graph", &trimmed)?,
        // What these processors have instructions for beside f32.
        count("scanside, int8", &trimmed)?,
    ];
    for theirs in &profiles[1..3] {
        encoder::compare(&[profiles[0].logits.clone(), theirs.logits.clone()])?;
    }
    report(&profiles, &case.title(), options.top);
    let json = serde_json::to_string_pretty(&json(&profiles, &case.title(), &emulated))? + "\n";
    for file in &files {
        fs::write(file, &json)?;
        println!("written to {}", file.display());
    }
    Ok(())
}

/// Runs a worker twice, and counts in the second run.
fn count(
    title: &str,
    mut command: Command,
    graph: &Path,
    counts: &Path,
    known: &mut BTreeMap<PathBuf, Symbols>,
) -> Result<Profile> {
    /// What is read of the standard input ends a stretch: loading, the first run, the second.
    const SECOND: usize = 2;
    command.arg("--graph").arg(graph).args(["--slices", "1", "--threads", "1"]);
    let name = if title.starts_with("scanside") { "scanside" } else { "onnxruntime" };
    let mut worker = Worker::start(name, command)?;
    worker.number("run")?;
    worker.number("run")?;
    let logits = worker.numbers("logits")?;
    drop(worker);
    let stretches = profile::parse(&fs::read_to_string(counts)?)?;
    let stretch = stretches.get(SECOND).with_context(|| format!("{title} was counted in no second run"))?;
    Ok(Profile {
        title: title.to_owned(),
        instructions: stretch.instructions(),
        functions: stretch.functions(known)?,
        logits,
    })
}

/// `ours` beside onnxruntime.
fn row(profiles: &[Profile], ours: &Profile, case: &str) -> Row {
    let millions = |profile: &Profile| profile.instructions as f64 / 1e6;
    let title = &ours.title;
    let ours = millions(ours);
    let peer = |graph, theirs: &Profile| Peer { graph, ..Peer::plain("onnxruntime", ours, millions(theirs)) };
    Row {
        name: format!("{case}, instructions of {title}"),
        unit: "M".into(),
        threads: 1,
        scanside: ours,
        peers: vec![peer("full", &profiles[1]), peer("trimmed", &profiles[2])],
    }
}

fn report(profiles: &[Profile], case: &str, top: usize) {
    for profile in profiles {
        println!("\n{}: {:.1} M instructions", profile.title, profile.instructions as f64 / 1e6);
        for Function { file, name, instructions } in profile.functions.iter().take(top) {
            let share = *instructions as f64 / profile.instructions as f64 * 100.0;
            println!("{:>9.2} M {share:>5.1} %  {file}  {name}", *instructions as f64 / 1e6);
        }
    }
    println!("\n{}", table(&[0, 3].map(|ours| row(profiles, &profiles[ours], case))));
    let scalar = scalar(&profiles[0]);
    if scalar.is_empty() {
        println!("\nscanside called no scalar transcendental");
    }
    for Function { file, name, instructions } in scalar {
        println!("\nscalar transcendental in scanside: {file} {name}, {instructions} instructions");
    }
}

fn scalar(profile: &Profile) -> Vec<&Function> {
    profile.functions.iter().filter(|function| function.is_scalar_transcendental()).collect()
}

fn json(profiles: &[Profile], case: &str, emulated: &Emulated) -> Value {
    /// Functions below this share say little and change with every build.
    const LEAST: f64 = 1e-4;
    let function = |function: &Function| json!({ "file": function.file, "function": function.name, "instructions": function.instructions });
    let program = |profile: &Profile| {
        let least = profile.instructions as f64 * LEAST;
        let most = profile.functions.iter().filter(|function| function.instructions as f64 >= least);
        json!({
            "program": profile.title,
            "instructions": profile.instructions,
            "ratio": profiles[0].instructions as f64 / profile.instructions as f64,
            "functions": most.map(function).collect::<Vec<_>>(),
        })
    };
    let wanted = include_str!("../peers/requirements.txt");
    let onnxruntime = wanted.lines().find_map(|line| line.strip_prefix("onnxruntime==")?.split(' ').next());
    json!({
        "counted": {
            "case": case,
            "threads": 1,
            "cpu": emulated::CPU,
            "emulator": emulated.version,
            "versions": { "scanside": env!("CARGO_PKG_VERSION"), "onnxruntime": onnxruntime, "python": emulated.python },
        },
        "scalar_transcendentals": scalar(&profiles[0]).into_iter().map(function).collect::<Vec<_>>(),
        "programs": profiles.iter().map(program).collect::<Vec<_>>(),
    })
}

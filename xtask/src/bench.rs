//! Time and memory of the runtime beside onnxruntime and OpenVINO, and of a scan from its file beside the usual Python way, all taking turns
//! in one session; and what the service promises.

mod board;
pub mod case;
pub mod encoder;
mod machine;
pub mod row;
mod turns;
mod volume;
pub mod worker;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};
use serde_json::Value;

use self::case::{CASES, Case};
use self::row::Row;
use crate::assets::{self, Group};
use crate::workspace::{self, cargo, output, root, run, step};
use crate::{peers, system};

/// What to time.
#[derive(clap::Args)]
pub struct Options {
    /// Only these parts [default: all]
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<Part>,
    /// Cases of the encoder as MODEL:SIZE:SLICES, for example vit-s:224:64 or vit-b:224:1 [default: all that docs/benchmarks has]
    #[arg(long = "case", value_name = "CASE")]
    cases: Vec<Case>,
    /// Turns of each measurement [default: by the number of slices, 24 to 3]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pairs: Option<u16>,
    /// Threads of the encoder [default: 1, and as many as there are cores]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Vec<u16>,
    /// Also keep the JSON as docs/benchmarks/NAME.json
    #[arg(long, value_name = "NAME")]
    keep: Option<String>,
    /// Time nothing: make a folder, target/board, that times the encoder on a machine of this kind, without Rust
    #[arg(long = "for", value_name = "MACHINE", value_parser = ["aarch64"], exclusive = true)]
    machine: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The encoder beside onnxruntime and OpenVINO on the same graph
    Encoder,
    /// A scan from its file to its result beside the usual Python way
    Volume,
    /// What the service promises: memory, idle time, and how soon after the last slice the result is there
    Service,
}

impl Options {
    fn has(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn cases(&self) -> Vec<Case> {
        if self.cases.is_empty() { CASES.to_vec() } else { self.cases.clone() }
    }

    fn threads(&self) -> Result<Vec<usize>> {
        if !self.threads.is_empty() {
            return Ok(self.threads.iter().map(|n| usize::from(*n)).collect());
        }
        let cores = std::thread::available_parallelism()?.get();
        Ok(if cores == 1 { vec![1] } else { vec![1, cores] })
    }
}

/// Runs the parts, prints a table and leaves `target/bench/bench.json`, after each part anew.
pub fn run_chore(options: &Options) -> Result<()> {
    if workspace::is_packed() && (options.machine.is_some() || options.only != [Part::Encoder]) {
        bail!("this folder was packed for timing the encoder alone: leave out --only and --for");
    }
    if options.machine.is_some() {
        return board::pack();
    }
    let folder = workspace::target().join("bench");
    fs::create_dir_all(&folder)?;
    let mut report =
        Report { files: vec![folder.join("bench.json")], machine: Value::Null, rows: Vec::new() };
    report.files.extend(options.keep.as_deref().map(kept).transpose()?);
    if !workspace::is_packed() {
        step("System packages", || system::ensure(system::FOR_BUILD))?;
    }
    let mut python = None;
    if options.has(Part::Encoder) || options.has(Part::Volume) {
        step("Peers", || {
            python = Some(peers::ensure_for_bench()?);
            Ok(())
        })?;
    }
    report.machine = machine::describe(python.as_deref())?;
    if let Some(python) = &python {
        if options.has(Part::Encoder) {
            report.add(encoder::bench(options, &folder, python)?)?;
        }
        if options.has(Part::Volume) {
            report.add(volume::bench(options, &folder, python)?)?;
        }
    }
    if options.has(Part::Service) {
        report.add(service()?)?;
    }
    for file in &report.files {
        println!("written to {}", file.display());
    }
    Ok(())
}

/// Where `--keep NAME` keeps figures.
pub fn kept(name: &str) -> Result<PathBuf> {
    if name.is_empty() || !name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c)) {
        bail!("--keep {name:?} is no plain name: use letters, digits, - and _");
    }
    let folder = root().join("docs/benchmarks");
    fs::create_dir_all(&folder)?;
    Ok(folder.join(format!("{name}.json")))
}

/// What was found so far.
struct Report {
    files: Vec<PathBuf>,
    machine: Value,
    rows: Vec<Row>,
}

impl Report {
    fn add(&mut self, rows: Vec<Row>) -> Result<()> {
        println!("\n{}", row::table(&rows));
        self.rows.extend(rows);
        let json = row::json(&self.machine, &self.rows)?;
        self.files.iter().try_for_each(|file: &PathBuf| Ok(fs::write(file, &json)?))
    }
}

/// What the service promises, measured by a program that starts it and plays scanner and subscriber.
fn service() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    step("Service", || {
        assets::ensure(&[Group::Libtorch, Group::Demo])?;
        system::ensure(system::FOR_TESTS)?;
        build(&["scanside", "bench_service"])?;
        let mut bench = Command::new(workspace::target().join("release/bench_service"));
        bench.arg("--backbone").arg(workspace::assets().join("backbone/vit_s_focus.onnx"));
        let lines = output(bench.stderr(std::process::Stdio::inherit()))?;
        rows = lines.lines().map(Row::parse).collect::<Result<_>>()?;
        Ok(())
    })?;
    Ok(rows)
}

fn build(programs: &[&str]) -> Result<()> {
    let mut build = cargo();
    build.args(["build", "--workspace", "--release"]);
    run(build.args(programs.iter().flat_map(|program| ["--bin", program])))
}

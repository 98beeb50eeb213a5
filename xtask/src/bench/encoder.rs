//! One task graph in scanside, onnxruntime and OpenVINO.
//!
//! All are processes that answer the same words (`runtime/examples/bench_worker.rs`, `xtask/peers/worker.py`): they load a graph, make the
//! same input and run it in turns. scanside always runs the graph that it exports, whose last block computes CLS alone; its peers run
//! that one and the full graph, whose last block computes all tokens, each against runs of scanside's own. Their logits are compared first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::Options;
use super::case::{Case, Model};
use super::row::{Peer, Row, median};
use super::turns;
use super::worker::Worker;
use crate::assets::{self, Group};
use crate::workspace::{self, cargo, root, run, step};

/// Largest difference of a logit at which all still compute the same.
const TOLERANCE: f64 = 1e-3;
/// How often each program is started where a case has a single slice: what a start takes scatters.
const STARTS: u16 = 5;
/// In the order of the workers.
const NAMES: [&str; 3] = ["scanside", "onnxruntime", "openvino"];

/// What was measured of one program: each list has an entry a turn.
#[derive(Default)]
struct Samples {
    time: Vec<f64>,
    /// From the start of the process to its first result.
    cold: Vec<f64>,
    /// Peak memory of the process when the graph is loaded.
    loading: Vec<f64>,
    /// Peak memory of the process in the end.
    peak: Vec<f64>,
}

/// Name, unit and place of what is measured.
type Part = (&'static str, &'static str, fn(&Samples) -> &[f64]);

const PARTS: [Part; 4] = [
    ("time", "ms", |samples| &samples.time),
    ("cold start", "ms", |samples| &samples.cold),
    ("peak memory when loaded", "MB", |samples| &samples.loading),
    ("peak memory", "MB", |samples| &samples.peak),
];

/// Times the cases; `python` has the peers.
pub fn bench(options: &Options, folder: &Path, python: &Path) -> Result<Vec<Row>> {
    if !workspace::is_packed() {
        step("Build", build)?;
    }
    let programs = Programs { worker: worker(), python };
    let mut files = Files { worker: &programs.worker, folder, written: BTreeMap::new() };
    let mut rows = Vec::new();
    for case in options.cases() {
        let graphs = [("full", files.graph(case, "all")?), ("trimmed", files.graph(case, "cls")?)];
        for threads in options.threads()? {
            let plural = if threads == 1 { "" } else { "s" };
            step(&format!("{}, {threads} thread{plural}", case.title()), || {
                let ours = &graphs[1].1;
                let passes = graphs
                    .iter()
                    .map(|(kind, theirs)| {
                        let turns = options.pairs.unwrap_or(case.turns());
                        let found = programs.pass(case, threads, [ours, theirs, theirs], turns)?;
                        Ok((*kind, found))
                    })
                    .collect::<Result<Vec<_>>>()?;
                let mut found: Vec<Row> =
                    PARTS.iter().map(|part| row(case, threads, &passes, part)).collect();
                let weights = std::fs::metadata(ours)?.len() as f64 / 1e6;
                let loaded = &mut found[LOADED];
                loaded.peers.push(Peer::plain("weights", loaded.scanside, weights));
                println!("{}", super::row::table(&found));
                rows.extend(found);
                Ok(())
            })?;
        }
    }
    Ok(rows)
}

/// Builds scanside's worker.
pub fn build() -> Result<()> {
    run(cargo().args(["build", "--workspace", "--release", "--example", "bench_worker"]))
}

/// Where it lies.
pub fn worker() -> PathBuf {
    workspace::target().join(WORKER)
}

/// Below `target`.
pub const WORKER: &str = "release/examples/bench_worker";

/// Writes a case's graphs into a folder: the full one and the trimmed one.
pub fn graphs(case: Case, folder: &Path) -> Result<[(&'static str, PathBuf); 2]> {
    let mut files = Files { worker: &worker(), folder, written: BTreeMap::new() };
    Ok([("full", files.graph(case, "all")?), ("trimmed", files.graph(case, "cls")?)])
}

/// In [`PARTS`]: what is to be compared with the graph's size, which is that of the weights.
const LOADED: usize = 2;

fn row(case: Case, threads: usize, passes: &[(&'static str, Vec<Samples>)], part: &Part) -> Row {
    let (name, unit, of) = part;
    let ours: Vec<f64> = passes.iter().flat_map(|(_, found)| of(&found[0])).copied().collect();
    let peers = passes.iter().flat_map(|(graph, found)| {
        let peer = |n: usize| Peer::compare(NAMES[n], graph, of(&found[0]), of(&found[n]));
        (1..NAMES.len()).map(peer)
    });
    Row {
        name: format!("{}, {name}", case.title()),
        unit: (*unit).into(),
        threads,
        scanside: median(&ours),
        peers: peers.collect(),
    }
}

struct Programs<'a> {
    worker: PathBuf,
    python: &'a Path,
}

impl Programs<'_> {
    fn start(&self, program: usize, graph: &Path, slices: usize, threads: usize) -> Result<Worker> {
        let mut command = if program == 0 {
            Command::new(&self.worker)
        } else {
            let mut command = Command::new(self.python);
            command.arg(root().join(format!("xtask/peers/{}_bench.py", NAMES[program])));
            command
        };
        command.arg("--graph").arg(graph);
        command.args(["--slices", &slices.to_string(), "--threads", &threads.to_string()]);
        Worker::start(NAMES[program], command)
    }

    /// Starts all, each on its graph, compares what they compute, and lets them take turns.
    fn pass(&self, case: Case, threads: usize, graphs: [&PathBuf; 3], turns: u16) -> Result<Vec<Samples>> {
        let mut found: Vec<Samples> = NAMES.iter().map(|_| Samples::default()).collect();
        let mut workers: Vec<Option<Worker>> = NAMES.iter().map(|_| None).collect();
        turns::take(if case.slices == 1 { STARTS.min(turns) } else { 1 }, NAMES.len(), |n| {
            workers[n] = None;
            let mut worker = self.start(n, graphs[n], case.slices, threads)?;
            found[n].loading.push(worker.number("peak")?);
            worker.number("run")?;
            found[n].cold.push(worker.age_ms());
            workers[n] = Some(worker);
            Ok(())
        })?;
        let mut workers: Vec<Worker> = workers.into_iter().flatten().collect();
        let logits = workers.iter_mut().map(|worker| worker.numbers("logits")).collect::<Result<Vec<_>>>()?;
        compare(&logits)?;
        let times = turns::take(turns, NAMES.len(), |n| workers[n].number("run"))?;
        for ((samples, time), worker) in found.iter_mut().zip(times).zip(&mut workers) {
            samples.time = time;
            samples.peak.push(worker.number("peak")?);
        }
        Ok(found)
    }
}

/// Fails unless all computed the same; in the order scanside, onnxruntime, OpenVINO.
pub fn compare(logits: &[Vec<f64>]) -> Result<()> {
    for (name, theirs) in NAMES.iter().zip(logits).skip(1) {
        let ours = &logits[0];
        // A NaN is not close to anything.
        let close = ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() <= TOLERANCE);
        if ours.is_empty() || ours.len() != theirs.len() || !close {
            bail!("scanside's logits {ours:?} and {name}'s {theirs:?} differ by more than {TOLERANCE:e}");
        }
    }
    Ok(())
}

/// The graphs, written once a run, since another build may write them otherwise.
struct Files<'a> {
    worker: &'a Path,
    folder: &'a Path,
    written: BTreeMap<String, PathBuf>,
}

impl Files<'_> {
    fn graph(&mut self, case: Case, rows: &str) -> Result<PathBuf> {
        let name = format!("{}-{}-{rows}.onnx", case.model.key(), case.size);
        if let Some(graph) = self.written.get(&name) {
            return Ok(graph.clone());
        }
        let backbone = match case.model {
            Model::VitS => {
                assets::ensure(&[Group::Backbone])?;
                workspace::assets().join("backbone/vit_s_focus.onnx")
            }
            Model::VitB => self.random(case.model)?,
        };
        let graph = self.folder.join(&name);
        let mut write = Command::new(self.worker);
        write.arg("--backbone").arg(backbone).arg("--graph").arg(&graph);
        run(write.args(["--size", &case.size.to_string(), "--rows", rows]))?;
        self.written.insert(name, graph.clone());
        Ok(graph)
    }

    /// A backbone that no package has: random numbers take as long as trained ones.
    fn random(&self, model: Model) -> Result<PathBuf> {
        let backbone = self.folder.join(format!("{}-random.safetensors", model.key()));
        run(Command::new(self.worker).args(["--random", model.key(), "--backbone"]).arg(&backbone))?;
        Ok(backbone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_that_differ_name_the_peer() {
        let same = vec![1.0, 2.0];
        assert!(compare(&[same.clone(), same.clone(), vec![1.0, 2.0005]]).is_ok());
        let error = compare(&[same.clone(), same.clone(), vec![1.0, 2.1]]).unwrap_err().to_string();
        assert!(error.contains("openvino"), "{error}");
        assert!(compare(&[vec![f64::NAN], vec![1.0], vec![1.0]]).is_err());
        assert!(compare(&[same.clone(), vec![1.0], same]).is_err());
    }
}

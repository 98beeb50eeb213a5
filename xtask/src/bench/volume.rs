//! One scan from its file to its result, each time a process of its own: `scanside infer` beside `xtask/peers/python_way.py`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::row::{Peer, Row, median};
use super::{Options, turns};
use crate::assets::{self, Group};
use crate::system;
use crate::workspace::{self, output, root, run, step};

/// Largest difference of a probability at which both ways still say the same.
const TOLERANCE: f64 = 1e-3;
/// Turns, where none are asked for.
const TURNS: u16 = 5;
/// What a scan is read from.
const INPUTS: [(&str, &str); 2] = [("scan.nii.gz", ".nii.gz"), ("series", "JPEG-LS DICOM")];
/// The graphs that the Python way runs.
const GRAPHS: [(&str, &str); 2] = [("full", "full.onnx"), ("trimmed", "task.onnx")];

/// What a process took.
struct Took {
    ms: f64,
    peak_mb: f64,
    output: String,
}

/// Times both inputs; `python` has the peers.
pub fn bench(options: &Options, folder: &Path, python: &Path) -> Result<Vec<Row>> {
    let folder = folder.join("volume");
    step("Scan and task", || {
        assets::ensure(&[Group::Libtorch, Group::Demo])?;
        system::ensure(system::FOR_TESTS)?;
        super::build(&["scanside", "bench_volume"])?;
        let mut write = Command::new(workspace::target().join("release/bench_volume"));
        write.arg("--backbone").arg(workspace::assets().join("backbone/vit_s_focus.onnx"));
        run(write.arg("--out").arg(&folder))
    })?;
    let ways = Ways { python, folder: &folder };
    let mut rows = Vec::new();
    for (file, title) in INPUTS {
        step(&format!("From {title} to the result"), || {
            let turns = options.pairs.unwrap_or(TURNS);
            let found = turns::take(turns, 1 + GRAPHS.len(), |n| ways.take(n, file))?;
            ways.compare(&found)?;
            let name = format!("ViT-S/14 at 224, 64 slices of 512×512, {title} to result");
            rows.extend([
                row(&format!("{name}, time"), "ms", &found, |took| took.ms)?,
                row(&format!("{name}, peak memory"), "MB", &found, |took| took.peak_mb)?,
            ]);
            Ok(())
        })?;
    }
    Ok(rows)
}

fn row(name: &str, unit: &str, found: &[Vec<Took>], of: impl Fn(&Took) -> f64) -> Result<Row> {
    let numbers: Vec<Vec<f64>> = found.iter().map(|turns| turns.iter().map(&of).collect()).collect();
    let peers = GRAPHS.iter().zip(&numbers[1..]);
    Ok(Row {
        name: name.into(),
        unit: unit.into(),
        threads: std::thread::available_parallelism()?.get(),
        scanside: median(&numbers[0]),
        peers: peers
            .map(|((graph, _), theirs)| Peer::compare("python", graph, &numbers[0], theirs))
            .collect(),
    })
}

struct Ways<'a> {
    python: &'a Path,
    folder: &'a Path,
}

impl Ways<'_> {
    /// Way 0 is scanside's; the others are the Python way on each of [`GRAPHS`].
    fn take(&self, way: usize, input: &str) -> Result<Took> {
        let file = |name: &str| -> PathBuf { self.folder.join(name) };
        let peers = root().join("xtask/peers");
        let mut timed = Command::new(self.python);
        timed.arg(peers.join("timed.py"));
        let graph = if way == 0 {
            timed.arg(workspace::target().join("release/scanside")).arg("infer");
            "task.onnx"
        } else {
            timed.arg(self.python).arg(peers.join("python_way.py"));
            GRAPHS[way - 1].1
        };
        timed.arg("--graph").arg(file(graph)).arg("--plugin").arg(file("task.plugin"));
        let text = output(timed.arg("--input").arg(file(input)))?;
        let took: Value = serde_json::from_str(&text)?;
        let number = |key: &str| took[key].as_f64().with_context(|| format!("no number {key} in {text}"));
        let output = took["output"].as_str().context("no output")?.to_owned();
        Ok(Took { ms: number("ms")?, peak_mb: number("peak_mb")?, output })
    }

    /// The probabilities of all ways.
    fn compare(&self, found: &[Vec<Took>]) -> Result<()> {
        let last = |way: usize| found[way].last().map(|took| took.output.as_str()).unwrap_or_default();
        let ours = result(last(0))?;
        for way in 1..found.len() {
            let theirs: Value = serde_json::from_str(last(way))?;
            for (label, probability) in &ours {
                let close = theirs[label].as_f64().is_some_and(|p| (p - probability).abs() <= TOLERANCE);
                if !close {
                    bail!(
                        "scanside says {label} {probability}, the Python way {theirs}, in {}: expected no more \
                         than {TOLERANCE:e} between them",
                        self.folder.display()
                    );
                }
            }
        }
        Ok(())
    }
}

/// Label and probability from scanside's result.
fn result(text: &str) -> Result<Vec<(String, f64)>> {
    let result: Value = serde_json::from_str(text)?;
    let labels = result["labels"].as_array().filter(|labels| !labels.is_empty());
    let one = |label: &Value| Some((label["name"].as_str()?.to_owned(), label["probability"].as_f64()?));
    labels.and_then(|labels| labels.iter().map(one).collect()).with_context(|| format!("no labels in {text}"))
}

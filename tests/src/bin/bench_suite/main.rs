//! What precision and a part of the slices do to a task's answers, on the test volumes of a phantom suite.
//!
//! `bench_suite target/demo`, after `cargo xtask demo`; or any folder with `backbone.safetensors`, one `.plugin` and `data/data.csv`. Prints
//! Markdown tables: for each way to compute, how far its logits are off and its area under the ROC curve; for each number of slices
//! that are evenly spread over the volume, the same against all of them; and
//! what slices of air do that a recipe with `slices = "body"` leaves out.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use firmware_config::Recipe;
use firmware_config::device::Weights;
use runtime::backbone::Backbone;
use runtime::engine::{EncodedView, Engine, Precision, default_threads};
use runtime::infer::Loader;
use runtime::plugin::Plugin;
use runtime::recipe::Prepared;
use runtime::volume;

fn main() -> Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).context("the suite's folder is missing")?);
    let backbone = folder.join("backbone.safetensors");
    let mut files = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "plugin"));
    let path = files.first().with_context(|| format!("{} has no .plugin", folder.display()))?;
    let (plugin, sha256) = Plugin::read(path)?;
    let threads = default_threads();
    let merged = |precision: Precision| -> Result<Engine> {
        let graph = plugin.graph(Backbone::open(&backbone)?)?;
        let engine = Engine::of_precision(graph, precision, threads)?;
        let found = engine.info().precision;
        ensure!(found == precision, "this machine has no {precision:?}");
        Ok(engine)
    };
    let loader = Loader::new(&backbone, threads, Weights::Shared);
    let ways = [
        ("f32", merged(Precision::F32)?),
        ("f32, shared weights", loader.load(plugin.clone(), sha256, path, &backbone, true)?.engine),
        ("bf16", merged(Precision::Bf16)?),
        ("int8", merged(Precision::Int8)?),
    ];

    let samples = samples(&folder.join("data"))?;
    let labels: Vec<bool> = samples.iter().map(|(_, label)| *label).collect();
    let mut logits = vec![Vec::new(); ways.len()];
    let mut estimates: Vec<Vec<f32>> = vec![Vec::new(); PARTS.len()];
    let air = air(&ways[0].1, &plugin.manifest.recipe)?;
    let mut with_air: Vec<Vec<f32>> = vec![Vec::new(); AIR.len()];
    for (path, _) in &samples {
        let volume = volume::open(path, &volume::ReadOptions::default())?.next().context("no volume")??;
        let prepared = Prepared::new(&volume, &plugin.manifest.recipe)?;
        let encode =
            |engine: &Engine| engine.encode(0, prepared.slices(), &|s, out| prepared.write_slice(s, out));
        for (way, (_, engine)) in ways.iter().enumerate() {
            let encoded = encode(engine)?;
            if way == 0 {
                for (found, slices) in with_air.iter_mut().zip(AIR) {
                    let mut more = encoded.clone();
                    for _ in 0..slices {
                        more.embeddings.extend_from_slice(&air.embeddings);
                        more.attention.extend_from_slice(&air.attention);
                    }
                    found.push(engine.pool(vec![Some(more)])?.logits[0]);
                }
                for (estimates, part) in estimates.iter_mut().zip(PARTS) {
                    let some = spread(&encoded, engine.dim(), prepared.slices(), part);
                    estimates.push(engine.pool(vec![Some(some)])?.logits[0]);
                }
            }
            logits[way].push(engine.pool(vec![Some(encoded)])?.logits[0]);
        }
    }

    println!(
        "{} volumes, {} of them positive\n",
        labels.len(),
        labels.iter().filter(|label| **label).count()
    );
    println!(
        "| computed in | largest difference of a logit | mean | area under the ROC curve | other calls at 0.5 |"
    );
    println!("| --- | --- | --- | --- | --- |");
    for ((name, _), found) in ways.iter().zip(&logits) {
        println!("| {name} | {} |", compared(&logits[0], found, &labels));
    }
    println!(
        "\n| of the slices | largest difference of a logit | mean | area under the ROC curve | other calls at 0.5 |"
    );
    println!("| --- | --- | --- | --- | --- |");
    for (part, found) in PARTS.iter().zip(&estimates) {
        println!("| {:.0} % | {} |", 100.0 * part, compared(&logits[0], found, &labels));
    }
    println!(
        "\n| slices of air added | largest difference of a logit | mean | area under the ROC curve | other calls at 0.5 |"
    );
    println!("| --- | --- | --- | --- | --- |");
    for (slices, found) in AIR.iter().zip(&with_air) {
        println!("| {slices} | {} |", compared(&logits[0], found, &labels));
    }
    Ok(())
}

/// What a slice of air is encoded to: 0 everywhere, normalised.
fn air(engine: &Engine, recipe: &Recipe) -> Result<EncodedView> {
    let (mean, std) = recipe.normalize.mean_std();
    let fill = |_, out: &mut [f32]| {
        let plane = out.len() / 3;
        for (channel, values) in out.chunks_exact_mut(plane).enumerate() {
            values.fill(-mean[channel] / std[channel]);
        }
    };
    Ok(engine.encode(0, 1, &fill)?)
}

/// How many slices of air a scan may have beyond the body.
const AIR: [usize; 3] = [1, 4, 16];
/// Parts of a volume's slices after which an estimate is taken.
const PARTS: [f64; 8] = [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0];

/// The test scans of a data table, and the label of each.
fn samples(data: &Path) -> Result<Vec<(PathBuf, bool)>> {
    let table = fs::read_to_string(data.join("data.csv"))?;
    let mut rows = table.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let header = rows.next().context("an empty data table")?;
    let column = |name: &str| header.iter().position(|found| *found == name).context(name.to_owned());
    let (split, image) = (column("split")?, column("image")?);
    let tests = rows.filter(|row| row[split] == "test");
    Ok(tests.map(|row| (data.join(row[image]), row[row.len() - 1] == "1")).collect())
}

/// That part of a volume's slices, at least one, evenly spread.
fn spread(all: &EncodedView, dim: usize, slices: usize, part: f64) -> EncodedView {
    let count = ((part * slices as f64).round() as usize).max(1);
    let patches = all.attention.len() / slices;
    let mut some = EncodedView::default();
    for n in 0..count {
        let s = (2 * n + 1) * slices / (2 * count);
        some.embeddings.extend_from_slice(&all.embeddings[s * dim..][..dim]);
        some.attention.extend_from_slice(&all.attention[s * patches..][..patches]);
    }
    some
}

/// Cells of a row: `found` beside `expected`.
fn compared(expected: &[f32], found: &[f32], labels: &[bool]) -> String {
    let off: Vec<f32> = expected.iter().zip(found).map(|(a, b)| (a - b).abs()).collect();
    let most = off.iter().fold(0.0f32, |most, off| most.max(*off));
    let mean = off.iter().sum::<f32>() / off.len() as f32;
    let others = expected.iter().zip(found).filter(|(a, b)| (**a > 0.0) != (**b > 0.0)).count();
    format!("{most:.1e} | {mean:.1e} | {:.4} | {others}", auroc(found, labels))
}

/// The chance that a positive scores higher than a negative; equal scores count half.
fn auroc(scores: &[f32], labels: &[bool]) -> f64 {
    let of =
        |wanted: bool| scores.iter().zip(labels).filter(move |(_, label)| **label == wanted).map(|(s, _)| *s);
    let mut sum = 0.0;
    for positive in of(true) {
        for negative in of(false) {
            sum += match positive.total_cmp(&negative) {
                Ordering::Greater => 1.0,
                Ordering::Equal => 0.5,
                Ordering::Less => 0.0,
            };
        }
    }
    sum / (of(true).count() * of(false).count()) as f64
}

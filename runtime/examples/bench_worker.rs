//! scanside's half of `cargo xtask bench`; `xtask/peers/onnxruntime_bench.py` is the other and answers the same words.
//!
//! `bench_worker --graph TASK.onnx --slices S --threads T` says `ready MS` (time to load the graph), then answers each line on stdin:
//! `run` with the milliseconds of one run, `logits` with the last run's logits, `peak` with this process's peak memory in MB.
//!
//! `bench_worker --graph TASK.onnx --backbone FILE` writes the graph instead: a task with two labels on the bare backbone, 224×224.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use runtime::backbone::Backbone;
use runtime::engine::Engine;
use runtime::graph::{GraphMeta, task_graph};
use runtime::tensor::{Tensor, Tensors};

/// Height and width of a slice.
const SIZE: usize = 224;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let flags: BTreeMap<&str, &str> =
        words.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let flag = |name: &str| flags.get(name).copied().ok_or_else(|| format!("{name} is missing"));
    let graph = Path::new(flag("--graph")?);
    match flags.get("--backbone") {
        Some(backbone) => write_graph(Path::new(backbone), graph),
        None => serve(graph, flag("--slices")?.parse()?, flag("--threads")?.parse()?),
    }
}

/// Query and head are waves: what they are does not matter to the time.
fn write_graph(backbone: &Path, graph: &Path) -> Result<(), Box<dyn Error>> {
    let backbone = Backbone::open(backbone)?;
    let width = backbone.arch.dim;
    let wave = |shape: &[usize]| {
        let values = (0..shape.iter().product::<usize>()).map(|i| (i as f32 * 0.37).sin() * 0.1).collect();
        Tensor::new(shape, values)
    };
    let content = Tensors::from([
        ("query".to_owned(), wave(&[width])),
        ("head.weight".to_owned(), wave(&[2, width])),
        ("head.bias".to_owned(), wave(&[2])),
    ]);
    let meta = GraphMeta { task: "bench".into(), version: "1".into(), content_sha256: String::new() };
    std::fs::write(graph, task_graph(backbone, &content, [SIZE, SIZE], &meta)?)?;
    Ok(())
}

fn serve(graph: &Path, slices: usize, threads: usize) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let (engine, _) = Engine::open(graph, threads)?;
    println!("ready {}", milliseconds(start));
    let pixels = engine.views()[0].size.iter().product::<usize>() * 3;
    let input = input(slices * pixels);
    let mut logits = Vec::new();
    for line in std::io::stdin().lock().lines() {
        match line?.trim() {
            "run" => {
                let start = Instant::now();
                logits =
                    engine.run(slices, &|s, out| out.copy_from_slice(&input[s * pixels..][..pixels]))?.logits;
                println!("{}", milliseconds(start));
            }
            "logits" => println!("{}", logits.iter().map(f32::to_string).collect::<Vec<_>>().join(" ")),
            "peak" => println!("{}", peak_mb()?),
            other => return Err(format!("unknown word {other:?}: expected run, logits or peak").into()),
        }
    }
    Ok(())
}

/// The benchmark's input in [-2, 2): a hash of each value's position, the same in both halves.
fn input(values: usize) -> Vec<f32> {
    (0..values as u32)
        .map(|i| {
            let x = i.wrapping_mul(2_654_435_761);
            let x = (x ^ (x >> 16)).wrapping_mul(0x045D_9F3B);
            ((x ^ (x >> 16)) >> 8) as f32 / (1 << 22) as f32 - 2.0
        })
        .collect()
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

fn peak_mb() -> Result<f64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc/self/status")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0 / 1e6)
}

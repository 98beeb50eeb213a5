//! scanside's part in `cargo xtask bench`; `onnxruntime_bench.py` and `openvino_bench.py` in `xtask/peers` answer the same words.
//!
//! `bench_worker --graph TASK.onnx --slices S --threads T [--precision f32|bf16|int8]` says `ready MS` (time to load the graph), then answers each line on stdin:
//! `run` with the milliseconds of one run, `logits` with the last run's logits, `peak` with this process's peak memory in MB.
//!
//! `bench_worker --graph TASK.onnx --backbone FILE --size N --rows cls|all` writes the graph instead: a task with two labels on the bare
//! backbone, N×N; with `all` its last block computes all tokens, not CLS alone.
//!
//! `bench_worker --random vit-b --backbone FILE` writes a backbone of random numbers, always the same ones, in the sizes of DINOv2.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use runtime::backbone::Backbone;
use runtime::engine::{Engine, Precision, onnx};
use runtime::graph::{GraphMeta, full_task_graph, task_graph};
use runtime::tensor::{Tensor, Tensors, safetensors_bytes};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let flags: BTreeMap<&str, &str> =
        words.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let flag = |name: &str| flags.get(name).copied().ok_or_else(|| format!("{name} is missing"));
    if let Some(model) = flags.get("--random") {
        return write_random(model, Path::new(flag("--backbone")?));
    }
    let graph = Path::new(flag("--graph")?);
    if let Some(backbone) = flags.get("--backbone") {
        return write_graph(Path::new(backbone), graph, flag("--size")?.parse()?, flag("--rows")?);
    }
    let name = flags.get("--precision").copied().unwrap_or("f32");
    let precision = Precision::new(name)
        .ok_or_else(|| format!("unknown precision {name:?}: expected f32, bf16 or int8"))?;
    serve(graph, precision, flag("--slices")?.parse()?, flag("--threads")?.parse()?)
}

/// Query and head are waves: what they are does not matter to the time.
fn write_graph(backbone: &Path, graph: &Path, size: usize, rows: &str) -> Result<(), Box<dyn Error>> {
    let write = match rows {
        "cls" => task_graph,
        "all" => full_task_graph,
        other => return Err(format!("unknown rows {other:?}: expected cls or all").into()),
    };
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
    std::fs::write(graph, write(backbone, &content, [size, size], &meta)?)?;
    Ok(())
}

/// A DINOv2 in Hugging Face naming. A layer's outputs vary about as much as its inputs do, so that nothing grows or dies on the way.
fn write_random(model: &str, file: &Path) -> Result<(), Box<dyn Error>> {
    let width: usize = match model {
        "vit-s" => 384,
        "vit-b" => 768,
        other => return Err(format!("unknown model {other:?}: expected vit-s or vit-b").into()),
    };
    let mut out = Tensors::new();
    // Each tensor has a part of the hash of its own.
    let mut at = 0;
    let mut put = |name: String, shape: &[usize], mean: f32, scale: f32| {
        let values: usize = shape.iter().product();
        let data = (at..at + values as u32).map(|i| mean + scale * 0.5 * hashed(i)).collect();
        at += values as u32;
        out.insert(name, Tensor::new(shape, data));
    };
    put("embeddings.cls_token".into(), &[1, 1, width], 0.0, 1.0);
    put("embeddings.position_embeddings".into(), &[1, 37 * 37 + 1, width], 0.0, 0.5);
    put("embeddings.patch_embeddings.projection.weight".into(), &[width, 3, 14, 14], 0.0, 0.05);
    put("embeddings.patch_embeddings.projection.bias".into(), &[width], 0.0, 0.1);
    for n in 0..12 {
        let block = format!("encoder.layer.{n}");
        for (part, outputs, inputs) in [
            ("attention.attention.query", width, width),
            ("attention.attention.key", width, width),
            ("attention.attention.value", width, width),
            ("attention.output.dense", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ] {
            let scale = (3.0 / inputs as f32).sqrt();
            put(format!("{block}.{part}.weight"), &[outputs, inputs], 0.0, scale);
            put(format!("{block}.{part}.bias"), &[outputs], 0.0, 0.1);
        }
        for norm in ["norm1", "norm2"] {
            put(format!("{block}.{norm}.weight"), &[width], 1.0, 0.1);
            put(format!("{block}.{norm}.bias"), &[width], 0.0, 0.1);
        }
        for scale in ["layer_scale1.lambda1", "layer_scale2.lambda1"] {
            put(format!("{block}.{scale}"), &[width], 0.5, 0.1);
        }
    }
    put("layernorm.weight".into(), &[width], 1.0, 0.1);
    put("layernorm.bias".into(), &[width], 0.0, 0.1);
    std::fs::write(file, safetensors_bytes(&out, None))?;
    Ok(())
}

fn serve(graph: &Path, precision: Precision, slices: usize, threads: usize) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let engine = Engine::of_precision(onnx::read(graph)?.0, precision, threads)?;
    if engine.info().precision != precision {
        return Err(format!("this machine has no instructions for {}", precision.as_str()).into());
    }
    println!("ready {}", milliseconds(start));
    let pixels = engine.views()[0].size.iter().product::<usize>() * 3;
    let mut input = Vec::new();
    let mut logits = Vec::new();
    for line in std::io::stdin().lock().lines() {
        match line?.trim() {
            "run" => {
                // Made here, so that `peak` before the first run is what loading took.
                if input.is_empty() {
                    input = (0..(slices * pixels) as u32).map(hashed).collect();
                }
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

/// The benchmark's input in [-2, 2): a hash of each value's position, the same in all workers.
fn hashed(position: u32) -> f32 {
    let x = position.wrapping_mul(2_654_435_761);
    let x = (x ^ (x >> 16)).wrapping_mul(0x045D_9F3B);
    ((x ^ (x >> 16)) >> 8) as f32 / (1 << 22) as f32 - 2.0
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

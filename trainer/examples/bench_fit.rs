//! The trainer's half of `trainer/benches/peer/pytorch_fit.py`, which starts it and asks it in turns with the same model in
//! PyTorch.
//!
//! `bench_fit --backbone FILE --blocks N --size PIXELS --slices S --long L --chunk C --device DEVICE --threads T --precision P --shared OUT`
//! writes the initial parameters and the input to OUT (safetensors), says `ready`, then answers each line on stdin: `losses` with
//! those of the first 20 steps (only as the first word), `fit` with the milliseconds of a step on a volume of S slices, `long` with
//! those of a step on one of L slices of which at most C have activations at a time, `predict` with those of a
//! prediction of S slices, `peak` with the most MB that tensors have held on the GPU, or the process on the CPU.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use clap::ValueEnum;
use firmware_config::{AttentionLora, LoraSpec};
use runtime::backbone::Tensor as Stored;
use runtime::tensor::safetensors_bytes;
use tch::{Cuda, Device};
use trainer::data::{Slices, Study};
use trainer::device;
use trainer::fit::{Item, Plan, gradients};
use trainer::loss::Loss;
use trainer::model::{Encoder, Group, Network, Parameters};
use trainer::optim::{AdamW, Rates, norm};
use trainer::precision::Precision;
use trainer::run::open_backbone;
use trainer::workers::Workers;

/// Steps whose losses are compared.
const STEPS: usize = 20;
/// Volumes that the steps take in turn, positive and negative.
const VOLUMES: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let flags: BTreeMap<&str, &str> =
        words.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let flag = |name: &str| flags.get(name).copied().ok_or_else(|| format!("{name} is missing"));
    let number = |name: &str| flag(name)?.parse::<usize>().map_err(|e| format!("{name}: {e}"));
    let device = device::open(flag("--device")?)?;
    let (size, slices, long) = (number("--size")?, number("--slices")?, number("--long")?);
    let precision = Precision::from_str(flag("--precision")?, true)?;
    precision.check(device)?;

    let backbone = open_backbone(Path::new(flag("--backbone")?), Some(number("--blocks")?))?;
    let lora = LoraSpec { rank: 8, alpha: 16.0, attention: AttentionLora::Separate };
    let parameters = Parameters::init(&backbone.arch, &lora, 1, &[], 0, device)?;
    let encoder = Encoder::new(&backbone, [size; 2], device)?.with_precision(precision.kind())?;
    let network = Network { encoder, parameters };
    drop(backbone);
    let volumes: Vec<Item> = (0..VOLUMES)
        .map(|n| Item {
            study: Arc::new(Study::of(input(slices, size, n as u32))),
            targets: vec![Some(n % 2 == 0)],
        })
        .collect();
    let long =
        Item { study: Arc::new(Study::of(input(long, size, VOLUMES as u32))), targets: vec![Some(true)] };
    std::fs::write(flag("--shared")?, shared(&network, &volumes, &long, size)?)?;

    let named = network.parameters.named.iter();
    let optimiser = AdamW::new(named.map(|(n, t)| (n.clone(), t.shallow_clone(), Parameters::group(n))))?;
    let workers = Workers::new(&network, number("--threads")?, 1)?;
    let scale = precision.scaler().map_or(1.0, |scaler| scaler.scale);
    let plan = Plan { loss: Loss::Bce, smoothing: 0.0, chunk: number("--chunk")?, scale, pixel: None };
    let mut bench = Bench { network, workers, optimiser, plan, device };
    println!("ready");
    let mut step = 0;
    for line in std::io::stdin().lock().lines() {
        match line?.trim() {
            "losses" => {
                let losses = (0..STEPS).map(|n| bench.step(&volumes[n % VOLUMES]));
                let losses = losses.collect::<Result<Vec<f64>, _>>()?;
                println!("{}", losses.iter().map(f64::to_string).collect::<Vec<_>>().join(" "));
            }
            "fit" => {
                step += 1;
                println!("{}", bench.timed(|bench| bench.step(&volumes[step % VOLUMES]).map(drop))?);
            }
            "long" => println!("{}", bench.timed(|bench| bench.step(&long).map(drop))?),
            "predict" => println!("{}", bench.timed(|bench| bench.predict(&volumes[0]))?),
            "peak" => println!("{}", peak_mb(device)?),
            other => return Err(format!("unknown word {other:?}").into()),
        }
    }
    Ok(())
}

struct Bench {
    network: Network,
    workers: Workers,
    optimiser: AdamW,
    plan: Plan,
    device: Device,
}

impl Bench {
    /// One optimiser step on one volume; its loss.
    fn step(&mut self, item: &Item) -> Result<f64, Box<dyn Error>> {
        let made = gradients(&self.workers, &self.network.parameters, vec![item.clone()], self.plan)?;
        let (losses, gradients) = made.ok_or("the volume has no label")?;
        if !norm(&gradients)?.is_finite() {
            return Err("a gradient is not finite".into());
        }
        self.optimiser.step(&gradients, |group| match group {
            Group::Lora => Rates { lr: 1e-4, decay: 1e-5 },
            Group::Head => Rates { lr: 1e-3, decay: 1e-4 },
        })?;
        Ok(losses.total)
    }

    fn predict(&mut self, item: &Item) -> Result<(), Box<dyn Error>> {
        let (slices, chunk) = (Arc::clone(&item.study), self.plan.chunk);
        let work = move |network: &Network, ()| network.predict(&slices, chunk);
        self.workers.map(&self.network.parameters, vec![()], work)?;
        Ok(())
    }

    /// Milliseconds until all of it is done.
    fn timed(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), Box<dyn Error>>,
    ) -> Result<f64, Box<dyn Error>> {
        let start = Instant::now();
        work(self)?;
        if let Device::Cuda(index) = self.device {
            Cuda::synchronize(index as i64);
        }
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }
}

/// The slices of an item's only view.
fn only(item: &Item) -> &Slices {
    item.study.views[0].as_ref().expect("a task without views")
}

/// Slices in [-2, 2): a hash of each value's position, with a brighter block so that positives and negatives differ.
fn input(count: usize, size: usize, volume: u32) -> Slices {
    let each = 3 * size * size;
    let values = (0..count * each).map(|i| {
        let x = (i as u32 + volume.wrapping_mul(0x9E37_79B9)).wrapping_mul(2_654_435_761);
        let x = (x ^ (x >> 16)).wrapping_mul(0x045D_9F3B);
        let noise = ((x ^ (x >> 16)) >> 8) as f32 / (1 << 22) as f32 - 2.0;
        let inside = volume.is_multiple_of(2) && i / each == count / 2 && i % size < size / 4;
        if inside { 1.5 + 0.1 * noise } else { noise }
    });
    Slices { count, size: [size; 2], values: values.collect(), mask: None }
}

/// What both halves start from: `param.NAME`, `volumes` `[V, S, 3, H, W]` and `long` `[L, 3, H, W]`.
fn shared(network: &Network, volumes: &[Item], long: &Item, size: usize) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut tensors: BTreeMap<String, Stored> = BTreeMap::new();
    for (name, tensor) in network.parameters.to_stored()? {
        tensors.insert(format!("param.{name}"), tensor);
    }
    let values = volumes.iter().flat_map(|v| only(v).values.iter().copied()).collect();
    tensors.insert(
        "volumes".into(),
        Stored::new([volumes.len(), only(&volumes[0]).count, 3, size, size], values),
    );
    tensors.insert("long".into(), Stored::new([only(long).count, 3, size, size], only(long).values.clone()));
    Ok(safetensors_bytes(&tensors, None))
}

fn peak_mb(device: Device) -> Result<f64, Box<dyn Error>> {
    if let Some(bytes) = device::peak_bytes(device) {
        return Ok(bytes as f64 / 1e6);
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0 / 1e6)
}

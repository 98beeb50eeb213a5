//! What the service promises, measured on the real program: `cargo xtask bench` starts it.
//!
//! `bench_service --backbone FILE`: the packaged ViT-S/14. Each line on stdout is a row for `bench.json`; what is measured
//! is told on stderr.

mod process;
mod send;

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use firmware_config::device::Weights;
use runtime::backbone::Backbone;
use runtime::engine::{Engine, Precision};
use runtime::infer::{LoadedTask, Loader};
use runtime::plugin::Plugin;
use runtime::recipe::Prepared;
use runtime::result::{Kind, TaskResult};
use runtime::volume::{AxisCodes, Volume};
use serde_json::json;
use tests::fixture::Fixture;
use tests::golden::{version, with_golden};
use tests::mosquitto::Mosquitto;
use tests::scanner::dcmtk;
use tests::service::{EdgeBox, PATIENCE, next_result};
use tests::subscriber::Subscriber;

use self::process::Process;
use self::send::{Study, send_paced};

/// In slice-times: how long after the last slice's response the result may take.
const MOST_SLICE_TIMES: f64 = 2.0;
/// Without a model, in MB.
const MOST_IDLE_MB: f64 = 30.0;
/// Of one core, in per cent.
const MOST_IDLE_CPU: f64 = 1.0;
/// Times a slice's with merged weights.
const MOST_SHARED: f64 = 1.08;
/// From the command's start to its end, golden cases aside, in seconds.
const MOST_ACTIVATION_S: f64 = 2.0;
/// As [`MOST_ACTIVATION_S`].
const MOST_ROLLBACK_S: f64 = 1.0;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench_service: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut words = std::env::args_os().skip(1);
    let (Some(flag), Some(backbone)) = (words.next(), words.next().map(PathBuf::from)) else {
        bail!("--backbone FILE is missing; start this with `cargo xtask bench`");
    };
    ensure!(flag == "--backbone", "{} is no flag; give --backbone FILE", flag.display());
    ways(backbone.clone())?;
    idle()?;
    four_scanners()?;
    last_slice(backbone)
}

/// A row for `bench.json`: `limit` is what was promised.
fn row(name: &str, unit: &str, value: f64, limit: f64, threads: usize) {
    let row = json!({
        "name": name, "unit": unit, "scanside": value, "peers": { "limit": limit }, "ratio": value / limit,
        "threads": threads,
    });
    println!("{row}");
    eprintln!("  {name}: {value:.2} {unit} (promised: at most {limit:.2})");
}

/// Memory and processor time of a box that has nothing to do and no model.
fn idle() -> Result<()> {
    let (broker, fixture) = (Mosquitto::start()?, Fixture::for_a_service(|_| ()));
    let mut on = EdgeBox::new(&broker.url(), &fixture, "")?;
    on.start()?;
    on.await_line("connected to the broker")?;
    thread::sleep(Duration::from_secs(2));
    let process = Process(on.pid());
    let before = process.cpu()?;
    let time = Duration::from_secs(20);
    thread::sleep(time);
    let used = process.cpu()?.saturating_sub(before);
    let percent = 100.0 * used.as_secs_f64() / time.as_secs_f64();
    row("service, idle, processor time of one core", "%", percent, MOST_IDLE_CPU, 1);
    row("service, idle, memory without a model", "MB", process.resident_mb()?, MOST_IDLE_MB, 1);
    on.terminate()?;
    Ok(())
}

/// Four scanners send 2,000 instances at once.
fn four_scanners() -> Result<()> {
    const SCANNERS: usize = 4;
    const SERIES: usize = 10;
    const SLICES: usize = 50;
    let (broker, fixture, folder) =
        (Mosquitto::start()?, Fixture::for_a_service(accept_ct), tempfile::tempdir()?);
    let subscriber = Subscriber::new(broker.port, "scanside/v1/north/ct-2/result/lesion")?;
    let mut on = EdgeBox::with_plugin(&broker.url(), &fixture, "")?;
    on.start()?;
    let mut files = Vec::new();
    for scanner in 0..SCANNERS {
        let mut all = Vec::new();
        for series in 0..SERIES {
            all.extend(Study::new(256, SLICES, scanner * SERIES + series).write(folder.path())?);
        }
        files.push(all);
    }
    let bytes: u64 = files.iter().flatten().map(|f| f.metadata().map_or(0, |m| m.len())).sum();
    let (start, address) = (Instant::now(), on.address());
    let scanners: Vec<_> = files
        .into_iter()
        .map(|files| thread::spawn(move || tests::scanner::run(dcmtk("storescu", address, &[]).args(files))))
        .collect();
    let mut acknowledged = 0;
    for scanner in scanners {
        let (ok, said) = scanner.join().map_err(|_| anyhow::anyhow!("a scanner panicked"))??;
        ensure!(ok, "{said}");
        acknowledged += said.matches("Received Store Response (Success)").count();
    }
    let sent = start.elapsed();
    let all = SCANNERS * SERIES * SLICES;
    ensure!(acknowledged == all, "{acknowledged} of {all} instances were acknowledged");
    let mut instances = 0;
    while instances < all {
        let (_, result) = next_result(&subscriber)?;
        ensure!(result.kind == Kind::Final, "{result:?}");
        instances += result.input.instances;
    }
    let process = Process(on.pid());
    eprintln!(
        "  {all} instances of {SCANNERS} scanners, {:.0} MB, acknowledged in {:.1} s, all classified after {:.1} s",
        bytes as f64 / 1e6,
        sent.as_secs_f64(),
        start.elapsed().as_secs_f64()
    );
    // What it holds of a slice is some kilobytes; the rest does not grow with their number.
    let peak = process.peak_mb()?;
    row("service, 4 scanners, 2000 instances, peak memory", "MB", peak, 100.0, 2);
    on.terminate()?;
    let store = on.store()?;
    let kept =
        (0..SCANNERS * SERIES).map(|n| Ok(store.instances(&Study::uid(n))?.len())).sum::<Result<usize>>()?;
    ensure!(kept == all, "{kept} of {all} instances are stored");
    Ok(())
}

fn accept_ct(manifest: &mut firmware_config::Manifest) {
    if let Some(accepts) = &mut manifest.accepts {
        accepts.modality = vec!["CT".into()];
    }
}

/// From the response to the last slice's C-STORE to the result at the broker, which is later than in the outbox.
fn last_slice(backbone: PathBuf) -> Result<()> {
    let broker = Mosquitto::start()?;
    let fixture = Fixture::on(backbone, tempfile::tempdir()?, |manifest| {
        manifest.recipe = serde_json::from_str(
            r#"{"plane":"acquisition","size":[224,224],"intensity":{"kind":"window","windows":[[0,1000]]}}"#,
        )
        .expect("a recipe");
        manifest.accepts = Some(serde_json::from_str(r#"{"modality":["CT"]}"#).expect("what is accepted"));
    });
    with_golden(&fixture).write(&fixture.plugin)?;
    let mut on = EdgeBox::with_plugin(&broker.url(), &fixture, "")?;
    on.start()?;
    let slice_time = slice_time(&fixture)?;
    eprintln!("  one slice takes {:.0} ms on one core", 1e3 * slice_time.as_secs_f64());
    for slices in [8, 32, 96] {
        let subscriber = Subscriber::new(broker.port, "scanside/v1/north/ct-2/result/lesion")?;
        let study = Study::new(512, slices, slices);
        // Half as fast again as one core encodes; there are two.
        let last = send_paced(on.address(), &study, slice_time.mul_f64(1.5))?;
        let message = subscriber.next(PATIENCE)?;
        let waited = last.elapsed();
        let result: TaskResult = serde_json::from_slice(&message.payload).context("no result")?;
        ensure!(result.kind == Kind::Final && result.input.instances == slices, "{result:?}");
        let name = format!("service, {slices} slices, ViT-S/14 at 224, last slice to result");
        let times = waited.as_secs_f64() / slice_time.as_secs_f64();
        row(&name, "slice-times", times, MOST_SLICE_TIMES, 2);
    }
    switch(&broker, &fixture, &mut on, slice_time)?;
    on.terminate()?;
    Ok(())
}

/// Plugins that go live and come back while a series arrives: how long it takes, and what the series' result waits for it.
fn switch(broker: &Mosquitto, fixture: &Fixture, on: &mut EdgeBox, slice_time: Duration) -> Result<()> {
    let next = version(fixture, "1.1.0", |_| ());
    let (mut activations, mut rollbacks) = (Vec::new(), Vec::new());
    for round in 0..5 {
        on.plugin(&["install", &next.display().to_string()])?;
        let start = Instant::now();
        let said = on.plugin(&["activate", "lesion"])?.stdout;
        let golden = said.rsplit('(').next().and_then(|end| end.split(" s").next());
        let golden: f64 = golden.context(said.clone())?.parse().context(said)?;
        activations.push(start.elapsed().as_secs_f64() - golden);
        let start = Instant::now();
        on.plugin(&["rollback", "lesion"])?;
        rollbacks.push(start.elapsed().as_secs_f64());
        eprintln!(
            "  round {round}: activation {:.2} s, rollback {:.3} s",
            activations[round], rollbacks[round]
        );
    }
    row("plugin, ViT-S/14, activation without golden cases", "s", median(activations), MOST_ACTIVATION_S, 2);
    row("plugin, ViT-S/14, rollback", "s", median(rollbacks), MOST_ROLLBACK_S, 2);

    let subscriber = Subscriber::new(broker.port, "scanside/v1/north/ct-2/result/lesion")?;
    for (n, words) in [["rollback", "lesion"], ["rollback", "lesion"]].into_iter().enumerate() {
        let study = Study::new(512, 48, 200 + n);
        let (last, switched) = thread::scope(|scope| {
            let switched = scope.spawn(|| {
                // In the middle of the series; the service loads the other plugin meanwhile.
                thread::sleep(slice_time.mul_f64(1.5 * 24.0));
                on.plugin(&words)
            });
            (send_paced(on.address(), &study, slice_time.mul_f64(1.5)), switched.join())
        });
        switched.map_err(|_| anyhow::anyhow!("the switch panicked"))??;
        let last = last?;
        let message = subscriber.next(PATIENCE)?;
        let times = last.elapsed().as_secs_f64() / slice_time.as_secs_f64();
        let result: TaskResult = serde_json::from_slice(&message.payload).context("no result")?;
        ensure!(result.kind == Kind::Final && result.input.instances == 48, "{result:?}");
        let name = format!("service, 48 slices, ViT-S/14 at 224, plugin switched meanwhile ({})", n + 1);
        row(&name, "slice-times", times, MOST_SLICE_TIMES + 1.0, 2);
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A slice through weights that tasks share, and in less than single precision, in turns with one through merged weights.
fn ways(backbone: PathBuf) -> Result<()> {
    let fixture = Fixture::on(backbone, tempfile::tempdir()?, |manifest| {
        manifest.recipe.size = [224, 224];
        manifest.lora.rank = 8;
    });
    let (plugin, sha256) = Plugin::read(&fixture.plugin)?;
    for threads in [1, 2] {
        let loader = Loader::new(&fixture.backbone, threads, Weights::Shared);
        let (path, backbone) = (&fixture.plugin, &fixture.backbone);
        let shared = loader.load(plugin.clone(), sha256.clone(), path, backbone, true)?.engine;
        let merged = |precision| -> Result<Engine> {
            let graph = plugin.graph(Backbone::open(backbone)?)?;
            Ok(Engine::of_precision(graph, precision, threads)?)
        };
        let ways = [
            ("f32", merged(Precision::F32)?, 1.0),
            ("shared weights", shared, MOST_SHARED),
            ("bf16", merged(Precision::Bf16)?, 1.0),
            ("int8", merged(Precision::Int8)?, 1.0),
        ];
        let mut encoders = Vec::new();
        for (_, engine, _) in &ways {
            encoders.push(engine.encoder(0, threads)?);
        }
        let mut ratios = vec![Vec::new(); ways.len()];
        for _ in 0..31 {
            let mut times = Vec::new();
            for encoder in &mut encoders {
                let start = Instant::now();
                encoder.encode(|out| out.fill(0.5))?;
                times.push(start.elapsed().as_secs_f64());
            }
            ratios.iter_mut().zip(&times).for_each(|(ratios, time)| ratios.push(time / times[0]));
        }
        for ((way, engine, limit), ratios) in ways.iter().zip(ratios).skip(1) {
            let precision = engine.info().precision.as_str();
            let name =
                format!("a slice, ViT-S/14 at 224, rank 8, {way} ({precision}) to merged weights in f32");
            row(&name, "times", median(ratios), *limit, threads);
        }
    }
    Ok(())
}

/// Median time of one slice on one core, prepared and encoded.
fn slice_time(fixture: &Fixture) -> Result<Duration> {
    let task = LoadedTask::open(&fixture.graph, &fixture.plugin, 1)?;
    let codes: AxisCodes = "LPS".parse()?;
    let volume =
        Volume::from_parts([512, 512, 1], vec![500.0; 512 * 512], codes.centred([0.5; 3], [512, 512, 1]));
    let prepared = Prepared::new(&volume, &task.plugin.manifest.recipe)?;
    let mut encoder = task.engine.encoder(0, 1)?;
    let mut times = Vec::new();
    for _ in 0..9 {
        let start = Instant::now();
        encoder.encode(|out| prepared.write_slice(0, out))?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}

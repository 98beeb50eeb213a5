mod compare;
mod evaluate;
mod import;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};
use trainer::crossval;
use trainer::data::Table;
use trainer::evaluate::EvaluateError;
use trainer::export::{self, export};
use trainer::fit::{self, fit};
use trainer::phantom::{self, Counts, PhantomError, Suite};
use trainer::precision::Precision;
use trainer::predict;
use trainer::run::Run;
use trainer::task::Task;
use trainer::{Error, device, report, vlm3d};

/// Fits task plugins for 3D medical image classification on a frozen 2D vision backbone, and exports them.
///
/// For research only. Exit code 0: done; 1: a fault of the machine; 2: wrong input or usage.
#[derive(Parser)]
#[command(name = "scanside-train", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Fit(Fit),
    Summarize(Summarize),
    Compare(compare::Compare),
    Config(Config),
    Export(Export),
    Predict(Predict),
    Evaluate(evaluate::Evaluate),
    Report(Report),
    Phantom(Phantom),
    Import(import::Import),
}

/// Fit a task's LoRA factors, query and head.
///
/// Writes into the run folder: settings.json (every setting), metrics.csv (a line an epoch), last.safetensors and
/// best.safetensors (checkpoints), predictions.csv and summary.json (the best checkpoint on validation and test volumes), with
/// --probe probe.csv (the probe on the same volumes).
/// Interrupted, the same command goes on after the last finished epoch and ends with the same bits. With --seeds or --folds
/// it makes a run folder for each fit under --out, and sums up what is finished in summary.json and predictions.csv there.
#[derive(Args)]
struct Fit {
    /// Task file: name, version, labels, recipe, views, loss, LoRA, training
    #[arg(long, value_name = "TOML")]
    task: PathBuf,
    /// Table with the columns id, split (train, val, test), image or one image:VIEW a view, optionally patient and mask, and one a
    /// label (0, 1 or empty)
    #[arg(long, value_name = "CSV")]
    data: PathBuf,
    /// Backbone weights: safetensors in the naming of Hugging Face, timm or the original code; a sharded one's index or folder
    #[arg(long, value_name = "FILE")]
    backbone: PathBuf,
    /// Run folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Use only the backbone's first N blocks and its final norm [default: the task's, or all]
    #[arg(long, value_name = "N")]
    blocks: Option<usize>,
    /// PEFT adapter to start from: a folder with adapter_model.safetensors and adapter_config.json
    #[arg(long, value_name = "DIR")]
    init_from: Option<PathBuf>,
    /// Fit once with each of these seeds, in the place of train.seed
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    seeds: Vec<u64>,
    /// Cross-validate: part the train and val rows into K folds, alike in labels, rows of one `patient` together
    #[arg(long, value_name = "K")]
    folds: Option<usize>,
    /// Fit these folds only, from 0, as a job of its own does
    #[arg(long, value_name = "N,N", value_delimiter = ',', requires = "folds")]
    fold: Vec<usize>,
    /// Also fit a linear probe on frozen embeddings of the same volumes, to compare with
    #[arg(long)]
    probe: bool,
    /// Folder for prepared slices, so that another run or seed need not decode and resample again; runs may share it
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Format of matrix products and attention; factors, norms and sums stay f32. f16 is for GPUs
    #[arg(long, value_enum, default_value_t)]
    precision: Precision,
    #[command(flatten)]
    machine: Machine,
}

/// Print a task file with every default written out.
///
/// What is printed is a task file of the same meaning; keys that have no value unless they are set (blocks, accepts, train.clip,
/// train.ema, train.patience) stay away.
#[derive(Args)]
struct Config {
    /// Task file
    #[arg(long, value_name = "TOML")]
    task: PathBuf,
}

/// Sum up the finished fits of `fit --folds` and `fit --seeds`.
///
/// Writes summary.json (mean and spread over the runs) and predictions.csv (out of fold, and means over the runs).
#[derive(Args)]
struct Summarize {
    /// Folder that `fit` was given as --out
    #[arg(long, value_name = "DIR")]
    runs: PathBuf,
}

/// Write the task plugin and the merged ONNX graph of a run, and check them against libtorch.
///
/// Writes NAME-VERSION.plugin and NAME-VERSION.onnx, and export.json into the run folder. Nothing is left unless the graph
/// reproduces libtorch's logits to 1e-3, its embeddings to 1e-3 of their length and its heat maps to 1e-2 of their peak.
#[derive(Args)]
struct Export {
    /// Run folder of `fit`
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Folder for plugin and graph
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    moved: Moved,
    /// Also write the factors as a PEFT adapter (adapter_model.safetensors, adapter_config.json) into this folder
    #[arg(long, value_name = "DIR")]
    peft: Option<PathBuf>,
    /// Whose names the adapter has: hugging-face, hugging-face-newer (transformers 5), timm or original [default: the
    /// backbone file's]
    #[arg(long, value_name = "NAMING", requires = "peft")]
    peft_naming: Option<String>,
    /// Round factors, query and head to half precision: half the bytes to ship; the graph is as large and as fast
    #[arg(long)]
    half: bool,
    /// Rows of the data table, by id, whose scans become golden cases beside the synthetic ones
    #[arg(long, value_name = "ID", num_args = 1..)]
    golden: Vec<String>,
    /// How far a device's logits may be off from a golden case's; less than single precision needs more than the default
    #[arg(long, value_name = "LOGIT", default_value_t = 1e-3)]
    golden_tolerance: f32,
    /// Let patients' scans go into the plugin, and so to whoever gets it; the model card names them
    #[arg(long, requires = "golden")]
    allow_patient_golden: bool,
    /// Data table, for the scans compared [default: where the run was fitted]
    #[arg(long, value_name = "CSV")]
    data: Option<PathBuf>,
    #[command(flatten)]
    machine: Machine,
}

/// Predict every scan of a table with a run's best checkpoint.
///
/// Writes CSV: id, split, the labels, logit:LABEL and prob:LABEL. Label columns may be missing from the table. Where it has masks,
/// heat maps are compared with them: heat:hit (the peak lies in the mask), heat:share (of the mask in the volume), heat:dice at
/// heat:level (the share of the peak that is best for the val rows) and heat:best-dice (at each row's own best level).
#[derive(Args)]
struct Predict {
    /// Run folder of `fit`
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Table with the columns id, split and image, and mask where heat maps are to be compared with masks
    #[arg(long, value_name = "CSV")]
    data: PathBuf,
    /// How far from the mask a heat map's peak may lie and still hit it
    #[arg(long, value_name = "MM", default_value_t = 0.0)]
    heat_tolerance: f64,
    /// File to write [default: standard output]
    #[arg(long, value_name = "CSV")]
    out: Option<PathBuf>,
    /// Also write the submission of the VLM3D challenge, results.json; the task must have its 18 labels, in any order
    #[arg(long, value_name = "JSON")]
    vlm3d: Option<PathBuf>,
    /// Go on without scans that cannot be read, telling of each; they get no row [default: as the run's task says]
    #[arg(long)]
    skip_unreadable: bool,
    /// Folder for prepared slices, as for `fit`
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    moved: Moved,
    #[command(flatten)]
    machine: Machine,
}

/// Write a run's report: training curves, ROC, precision and recall, calibration, operating points and
/// the most wrong cases in one HTML file that needs nothing else.
#[derive(Args)]
struct Report {
    /// Run folder of `fit`
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// File to write
    #[arg(long, value_name = "HTML")]
    out: PathBuf,
    /// Show so many of the test volumes of the greatest loss, with their heat maps; 0 needs neither backbone nor scans
    #[arg(long, value_name = "N", default_value_t = 4)]
    wrong: usize,
    /// Picture to show, as `scanside infer --picture` writes it; repeatable
    #[arg(long, value_name = "PNG")]
    picture: Vec<PathBuf>,
    #[command(flatten)]
    moved: Moved,
    /// Data table [default: where the run was fitted]
    #[arg(long, value_name = "CSV")]
    data: Option<PathBuf>,
    #[command(flatten)]
    machine: Machine,
}

/// Make labelled volumes with planted findings from real anatomy.
///
/// Writes volumes and masks (NIfTI), data.csv, suite.toml and a task.toml ready for `fit`. A split's first volumes are the same
/// whatever its count and the number of threads.
#[derive(Args)]
struct Phantom {
    /// Name of a built-in suite (demo, ct-bleed, t01-bowel … t12-head), a TOML file, or `twelve`: the benchmark of t01 to t12, each in a
    /// folder of its own
    #[arg(long, value_name = "NAME")]
    suite: String,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Volumes to make, in place of the suite's own numbers (of every suite of `twelve`)
    #[arg(long, value_name = "TRAIN,VAL,TEST")]
    counts: Option<Counts>,
    /// Folder with the scans that the suite is made from; `cargo xtask assets` fills it
    #[arg(long, value_name = "DIR", default_value = "target/assets/scans")]
    assets: PathBuf,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

#[derive(Args)]
struct Machine {
    /// cpu, cuda or cuda:N; cuda takes libtorch_cuda.so of the PyTorch that python3 finds, or of SCANSIDE_TORCH_CUDA
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads [default: all cores]; a resumed fit keeps those it was started with
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

#[derive(Args)]
struct Moved {
    /// Backbone file [default: where the run was fitted]
    #[arg(long, value_name = "FILE")]
    backbone: Option<PathBuf>,
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .with_max_level(tracing::Level::INFO)
        .init();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // An error's own sentence names its causes.
            eprintln!("error: {}", error.to_string().replace(['\n', '\r'], " "));
            ExitCode::from(if is_bad_input(&error) { 2 } else { 1 })
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Fit(args) => run_fit(args),
        Command::Summarize(args) => run_summarize(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Config(args) => print(&Task::read(&args.task)?.resolved(&args.task)?),
        Command::Export(args) => run_export(args),
        Command::Predict(args) => run_predict(&args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Report(args) => run_report(args),
        Command::Phantom(args) => run_phantom(&args),
        Command::Import(args) => import::run(&args),
    }
}

/// Whether the user's file or flag is wrong, rather than the machine at fault.
fn is_bad_input(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<Error>().is_some_and(Error::is_bad_input)
            || cause.downcast_ref::<EvaluateError>().is_some_and(EvaluateError::is_bad_input)
            || cause.downcast_ref::<PhantomError>().is_some_and(PhantomError::is_bad_input)
    })
}

fn threads(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get)).max(1)
}

/// Prints to standard output; a reader that has gone away is no error.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => bail!("cannot write to standard output: {e}"),
        _ => Ok(()),
    }
}

fn area(x: Option<f64>) -> String {
    x.map_or("–".into(), |x| format!("{x:.3}"))
}

fn run_fit(args: Fit) -> Result<()> {
    let device = device::open(&args.machine.device)?;
    let mut task = Task::read(&args.task)?;
    task.blocks = args.blocks.or(task.blocks);
    let plan = crossval::Plan { folds: args.folds, only: args.fold, seeds: args.seeds };
    let options = fit::Options {
        task,
        task_path: args.task,
        data: args.data,
        split: None,
        backbone: args.backbone,
        out: args.out.clone(),
        init_from: args.init_from,
        device,
        precision: args.precision,
        threads: threads(args.machine.threads),
        probe: args.probe,
        cache: args.cache,
        stop_after: None,
        progress: true,
    };
    if plan != crossval::Plan::default() {
        let made = crossval::run(&options, &plan)?;
        return print(&format!("{made}\nrun folders: {}\n", args.out.display()));
    }
    let summary = fit(&options)?;
    let Some(summary) = summary else { return Ok(()) };
    let mut text = format!(
        "best epoch {}; AUROC {} on validation, {} on test volumes\n",
        summary.best_epoch,
        area(summary.val_auroc),
        area(summary.test_auroc)
    );
    for (label, figures) in &summary.labels {
        if let Some(auroc) = &figures.test_auroc {
            let [low, high] = auroc.ci;
            text += &format!("{label}: test AUROC {:.3} (95 % CI {low:.3} to {high:.3})\n", auroc.value);
        }
    }
    if args.probe {
        text += &format!("frozen linear probe: test AUROC {}\n", area(summary.probe_auroc));
    }
    text += &format!("run folder: {}\n", args.out.display());
    print(&text)
}

fn run_summarize(args: &Summarize) -> Result<()> {
    let made = crossval::overview(&args.runs)?;
    made.write(&args.runs)?;
    print(&made.overview.to_string())
}

fn run_export(args: Export) -> Result<()> {
    let exported = export(&export::Options {
        run: args.run,
        out: args.out,
        backbone: args.moved.backbone,
        data: args.data,
        peft: args.peft.map(|folder| (folder, args.peft_naming)),
        half: args.half,
        golden: args.golden,
        golden_tolerance: args.golden_tolerance,
        allow_patient_golden: args.allow_patient_golden,
        device: device::open(&args.machine.device)?,
        threads: threads(args.machine.threads),
    })?;
    let parity = &exported.parity;
    print(&format!(
        "{} ({} bytes)\n{} ({} bytes)\nlargest difference from libtorch over {} volumes: {:.2e} in a logit, {:.2e} of an \
         embedding's length, {:.2e} in a slice weight, {:.2e} of a heat map's peak\n",
        exported.plugin.display(),
        exported.plugin_bytes,
        exported.graph.display(),
        exported.graph_bytes,
        parity.volumes,
        parity.logits,
        parity.embeddings,
        parity.slice_weights,
        parity.heatmap,
    ))
}

fn run_predict(args: &Predict) -> Result<()> {
    let device = device::open(&args.machine.device)?;
    let run = Run::open(&args.run)?;
    let mut task = run.settings().task.clone();
    task.train.skip_unreadable |= args.skip_unreadable;
    let task = &task;
    if args.vlm3d.is_some() {
        vlm3d::columns(task)?;
    }
    let table = Table::read(&args.data, task, true)?;
    let backbone = run.backbone(args.moved.backbone.as_deref())?;
    let network = run.network(&backbone, device)?;
    drop(backbone);
    let cache = args.cache.as_deref();
    let rows = predict::predict(
        &network,
        &table,
        task,
        cache,
        args.heat_tolerance,
        threads(args.machine.threads),
        true,
    )?;
    let temperature = run.temperature()?;
    if let Some(path) = &args.vlm3d {
        write_file(path, &vlm3d::submission(&table, task, &rows, temperature)?)?;
    }
    let csv = predict::csv(&table, task, &rows, temperature)?;
    match &args.out {
        Some(path) => write_file(path, &csv),
        None => print(&String::from_utf8_lossy(&csv)),
    }
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    runtime::files::write_atomically(path, bytes)
        .map_err(|source| Error::Io { path: path.into(), source }.into())
}

fn run_report(args: Report) -> Result<()> {
    let report = report::gather(&report::Options {
        run: args.run,
        pictures: args.picture,
        wrong: args.wrong,
        backbone: args.moved.backbone,
        data: args.data,
        device: device::open(&args.machine.device)?,
        threads: threads(args.machine.threads),
    })?;
    report.write(&args.out).map_err(|source| Error::Io { path: args.out.clone(), source })?;
    print(&format!("{}\n", args.out.display()))
}

fn progress_bar(what: &str) -> Result<indicatif::ProgressBar> {
    let template = format!("{{bar:30}} {{pos}}/{{len}} {what}, {{eta}} left");
    Ok(indicatif::ProgressBar::new(0).with_style(indicatif::ProgressStyle::with_template(&template)?))
}

fn run_phantom(args: &Phantom) -> Result<()> {
    if args.suite != "twelve" {
        return make_phantoms(args, &args.suite, &args.out);
    }
    Suite::twelve().try_for_each(|name| make_phantoms(args, name, &args.out.join(name)))
}

fn make_phantoms(args: &Phantom, suite: &str, out: &Path) -> Result<()> {
    let mut suite = Suite::load(suite)?;
    suite.counts = args.counts.unwrap_or(suite.counts);
    let bar = progress_bar("volumes")?;
    let progress = |done: usize, of: usize| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
    };
    let made = phantom::generate(&suite, &args.assets, out, threads(args.threads), &progress)?;
    bar.finish_and_clear();
    for split in phantom::Split::ALL {
        let labels: Vec<&str> =
            made.one_class.iter().filter(|(s, _)| *s == split).map(|(_, label)| label.as_str()).collect();
        if let [first, ..] = labels.as_slice() {
            let more = if labels.len() > 1 {
                format!(" and {} more labels", labels.len() - 1)
            } else {
                String::new()
            };
            tracing::warn!(
                "{}: no AUROC on {split}, as its volumes are all of one class, for {first}{more}; ask for more by --counts",
                suite.name
            );
        }
    }
    print(&format!("{}: {} volumes, {} with a finding\n", out.display(), made.volumes, made.positives))
}

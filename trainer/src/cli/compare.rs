use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use clap::Args;
use trainer::compare::{
    self, Ablation, Base, Cell, Method, Options, State, Suite, SuiteTask, WeightsFile, gather, html, make,
    markdown,
};
use trainer::precision::Precision;
use trainer::{Error, device};

use super::{Machine, print, threads};

/// Compare methods on the same volumes, splits and seeds: AnyMC3D with other ways to pool slices, probes, and the networks of the field.
///
/// Each method on each task with each seed is a cell: a folder under --out and a process of its own. What is finished is not made again
/// while task, table, backbone and method stay the same, and what was interrupted goes on. Writes compare.md, compare.html and
/// compare.json into --out. Methods are BASE[@BACKBONE][+KEY=VALUE]…, for example anymc3d@dinov2-small+data=0.2. Keys: data (share of the
/// training volumes), rank and targets (of the factors: patch, qkv, output, joined by dots), slices (at most so many), pixel (weight of pixel
/// supervision, 0 for none), view (this one alone).
#[derive(Args)]
pub(super) struct Compare {
    /// A folder with task.toml and data.csv, a folder of such folders, or `small`: the demo's task with 60 volumes
    #[arg(long, value_name = "DIR")]
    suite: PathBuf,
    /// Backbone weights, as NAME=FILE; repeatable, the first serves methods that name none. A name of its own is not needed for one
    #[arg(long, value_name = "[NAME=]FILE", required = true)]
    backbone: Vec<String>,
    /// Weights that were published with a method, as METHOD=FILE (safetensors): medicalnet and voco need them, cnn-bilstm and the 3D
    /// networks may start from them; repeatable
    #[arg(long, value_name = "METHOD=FILE")]
    weights: Vec<String>,
    /// Folder of the comparison
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Methods, the first of which the others are compared with [default: all on the first backbone]
    #[arg(long, value_name = "METHOD,…", value_delimiter = ',')]
    methods: Vec<Method>,
    /// Also the methods that take the first one apart: pooling, backbone, rank, targets, data, slices, pixel or views
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    ablation: Vec<Ablation>,
    /// Seeds, each in the place of the task's
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "0")]
    seeds: Vec<u64>,
    /// Make this cell only, TASK/METHOD/seed-N, and no tables: as a job of its own does
    #[arg(long, value_name = "CELL", conflicts_with_all = ["list", "tables"])]
    cell: Option<Cell>,
    /// Print the cells that are not made yet, a line each, and make none
    #[arg(long, conflicts_with = "tables")]
    list: bool,
    /// Make no cell, only the tables of what is there
    #[arg(long)]
    tables: bool,
    /// Format of matrix products and attention of the LoRA fits
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    /// Folder of the scans that the suite `small` is made from
    #[arg(long, value_name = "DIR", default_value = "target/assets/scans")]
    assets: PathBuf,
    #[command(flatten)]
    machine: Machine,
}

pub(super) fn run(args: &Compare) -> Result<()> {
    // Only a process that makes a cell takes memory of the GPU.
    let device = match args.cell {
        Some(_) => device::open(&args.machine.device)?,
        None => device::parse(&args.machine.device)?,
    };
    args.precision.check(device)?;
    let options = Options {
        out: args.out.clone(),
        backbones: named(&args.backbone),
        weights: named(&args.weights),
        device,
        precision: args.precision,
        threads: threads(args.machine.threads),
        progress: true,
    };
    let suite = if args.suite.as_os_str() == "small" {
        Suite::small(&args.out, &args.assets, options.threads)?
    } else {
        Suite::open(&args.suite)?
    };
    if let Some(cell) = &args.cell {
        let made = make(cell, task_of(&suite, cell)?, &options)?;
        return print(&told(&made.cell, &made.state));
    }
    let methods = methods(args, &suite, &options)?;
    let mut cells = Vec::new();
    for on in &suite.tasks {
        for method in &methods {
            for seed in compare::seeds_of(method, &args.seeds) {
                cells.push((on, Cell { task: on.name.clone(), method: method.clone(), seed }));
            }
        }
    }
    if !args.tables {
        let count = cells.len();
        for (n, (on, cell)) in cells.iter().enumerate() {
            let key = cell.key(on, &options);
            let finished =
                cell.made(&options.out).is_some_and(|made| made.key == key && made.state == State::Done);
            if finished {
                continue;
            }
            if args.list {
                print(&format!("{cell}\n"))?;
                continue;
            }
            tracing::info!("cell {} of {count}: {cell}", n + 1);
            child(cell, on, &options)?;
        }
    }
    if args.list {
        return Ok(());
    }
    let found = gather(&options, &suite, &methods, &args.seeds)?;
    let text = markdown(&found);
    let json = serde_json::to_string_pretty(&found)? + "\n";
    for (name, content) in [("compare.md", &text), ("compare.html", &html(&found)), ("compare.json", &json)] {
        let path = options.out.join(name);
        runtime::files::write_atomically(&path, content.as_bytes())
            .map_err(|source| Error::Io { path: path.clone(), source })?;
    }
    print(&text)
}

/// Those of --methods, then those of --ablation, each once; all where neither is given.
fn methods(args: &Compare, suite: &Suite, options: &Options) -> Result<Vec<Method>> {
    if args.methods.is_empty() && args.ablation.is_empty() {
        return Ok(Base::ALL.map(Method::from).to_vec());
    }
    let backbones: Vec<&str> = options.backbones.iter().map(|file| file.name.as_str()).collect();
    let mut views: Vec<&str> = suite.tasks.iter().flat_map(|on| on.task.view_names()).collect();
    views.sort_unstable();
    views.dedup();
    let mut methods = args.methods.clone();
    for name in args.ablation.iter().flat_map(|ablation| ablation.methods(&backbones, &views)) {
        let method = name.parse().map_err(|problem| Error::Flag { flag: "--ablation", problem })?;
        if !methods.contains(&method) {
            methods.push(method);
        }
    }
    Ok(methods)
}

/// Makes a cell in a process of its own: its memory is its own, and what ends it does not end the others.
fn child(cell: &Cell, on: &SuiteTask, options: &Options) -> Result<()> {
    let mut arguments: Vec<_> = std::env::args_os().skip(1).collect();
    arguments.extend(["--cell".into(), cell.to_string().into()]);
    // Not by its path: a newer version may have been installed there meanwhile.
    let mut job = Command::new("/proc/self/exe");
    let status =
        job.args(arguments).stdout(Stdio::null()).status().context("/proc/self/exe cannot be started")?;
    if !status.success() {
        compare::note_death(cell, on, options, format!("its process ended with {status}"))?;
    }
    if let Some(State::Empty(why)) = cell.made(&options.out).map(|made| made.state) {
        tracing::warn!("{cell} is empty: {why}");
    }
    Ok(())
}

fn told(cell: &str, state: &State) -> String {
    match state {
        State::Done => format!("{cell}: done\n"),
        State::Empty(why) => format!("{cell}: empty, {why}\n"),
    }
}

fn task_of<'a>(suite: &'a Suite, cell: &Cell) -> Result<&'a SuiteTask> {
    let known = || suite.tasks.iter().map(|task| task.name.as_str()).collect::<Vec<_>>().join(", ");
    let found = suite.tasks.iter().find(|task| task.name == cell.task);
    Ok(found.ok_or_else(|| Error::Flag {
        flag: "--cell",
        problem: format!("the suite has no task {}, expected one of {}", cell.task, known()),
    })?)
}

/// `NAME=FILE` or `FILE`, whose name is then the file's without its ending.
fn named(given: &[String]) -> Vec<WeightsFile> {
    let one = |text: &String| match text.split_once('=') {
        Some((name, file)) if !name.contains('/') => WeightsFile::new(name, file),
        _ => {
            let stem = Path::new(text).file_stem().unwrap_or_default();
            WeightsFile::new(stem.to_string_lossy(), text)
        }
    };
    given.iter().map(one).collect()
}

//! Export: a run's best checkpoint becomes a task plugin and the merged task graph.
//!
//! Nothing is written before the graph, run by the runtime's engine, has reproduced libtorch on scans of the data table and
//! on the golden cases.

mod card;
mod golden;
mod parity;

use std::path::{Path, PathBuf};

use firmware_config::{BackboneRef, ContentDtype, Label, Manifest, SCHEMA, Threshold};
use runtime::backbone::Naming;
use runtime::engine::Engine;
use runtime::plugin::{Plugin, build_graph, content_sha256};
use runtime::tensor::sha256;
use serde::{Deserialize, Serialize};
use tch::Device;

pub use parity::Parity;

use crate::Error;
use crate::data::Table;
use crate::evaluate::Predictions;
use crate::fit::write_json;
use crate::metrics::choose;
use crate::model::Pooling;
use crate::peft;
use crate::run::{Run, file};

/// File in the run folder with [`Exported`] as JSON.
pub const EXPORT: &str = "export.json";

/// What to export, and where to.
#[derive(Debug, Clone)]
pub struct Options {
    /// Run folder.
    pub run: PathBuf,
    /// Folder for plugin and graph.
    pub out: PathBuf,
    /// Backbone file, if it is not any more where the run was fitted.
    pub backbone: Option<PathBuf>,
    /// Data table, if it is not any more where the run was fitted.
    pub data: Option<PathBuf>,
    /// Folder for the factors as a PEFT adapter, if they are wanted so, and the naming of its modules.
    pub peft: Option<(PathBuf, Option<String>)>,
    /// Whether factors, query and head are rounded to half precision, and the plugin is half as large.
    pub half: bool,
    /// Rows of the data table, by id, whose scans become golden cases too.
    pub golden: Vec<String>,
    /// How far a device's logits may be off from a golden case's.
    pub golden_tolerance: f32,
    /// Whether patients' scans may go into the plugin.
    pub allow_patient_golden: bool,
    /// Where libtorch computes.
    pub device: Device,
    /// Threads of libtorch and of the engine.
    pub threads: usize,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exported {
    /// The plugin file.
    pub plugin: PathBuf,
    /// Its size.
    pub plugin_bytes: usize,
    /// Its SHA-256.
    pub plugin_sha256: String,
    /// The task graph.
    pub graph: PathBuf,
    /// Its size.
    pub graph_bytes: usize,
    /// Its SHA-256.
    pub graph_sha256: String,
    /// How far the graph is from libtorch.
    pub parity: Parity,
}

/// Exports a run.
pub fn export(options: &Options) -> Result<Exported, Error> {
    tch::set_num_threads(options.threads.max(1) as i32);
    let mut run = Run::open(&options.run)?;
    if options.half {
        // Before anything is made of them, so that libtorch, graph and plugin have the same numbers.
        run.best.round_to_f16();
    }
    let (settings, task) = (run.settings(), &run.settings().task);
    check_golden(options, !task.views.is_empty())?;
    if task.train.pooling != Pooling::Query {
        let problem = format!(
            "it was fitted with train.pooling = \"{}\", but plugin and device pool by a query; fit again with \"query\" to export",
            task.train.pooling.name()
        );
        return Err(Error::Run { path: options.run.clone(), problem });
    }
    let backbone = run.backbone(options.backbone.as_deref())?;
    let network = run.network(&backbone, options.device)?;
    let content = run.best.content();
    let lora = task.lora_spec();

    let mut manifest = Manifest {
        schema: SCHEMA.into(),
        task: firmware_config::Task { name: task.name.clone(), version: task.version.clone() },
        labels: labels(&run)?,
        activation: task.activation(),
        temperature: run.temperature()?,
        backbone: BackboneRef {
            name: settings.backbone.name.clone(),
            sha256: settings.backbone.sha256.clone(),
            blocks: task.blocks,
            licence: settings.backbone.licence.clone(),
        },
        recipe: task.recipe.clone(),
        views: task.views.clone(),
        missing_views: task.missing_views,
        streamable: task.views.is_empty() && task.recipe.streamable(),
        accepts: task.accepts.clone(),
        heatmap: backbone.arch.heatmap().into(),
        parameters: network.parameters.count(),
        content_sha256: String::new(),
        content_dtype: if options.half { ContentDtype::F16 } else { ContentDtype::F32 },
        lora,
        graph_sha256: String::new(),
        golden: Vec::new(),
        build: concat!("scanside-train ", env!("CARGO_PKG_VERSION")).into(),
    };
    manifest.content_sha256 = content_sha256(&content, &manifest);
    let (arch, names) = (backbone.arch.clone(), backbone.naming);
    let graph = build_graph(backbone, &manifest, &content)?;
    manifest.graph_sha256 = sha256(&graph);
    let engine = Engine::load(&graph, options.threads.max(1)).map_err(runtime::Error::from)?;

    let data = options.data.as_deref().unwrap_or(&settings.data.path);
    let mut table = Table::read(data, task, true)?;
    table.keep_masks(|_| false);
    let mut parity = Parity::default();
    parity::on_scans(&mut parity, &table, task, &network, &engine)?;
    let mut golden = golden::cases(&mut parity, &table, &options.golden, task, &network, &engine)?;
    for golden in &mut golden {
        golden.case.tolerance.logits = options.golden_tolerance;
    }
    parity.enforce()?;
    manifest.golden = golden.iter().map(|g| g.case.clone()).collect();

    if let Some((folder, naming)) = &options.peft {
        if !task.views.is_empty() {
            let problem =
                "an adapter holds the factors of one view, but the task has several; leave --peft out".into();
            return Err(Error::Adapter { path: folder.clone(), problem });
        }
        let of_the_file = match names {
            Naming::Original => "original",
            Naming::Timm => "timm",
            Naming::HuggingFace | Naming::Onnx => "hugging-face",
        };
        let naming = naming.as_deref().unwrap_or(of_the_file);
        peft::write(folder, &arch, &manifest.lora, &content, naming)?;
    }
    let plugin = Plugin {
        card: card::markdown(&run, &manifest, &parity)?,
        golden: golden.into_iter().map(|g| (g.case.name, g.voxels)).collect(),
        content,
        manifest,
    };
    write(&plugin, &graph, parity, options)
}

/// Whether the scans that are asked for may become golden cases.
fn check_golden(options: &Options, has_views: bool) -> Result<(), Error> {
    if options.golden.is_empty() {
        return Ok(());
    }
    let refused = |problem: &str| Err(Error::Flag { flag: "--golden", problem: problem.into() });
    if !options.allow_patient_golden {
        return refused(
            "the scans would go to whoever gets the plugin; say --allow-patient-golden where their patients' data may be passed on",
        );
    }
    if has_views {
        return refused("a golden case holds one volume, and the task has several views; leave --golden out");
    }
    Ok(())
}

/// Writes plugin and graph, and reads the plugin back; leaves neither where one fails.
fn write(plugin: &Plugin, graph: &[u8], parity: Parity, options: &Options) -> Result<Exported, Error> {
    std::fs::create_dir_all(&options.out).map_err(Error::io(&options.out))?;
    let task = &plugin.manifest.task;
    let path = |extension: &str| options.out.join(format!("{}-{}.{extension}", task.name, task.version));
    let (plugin_path, graph_path) = (path("plugin"), path("onnx"));
    let written = || -> Result<Exported, Error> {
        runtime::files::write_atomically(&graph_path, graph).map_err(Error::io(&graph_path))?;
        plugin.write(&plugin_path).map_err(runtime::Error::from)?;
        let (back, plugin_sha256) = Plugin::read(&plugin_path).map_err(runtime::Error::from)?;
        back.check_graph(&sha256(graph)).map_err(runtime::Error::from)?;
        let plugin_bytes = std::fs::metadata(&plugin_path).map_err(Error::io(&plugin_path))?.len() as usize;
        Ok(Exported {
            plugin: plugin_path.clone(),
            plugin_bytes,
            plugin_sha256,
            graph: graph_path.clone(),
            graph_bytes: graph.len(),
            graph_sha256: plugin.manifest.graph_sha256.clone(),
            parity,
        })
    };
    let exported = written().inspect_err(|_| {
        for path in [&graph_path, &plugin_path] {
            // What is not there need not be removed.
            let _ = std::fs::remove_file(path);
        }
    })?;
    write_json(&options.run.join(EXPORT), &exported)?;
    Ok(exported)
}

/// The labels with their operating points, chosen by the task's rule on the validation volumes, where they have both classes.
fn labels(run: &Run) -> Result<Vec<Label>, Error> {
    let (names, rule) = (&run.settings().task.labels, run.settings().task.threshold);
    let Some(predictions) = predictions(run)? else {
        tracing::warn!("the fit in {} has not finished, so no threshold is chosen", run.folder.display());
        return Ok(names.iter().map(|name| Label { name: name.clone(), threshold: None }).collect());
    };
    let label = |(index, name): (usize, &String)| {
        let (probabilities, truth) = predictions.of(index, "val");
        let threshold = choose(rule, &probabilities, &truth).map(|point| Threshold {
            probability: short(point.threshold),
            rule: format!("{rule} on validation"),
        });
        Label { name: name.clone(), threshold }
    };
    Ok(names.iter().enumerate().map(label).collect())
}

/// Seven significant digits, which every JSON reader gives back as the same number.
fn short(probability: f64) -> f64 {
    format!("{probability:.6e}").parse().unwrap_or(probability)
}

/// The best checkpoint's predictions on validation and test volumes, which a finished fit has left.
fn predictions(run: &Run) -> Result<Option<Predictions>, Error> {
    let path: &Path = &run.folder.join(file::PREDICTIONS);
    if !path.exists() {
        return Ok(None);
    }
    let unusable = |problem: String| Error::Run { path: path.into(), problem };
    let predictions = Predictions::read(path).map_err(|e| unusable(e.to_string()))?;
    if predictions.labels == run.settings().task.labels {
        Ok(Some(predictions))
    } else {
        Err(unusable(format!(
            "its labels are {:?}, the task's {:?}",
            predictions.labels,
            run.settings().task.labels
        )))
    }
}

//! `scanside plugin`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use firmware_config::{Label, Manifest, Task};
use runtime::engine::default_threads;
use runtime::plugin::Plugin;
use runtime::slots::{Installed, Slots};
use serde::Serialize;

use super::{Fault, config, say};

#[derive(Subcommand)]
pub enum PluginCommand {
    /// Check a plugin file and tell what it says of itself.
    Show {
        /// The task plugin.
        file: PathBuf,
    },
    /// Check a plugin file and make it its task's candidate on this device.
    Install {
        /// The task plugin.
        file: PathBuf,
        #[command(flatten)]
        device: DeviceArgs,
    },
    /// Run a candidate's golden cases on this machine and, if they are reproduced, make it the task's active plugin. A running
    /// service takes it over by itself.
    Activate {
        /// The task's name.
        task: String,
        #[command(flatten)]
        device: DeviceArgs,
    },
    /// List the plugins of this device.
    List {
        #[command(flatten)]
        device: DeviceArgs,
        /// JSON instead of text.
        #[arg(long)]
        json: bool,
    },
}

/// Which device.
#[derive(Args)]
pub struct DeviceArgs {
    /// The service's configuration.
    #[arg(long, value_name = "device.toml")]
    config: PathBuf,
}

impl PluginCommand {
    pub fn run(self) -> Result<(), Fault> {
        match self {
            Self::Show { file } => {
                let (plugin, sha256) = Plugin::read(&file)?;
                say::table(&describe(&plugin.manifest, sha256))
            }
            Self::Install { file, device } => {
                let device = config::load(&device.config)?;
                let installed = Slots::new(&device.data_dir).install(&file)?;
                let Task { name, version } = &installed.task;
                say::line(&format!(
                    "{name} {version} is the candidate of its task; `scanside plugin activate {name}` makes it run"
                ))
            }
            Self::Activate { task, device } => {
                let device = config::load(&device.config)?;
                let threads = device.threads.map_or_else(default_threads, |n| n as usize);
                let slots = Slots::new(&device.data_dir);
                let (active, report) = slots.activate(&task, &device.backbone, threads)?;
                let Task { name, version } = &active.task;
                say::line(&format!(
                    "{name} {version} is active: {} golden cases reproduced, a logit is off by {:.1e} at most",
                    report.cases, report.logits
                ))
            }
            Self::List { device, json } => list(&Slots::new(&config::load(&device.config)?.data_dir), json),
        }
    }
}

fn list(slots: &Slots, json: bool) -> Result<(), Fault> {
    for slot in slots.list()? {
        let both = [("active", &slot.active), ("candidate", &slot.candidate)];
        for (place, found) in both.into_iter().filter_map(|(place, found)| Some((place, found.as_ref()?))) {
            let (version, sha256, problem) = match found {
                Ok(Installed { task, sha256, .. }) => (Some(&task.version), Some(sha256), None),
                Err(error) => (None, None, Some(error.to_string())),
            };
            let name = &slot.name;
            say::line(&if json {
                serde_json::json!({
                    "task": name, "slot": place, "version": version, "sha256": sha256, "problem": problem,
                })
                .to_string()
            } else {
                let what = problem.or_else(|| Some(format!("{}  {}", version?, sha256?))).unwrap_or_default();
                format!("{name}  {place:<9}  {what}")
            })?;
        }
    }
    Ok(())
}

fn describe(manifest: &Manifest, sha256: String) -> Vec<(&'static str, String)> {
    let Manifest { task, backbone, lora, .. } = manifest;
    let blocks = backbone.blocks.map_or(String::new(), |n| format!(", its first {n} blocks"));
    vec![
        ("task", format!("{} {}", task.name, task.version)),
        ("labels", manifest.labels.iter().map(label).collect::<Vec<_>>().join("; ")),
        ("activation", format!("{}, temperature {}", json(&manifest.activation), manifest.temperature)),
        ("backbone", format!("{}{blocks} ({})", backbone.name, backbone.licence)),
        ("LoRA", format!("rank {}, alpha {}, {} attention", lora.rank, lora.alpha, json(&lora.attention))),
        ("parameters", manifest.parameters.to_string()),
        ("recipe", json(&manifest.recipe)),
        ("streamable", manifest.streamable.to_string()),
        ("accepts", manifest.accepts.as_ref().map_or("not stated".into(), json)),
        ("heat map", manifest.heatmap.clone()),
        ("golden cases", manifest.golden.len().to_string()),
        ("written by", manifest.build.clone()),
        ("backbone SHA-256", backbone.sha256.clone()),
        ("content SHA-256", manifest.content_sha256.clone()),
        ("graph SHA-256", manifest.graph_sha256.clone()),
        ("plugin SHA-256", sha256),
    ]
}

fn label(label: &Label) -> String {
    match &label.threshold {
        Some(t) => format!("{} (positive from {}, {})", label.name, t.probability, t.rule),
        None => format!("{} (no threshold)", label.name),
    }
}

/// As in the manifest; a mere name without its quotes.
fn json(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).unwrap_or_default();
    text.trim_matches('"').to_owned()
}

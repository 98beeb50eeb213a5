//! `scanside plugin`.

use std::path::PathBuf;

use clap::Subcommand;
use firmware_config::{Label, Manifest};
use runtime::plugin::Plugin;
use serde::Serialize;

use super::{Fault, say};

#[derive(Subcommand)]
pub enum PluginCommand {
    /// Check a plugin file and tell what it says of itself.
    Show {
        /// The task plugin.
        file: PathBuf,
    },
}

impl PluginCommand {
    pub fn run(self) -> Result<(), Fault> {
        let Self::Show { file } = self;
        let (plugin, sha256) = Plugin::read(&file)?;
        say::table(&describe(&plugin.manifest, sha256))
    }
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

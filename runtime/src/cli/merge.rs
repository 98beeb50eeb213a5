//! `scanside merge`.

use std::path::PathBuf;

use clap::Args;
use runtime::backbone::Backbone;
use runtime::engine::onnx;
use runtime::files::write_atomically;
use runtime::plugin::Plugin;

use super::{Fault, outputs, say};

/// Build a task graph from a plugin and its backbone; the bytes equal the trainer's.
#[derive(Args)]
pub struct Merge {
    /// The task plugin.
    #[arg(long, value_name = "FILE")]
    plugin: PathBuf,
    /// The backbone that it was fitted on.
    #[arg(long, value_name = "FILE")]
    backbone: PathBuf,
    /// The task graph to be written.
    #[arg(long, value_name = "TASK.onnx")]
    out: PathBuf,
}

impl Merge {
    pub fn run(self) -> Result<(), Fault> {
        outputs::check("--out", &self.out, &[".onnx"])?;
        let (plugin, _) = Plugin::read(&self.plugin)?;
        let graph = plugin.graph(Backbone::open(&self.backbone)?)?;
        write_atomically(&self.out, &onnx::encode(&graph))
            .map_err(|source| Fault::write(&self.out, source))?;
        // As `sha256sum -c` reads it.
        say::line(&format!("{}  {}", plugin.manifest.graph_sha256, self.out.display()))
    }
}

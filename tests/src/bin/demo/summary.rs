//! The demo's figures, as `summary.json` and as a table.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

/// The demo's figures.
#[derive(Serialize)]
pub struct Summary {
    /// Area under the ROC curve on the test volumes.
    auroc: f64,
    /// Its 95 % confidence interval.
    auroc_ci: [f64; 2],
    /// The same for a linear probe on the frozen backbone.
    probe_auroc: f64,
    /// Largest difference of a logit between libtorch and the exported graph in tract.
    parity_max_abs: f64,
    plugin_bytes: u64,
    graph_bytes: u64,
    /// Wall time of the demo.
    seconds: f64,
    /// Peak memory of `scanside infer`.
    peak_mb: f64,
}

impl Summary {
    /// Out of a run folder's `summary.json` and `export.json`.
    pub fn gather(run: &Path, graph: &Path, plugin: &Path, seconds: f64, peak_mb: f64) -> Result<Self> {
        let json = |name: &str| -> Result<Value> {
            let path = run.join(name);
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            serde_json::from_str(&text).with_context(|| path.display().to_string())
        };
        let (fitted, exported) = (json("summary.json")?, json("export.json")?);
        let label =
            fitted["labels"].as_object().and_then(|l| l.values().next()).context("the run has no label")?;
        let number =
            |value: &Value, what: &str| value.as_f64().with_context(|| format!("the run has no {what}"));
        let auroc = &label["test_auroc"];
        Ok(Self {
            auroc: number(&auroc["value"], "test AUROC")?,
            auroc_ci: [number(&auroc["ci"][0], "interval")?, number(&auroc["ci"][1], "interval")?],
            probe_auroc: number(&fitted["probe_auroc"], "probe")?,
            parity_max_abs: number(&exported["parity"]["logits"], "parity")?,
            plugin_bytes: std::fs::metadata(plugin)?.len(),
            graph_bytes: std::fs::metadata(graph)?.len(),
            seconds,
            peak_mb,
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let [low, high] = self.auroc_ci;
        writeln!(f, "test AUROC              {:.3} (95 % CI {low:.3} to {high:.3})", self.auroc)?;
        writeln!(f, "frozen linear probe     {:.3}", self.probe_auroc)?;
        writeln!(f, "libtorch against tract  {:.1e} in a logit, at most", self.parity_max_abs)?;
        writeln!(
            f,
            "plugin, graph           {:.2} MB, {:.1} MB",
            mb(self.plugin_bytes),
            mb(self.graph_bytes)
        )?;
        writeln!(f, "whole demo              {:.0} s", self.seconds)?;
        write!(f, "peak memory of infer    {:.0} MB", self.peak_mb)
    }
}

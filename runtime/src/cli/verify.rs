//! `scanside verify`.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use runtime::engine::EngineInfo;
use runtime::infer::Context;
use runtime::result::TaskResult;
use runtime::volume::Volume;

use super::task::{ScanArgs, TaskArgs};
use super::{Fault, say};

/// Compute a result again from what it names, and compare.
///
/// Hashes must be equal, and logits to the bit where the same kernels computed them, in the same precision and mode, for the same
/// instruction set, as the result's engine block says; elsewhere they may differ by the tolerance. Exit code 1 if anything differs.
#[derive(Args)]
pub struct Verify {
    /// The result, as `scanside infer` printed it.
    result: PathBuf,
    #[command(flatten)]
    task: TaskArgs,
    #[command(flatten)]
    scan: ScanArgs,
    /// Largest difference of a logit that counts as none, where other kernels computed the result.
    #[arg(long, default_value_t = 1e-3)]
    tolerance: f32,
}

impl Verify {
    pub fn run(self) -> Result<(), Fault> {
        let claimed = read(&self.result)?;
        let engine = &claimed.provenance.engine;
        let task = self.task.load_in(engine.mode, engine.precision)?;
        let views: Vec<&str> = task.plugin.manifest.views.keys().map(String::as_str).collect();
        let volumes =
            if views.is_empty() { vec![Some(self.series(&claimed)?)] } else { self.study(&claimed, &views)? };
        let context = Context::given(claimed.device.clone(), SystemTime::now());
        let volumes: Vec<_> = volumes.iter().map(Option::as_ref).collect();
        let prepared = task.prepare_views(&volumes)?;
        let given: Vec<_> = prepared.iter().map(Option::as_ref).collect();
        let again = task.classify(&given, &context, &|| {})?.result;
        let differences = differences(&claimed, &again, self.tolerance);
        if differences.is_empty() {
            return say::line(&format!("{}: reproduced", claimed.result_id));
        }
        Err(Fault::Differs(format!("the result was not reproduced: {}", differences.join("; "))))
    }

    /// Of a study with several series, the one that the result is about; one that cannot be read is not it.
    fn series(&self, claimed: &TaskResult) -> Result<Volume, Fault> {
        let mut digests = Vec::new();
        let scans = self.scan.open()?;
        let all = scans.len();
        for scan in scans {
            match scan {
                Ok(volume) if volume.source.digest == claimed.input.digest => return Ok(volume),
                Ok(volume) => digests.push(volume.source.digest),
                Err(error) if all > 1 => say::message(&format!("scanside: {error}")),
                Err(error) => return Err(error.into()),
            }
        }
        let found = if digests.is_empty() {
            "no series of the input can be read".to_owned()
        } else {
            format!("the input has SHA-256 {}", digests.join(" and "))
        };
        let digest = &claimed.input.digest;
        Err(Fault::Differs(format!("{found}, but the result was computed from {digest}")))
    }

    /// The series of each view that the result is about.
    fn study(&self, claimed: &TaskResult, views: &[&str]) -> Result<Vec<Option<Volume>>, Fault> {
        let volumes = self.scan.study(views)?;
        for (view, volume) in views.iter().zip(&volumes) {
            let found = volume.as_ref().map_or("no scan", |volume| &volume.source.digest);
            let expected = claimed.input.views.get(*view).map_or("no scan", |input| &input.digest);
            if found != expected {
                return Err(Fault::Differs(format!(
                    "the view {view} is given {found}, but the result was computed from {expected}"
                )));
            }
        }
        Ok(volumes)
    }
}

fn read(path: &Path) -> Result<TaskResult, Fault> {
    let bytes =
        std::fs::read(path).map_err(|source| Fault::Io { what: "read", path: path.into(), source })?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Fault::File { path: path.into(), problem: format!("is no single result JSON ({e})") })
}

fn differences(claimed: &TaskResult, again: &TaskResult, tolerance: f32) -> Vec<String> {
    let (p, q) = (&claimed.provenance, &again.provenance);
    let texts = [
        ("provenance digest", &p.digest, &p.compute_digest()),
        ("backbone SHA-256", &p.backbone_sha256, &q.backbone_sha256),
        ("plugin SHA-256", &p.plugin_sha256, &q.plugin_sha256),
        ("graph SHA-256", &p.graph_sha256, &q.graph_sha256),
        ("recipe SHA-256", &p.recipe_sha256, &q.recipe_sha256),
        ("tensor SHA-256", &p.tensor_sha256, &q.tensor_sha256),
    ];
    // The number of threads does not change the bits.
    let same = EngineInfo { threads: q.engine.threads, ..p.engine.clone() } == q.engine;
    let tolerance = if same { 0.0 } else { tolerance };
    let mut out: Vec<String> = texts
        .iter()
        .filter(|(_, a, b)| a != b)
        .map(|(what, a, b)| format!("{what} is {b}, the result says {a}"))
        .collect();
    let names = |r: &TaskResult| r.labels.iter().map(|l| l.name.clone()).collect::<Vec<_>>();
    if names(claimed) != names(again) {
        out.push(format!("labels are {:?}, the result says {:?}", names(again), names(claimed)));
        return out;
    }
    for (a, b) in claimed.labels.iter().zip(&again.labels) {
        let difference = (a.logit - b.logit).abs();
        if difference.is_nan() || difference > tolerance {
            out.push(format!("the logit of {} is {}, the result says {}", a.name, b.logit, a.logit));
        }
        if a.positive != b.positive {
            out.push(format!("{} is positive: {:?}, the result says {:?}", a.name, b.positive, a.positive));
        }
    }
    out
}

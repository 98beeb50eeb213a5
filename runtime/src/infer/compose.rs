//! From what the engine has found to the result: labels, key slices, provenance, warnings.

use firmware_config::{Manifest, Observed};

use super::{Context, LoadedTask};
use crate::engine::Output;
use crate::recipe::Prepared;
use crate::result::{
    INTENDED_USE, Input, KeySlice, Kind, LabelResult, Provenance, SCHEMA, TaskResult, Trust, result_id,
    rfc3339,
};
use crate::tensor::sha256;
use crate::volume::{Source, SourceKind};

/// The program and its version.
pub const BUILD: &str = concat!("scanside ", env!("CARGO_PKG_VERSION"));

/// How many slices a result names.
pub const KEY_SLICES: usize = 5;

/// A scan as results name it; its voxels need never have been in one place.
#[derive(Debug)]
pub struct Scan<'a> {
    /// Where it comes from.
    pub source: &'a Source,
    /// What a plugin's `accepts` is compared with; not while slices may still come.
    pub observed: Option<Observed>,
    /// What a reader should know of it, a sentence each.
    pub warnings: &'a [String],
    /// The slices in the order in which the network was given them.
    pub slices: Vec<SliceName>,
}

/// What a slice is called in a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceName {
    /// See [`KeySlice::index`].
    pub index: usize,
    /// See [`KeySlice::sop_instance_uid`].
    pub sop_instance_uid: Option<String>,
    /// See [`KeySlice::frame_number`].
    pub frame_number: Option<u32>,
}

impl<'a> Scan<'a> {
    /// Of a volume.
    pub fn of(prepared: &'a Prepared<'_>) -> Self {
        let volume = prepared.volume();
        let name = |s| SliceName {
            index: prepared.slice_index(s),
            sop_instance_uid: prepared.instance(s).map(str::to_owned),
            frame_number: prepared.frame_number(s),
        };
        Self {
            source: &volume.source,
            observed: Some(volume.observed()),
            warnings: &volume.warnings,
            slices: (0..prepared.slices()).map(name).collect(),
        }
    }
}

impl LoadedTask {
    pub(super) fn result(
        &self,
        scan: &Scan<'_>,
        context: &Context,
        output: &Output,
        tensor_sha256: String,
    ) -> TaskResult {
        let mut result = self.blank(&input(scan.source, context), context, tensor_sha256);
        result.labels = labels(&self.plugin.manifest, &output.logits);
        result.key_slices = key_slices(scan, &output.slice_weights);
        result.warnings = warnings(&self.plugin.manifest, scan);
        result
    }

    /// The result that says why a DICOM series was not classified. `input` is what is known of it.
    pub fn refusal(&self, input: &Input, reason: String, context: &Context) -> TaskResult {
        let context = Context { kind: Kind::Refused, ..context.clone() };
        let mut result = self.blank(input, &context, String::new());
        result.warnings = vec![reason];
        result
    }

    /// A result that says nothing yet.
    fn blank(&self, input: &Input, context: &Context, tensor_sha256: String) -> TaskResult {
        let Context { device, created, kind, revision, replaces, .. } = context.clone();
        let task = &self.plugin.manifest.task;
        TaskResult {
            schema: SCHEMA.into(),
            result_id: result_id(&device, &task.name, &self.plugin_sha256, &input.digest, kind, revision),
            kind,
            is_final: kind == Kind::Final,
            revision,
            replaces,
            created: rfc3339(created),
            intended_use: INTENDED_USE.into(),
            trust: Trust::Unsigned,
            device,
            task: task.clone(),
            input: input.clone(),
            labels: Vec::new(),
            key_slices: Vec::new(),
            timings_ms: std::collections::BTreeMap::new(),
            provenance: self.provenance(tensor_sha256),
            warnings: Vec::new(),
        }
    }

    fn provenance(&self, tensor_sha256: String) -> Provenance {
        let manifest = &self.plugin.manifest;
        let recipe = serde_json::to_vec(&manifest.recipe).expect("plain data serialises");
        let mut provenance = Provenance {
            backbone_sha256: manifest.backbone.sha256.clone(),
            plugin_sha256: self.plugin_sha256.clone(),
            graph_sha256: self.graph_sha256.clone(),
            recipe_sha256: sha256(&recipe),
            tensor_sha256,
            engine: self.engine.info(),
            build: BUILD.into(),
            digest: String::new(),
        };
        provenance.digest = provenance.compute_digest();
        provenance
    }
}

fn input(source: &Source, context: &Context) -> Input {
    Input {
        kind: source.kind,
        study_uid: source.study_uid.clone(),
        series_uid: source.series_uid.clone(),
        instances: source.instance_count(),
        digest: source.digest.clone(),
        completion: context.completion,
    }
}

impl Input {
    /// A DICOM series of which nothing is known but its instances; `digest` by [`crate::volume::series_digest`].
    pub fn series(
        study_uid: Option<String>,
        series_uid: String,
        instances: usize,
        digest: String,
        context: &Context,
    ) -> Self {
        Self {
            kind: SourceKind::Dicom,
            study_uid,
            series_uid: Some(series_uid),
            instances,
            digest,
            completion: context.completion,
        }
    }
}

fn labels(manifest: &Manifest, logits: &[f32]) -> Vec<LabelResult> {
    let probabilities = manifest.activation.probabilities(logits, manifest.temperature);
    let all = manifest.labels.iter().zip(logits).zip(probabilities);
    all.map(|((label, &logit), probability)| {
        let threshold = label.threshold.as_ref().map(|t| t.probability);
        LabelResult {
            name: label.name.clone(),
            logit,
            probability,
            threshold,
            positive: threshold.map(|t| probability >= t),
        }
    })
    .collect()
}

/// The heaviest slices; of equally heavy ones the first.
fn key_slices(scan: &Scan<'_>, weights: &[f32]) -> Vec<KeySlice> {
    let mut order: Vec<(&SliceName, f32)> = scan.slices.iter().zip(weights.iter().copied()).collect();
    order.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let name = |(name, weight): (&SliceName, f32)| {
        let SliceName { index, sop_instance_uid, frame_number } = name.clone();
        KeySlice { index, sop_instance_uid, frame_number, weight }
    };
    order.into_iter().take(KEY_SLICES).map(name).collect()
}

fn warnings(manifest: &Manifest, scan: &Scan<'_>) -> Vec<String> {
    let mut out = scan.warnings.to_vec();
    match (&manifest.accepts, &scan.observed) {
        (Some(accepts), Some(observed)) => {
            let refusals = accepts.refusals(observed).into_iter();
            out.extend(refusals.map(|why| format!("the plugin's manifest does not accept this scan: {why}")));
        }
        (Some(_), None) => {}
        (None, _) => out.push("the plugin's manifest does not say which scans it accepts".into()),
    }
    out
}

//! From what the engine has found to the result: labels, key slices, provenance, warnings.

use std::collections::BTreeMap;

use firmware_config::{Manifest, Observed, TargetRef};

use super::{Context, LoadedTask};
use crate::engine::{EngineInfo, Output};
use crate::recipe::Prepared;
use crate::result::{
    INTENDED_USE, Input, KeySlice, Kind, LabelResult, Provenance, SCHEMA, SignedTarget, TaskResult, Trust,
    ViewInput, result_id, rfc3339,
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
        scans: &[Option<Scan<'_>>],
        context: &Context,
        output: &Output,
        tensor_sha256: String,
    ) -> TaskResult {
        let manifest = &self.plugin.manifest;
        let given: Vec<_> = manifest
            .inputs()
            .into_iter()
            .zip(scans)
            .enumerate()
            .filter_map(|(view, ((name, _), scan))| Some(Given { view, name, scan: scan.as_ref()? }))
            .collect();
        let mut result = self.plugin_ref().blank(&input(&given, context), context, tensor_sha256);
        result.labels = labels(manifest, &output.logits);
        let weights = manifest.views.keys().cloned().zip(output.view_weights.iter().copied());
        result.view_weights = weights.collect();
        result.key_slices = key_slices(&given, output);
        result.warnings = warnings(manifest, &given);
        result
    }

    /// See [`PluginRef::refusal`].
    pub fn refusal(&self, input: &Input, reason: String, context: &Context) -> TaskResult {
        self.plugin_ref().refusal(input, reason, context)
    }

    fn plugin_ref(&self) -> PluginRef<'_> {
        PluginRef {
            manifest: &self.plugin.manifest,
            plugin_sha256: &self.plugin_sha256,
            target: self.target.as_ref(),
            engine: self.engine.info(),
        }
    }
}

/// The plugin that a result is of, whether or not it can be run.
#[derive(Debug)]
pub struct PluginRef<'a> {
    /// What it says of itself.
    pub manifest: &'a Manifest,
    /// SHA-256 of its file.
    pub plugin_sha256: &'a str,
    /// The signed target that it came from.
    pub target: Option<&'a TargetRef>,
    /// How it is or would be run.
    pub engine: EngineInfo,
}

impl PluginRef<'_> {
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
        let task = &self.manifest.task;
        TaskResult {
            schema: SCHEMA.into(),
            result_id: result_id(&device, &task.name, self.plugin_sha256, &input.digest, kind, revision),
            kind,
            is_final: kind == Kind::Final,
            revision,
            replaces,
            created: rfc3339(created),
            intended_use: INTENDED_USE.into(),
            trust: if self.target.is_some() { Trust::Signed } else { Trust::Unsigned },
            device,
            task: task.clone(),
            input: input.clone(),
            labels: Vec::new(),
            view_weights: BTreeMap::new(),
            key_slices: Vec::new(),
            timings_ms: BTreeMap::new(),
            provenance: self.provenance(tensor_sha256),
            warnings: Vec::new(),
        }
    }

    fn provenance(&self, tensor_sha256: String) -> Provenance {
        let manifest = self.manifest;
        let recipe = match &manifest.inputs()[..] {
            [(_, recipe)] => serde_json::to_vec(recipe),
            views => serde_json::to_vec(&views.iter().copied().collect::<BTreeMap<_, _>>()),
        };
        let recipe = recipe.expect("plain data serialises");
        let mut provenance = Provenance {
            backbone_sha256: manifest.backbone.sha256.clone(),
            plugin_sha256: self.plugin_sha256.to_owned(),
            graph_sha256: manifest.graph_sha256.clone(),
            recipe_sha256: sha256(&recipe),
            tensor_sha256,
            engine: self.engine.clone(),
            build: BUILD.into(),
            target: self.target.map(|TargetRef { name, sha256, .. }| SignedTarget {
                name: name.clone(),
                sha256: sha256.clone(),
            }),
            digest: String::new(),
        };
        provenance.digest = provenance.compute_digest();
        provenance
    }
}

/// A view's scan.
struct Given<'a, 's> {
    /// The view's number.
    view: usize,
    /// None where the task has one view.
    name: Option<&'a str>,
    scan: &'a Scan<'s>,
}

/// What the first of `all` says, if all say the same.
fn common<T: PartialEq>(mut all: impl Iterator<Item = Option<T>>) -> Option<T> {
    let first = all.next()??;
    all.all(|other| other.as_ref() == Some(&first)).then_some(first)
}

fn input(given: &[Given<'_, '_>], context: &Context) -> Input {
    let sources = || given.iter().map(|given| given.scan.source);
    let of = |given: &Given<'_, '_>| {
        let Source { series_uid, digest, .. } = given.scan.source.clone();
        let instances = given.scan.source.instance_count();
        Some((given.name?.to_owned(), ViewInput { series_uid, instances, digest }))
    };
    let views: BTreeMap<String, ViewInput> = given.iter().filter_map(of).collect();
    let digest = match given {
        [Given { name: None, scan, .. }] => scan.source.digest.clone(),
        _ => views_digest(&views),
    };
    Input {
        kind: sources().next().map_or(SourceKind::Nifti, |source| source.kind),
        study_uid: common(sources().map(|source| source.study_uid.clone())),
        series_uid: if views.is_empty() { common(sources().map(|s| s.series_uid.clone())) } else { None },
        instances: sources().map(Source::instance_count).sum(),
        digest,
        completion: context.completion,
        views,
    }
}

/// The digest of a study's input: SHA-256 over each view's name and digest, in the order of the names, as text with a newline
/// after each.
pub fn views_digest(views: &BTreeMap<String, ViewInput>) -> String {
    let text: String = views.iter().flat_map(|(name, view)| [name, "\n", &view.digest, "\n"]).collect();
    sha256(text.as_bytes())
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
            views: BTreeMap::new(),
        }
    }
}

impl Input {
    /// The DICOM series of a task's views.
    pub fn study(study_uid: Option<String>, views: BTreeMap<String, ViewInput>, context: &Context) -> Self {
        Self {
            kind: SourceKind::Dicom,
            study_uid,
            series_uid: None,
            instances: views.values().map(|view| view.instances).sum(),
            digest: views_digest(&views),
            completion: context.completion,
            views,
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

/// The heaviest slices of all views; of equally heavy ones the first.
fn key_slices(given: &[Given<'_, '_>], output: &Output) -> Vec<KeySlice> {
    let slices = |given: &Given<'_, '_>| -> Vec<KeySlice> {
        let weights = &output.views[given.view].slice_weights;
        let of_view = output.view_weights[given.view];
        let key = |(name, weight): (&SliceName, &f32)| {
            let SliceName { index, sop_instance_uid, frame_number } = name.clone();
            let (view, weight) = (given.name.map(str::to_owned), weight * of_view);
            KeySlice { view, index, sop_instance_uid, frame_number, weight }
        };
        given.scan.slices.iter().zip(weights).map(key).collect()
    };
    let mut order: Vec<KeySlice> = given.iter().flat_map(slices).collect();
    order.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    order.truncate(KEY_SLICES);
    order
}

fn warnings(manifest: &Manifest, given: &[Given<'_, '_>]) -> Vec<String> {
    let mut out = Vec::new();
    for Given { name, scan, .. } in given {
        let mut say =
            |what: String| out.push(name.map_or(what.clone(), |name| format!("view {name}: {what}")));
        scan.warnings.iter().cloned().for_each(&mut say);
        if let (Some(accepts), Some(observed)) = (&manifest.accepts, &scan.observed) {
            let refusals = accepts.refusals(observed).into_iter();
            refusals
                .map(|why| format!("the plugin's manifest does not accept this scan: {why}"))
                .for_each(say);
        }
    }
    let studies = || given.iter().filter_map(|given| given.scan.source.study_uid.as_ref());
    if studies().any(|study| Some(study) != studies().next()) {
        out.push("the views come from different studies".into());
    }
    let there = |view: &&String| given.iter().any(|given| given.name == Some(view.as_str()));
    let missing: Vec<&str> = manifest.views.keys().filter(|view| !there(view)).map(String::as_str).collect();
    if !missing.is_empty() {
        out.push(format!("there was no scan for the view {}; the others were pooled", missing.join(", ")));
    }
    if manifest.accepts.is_none() {
        out.push("the plugin's manifest does not say which scans it accepts".into());
    }
    out
}

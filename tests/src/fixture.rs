//! A whole task in miniature: a random backbone, a plugin for it, their graph and a scan, in a folder of its own.
//!
//! Everything is made from fixed numbers, and small enough to run under emulation.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use firmware_config::device::Weights;
use firmware_config::{
    Activation, AttentionLora, BackboneRef, Label, LoraSpec, Manifest, MissingViews, SCHEMA, Task, Threshold,
    View,
};
use runtime::backbone::Backbone;
use runtime::infer::Loader;
use runtime::plugin::{Plugin, build_graph, content_sha256, expected_content};
use runtime::tensor::{Tensor, Tensors, safetensors_bytes, sha256};
use runtime::volume::{AxisCodes, Volume, write_nifti};
use tempfile::TempDir;

/// Width of the backbone: one head.
pub const DIM: usize = 64;
/// Blocks of the backbone.
pub const DEPTH: usize = 2;
/// Side of a patch.
pub const PATCH: usize = 14;

/// What loads tasks on this backbone, each with weights of its own, one thread each.
pub fn loader(backbone: &Path) -> Arc<Loader> {
    Arc::new(Loader::new(backbone, 1, Weights::Merged))
}

/// The files of a task.
pub struct Fixture {
    folder: TempDir,
    /// The backbone, safetensors in Hugging Face naming.
    pub backbone: PathBuf,
    /// The plugin.
    pub plugin: PathBuf,
    /// The task graph.
    pub graph: PathBuf,
    /// The scan, [`scan`] as `.nii.gz`.
    pub scan: PathBuf,
    /// What the plugin says of itself.
    pub manifest: Manifest,
}

impl Default for Fixture {
    fn default() -> Self {
        Self::new(|_| ())
    }
}

impl Fixture {
    /// A task whose manifest `edit` may change before the graph is built.
    ///
    /// # Panics
    /// Where the disk fails, or the edited manifest gives no graph.
    pub fn new(edit: impl FnOnce(&mut Manifest)) -> Self {
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        let backbone = folder.path().join("backbone.safetensors");
        fs::write(&backbone, random_backbone(1)).expect("a written backbone");
        Self::on(backbone, folder, edit)
    }

    /// As [`Self::new`], for a backbone that is there.
    ///
    /// # Panics
    /// As [`Self::new`], and where the backbone cannot be read.
    pub fn on(backbone: PathBuf, folder: TempDir, edit: impl FnOnce(&mut Manifest)) -> Self {
        let path = |name: &str| folder.path().join(name);
        let (plugin, graph, scan_path) = (path("lesion.plugin"), path("lesion.onnx"), path("scan.nii.gz"));
        let loaded = Backbone::open(&backbone).expect("a backbone as written");
        let mut task = random_task(&loaded);
        edit(&mut task.manifest);
        let views: Vec<&str> = task.manifest.views.keys().map(String::as_str).collect();
        let mut used = loaded.clone();
        if let Some(blocks) = task.manifest.backbone.blocks {
            used.truncate(blocks).expect("as many blocks as there are");
        }
        task.content = random_content(&used, &task.manifest.lora, &views);
        task.manifest.parameters = task.content.values().map(|t| t.data.len()).sum();
        seal(&mut task);
        let bytes = build_graph(loaded, &task.manifest, &task.content).expect("a graph");
        task.manifest.graph_sha256 = sha256(&bytes);
        fs::write(&graph, bytes).expect("a written graph");
        task.write(&plugin).expect("a written plugin");
        let volume = scan("RAS");
        write_nifti(&scan_path, volume.dims, &volume.voxels, &volume.geometry).expect("a written scan");
        Self { folder, backbone, plugin, graph, scan: scan_path, manifest: task.manifest }
    }

    /// A task that a service runs: its manifest says which scans it accepts, and it has a golden case. Its recipe needs
    /// only the slice itself.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn for_a_service(edit: impl FnOnce(&mut Manifest)) -> Self {
        let fixture = Self::new(|manifest| {
            manifest.recipe = serde_json::from_str(
                r#"{"plane":"acquisition","size":[28,42],"intensity":{"kind":"window","windows":[[0,1000]]}}"#,
            )
            .expect("a recipe");
            let accepts = r#"{"modality":["MR"],"min_slices":4}"#;
            manifest.accepts = Some(serde_json::from_str(accepts).expect("what is accepted"));
            edit(manifest);
        });
        crate::golden::with_golden(&fixture).write(&fixture.plugin).expect("a written plugin");
        fixture
    }

    /// The folder of the files, which goes with the fixture.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Where `cargo xtask assets` puts the packaged backbone.
pub fn packaged_backbone_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/assets/backbone/vit_s_focus.onnx")
}

/// The packaged backbone, real weights.
pub fn packaged_backbone() -> Backbone {
    Backbone::open(&packaged_backbone_file())
        .unwrap_or_else(|e| panic!("{e}; `cargo xtask assets` fetches it"))
}

/// [`random_task`] for slices of that size, and its graph.
pub fn task_of_size(backbone: Backbone, size: [usize; 2]) -> (Plugin, Vec<u8>) {
    let mut plugin = random_task(&backbone);
    let manifest = &mut plugin.manifest;
    manifest.recipe.size = size;
    manifest.content_sha256 = content_sha256(&plugin.content, manifest);
    let graph = build_graph(backbone, manifest, &plugin.content).expect("a task graph");
    manifest.graph_sha256 = sha256(&graph);
    (plugin, graph)
}

/// A plugin for `backbone` with random content; two labels, the first with a threshold. Its graph's hash is not known yet.
///
/// # Panics
/// Never: the recipe is valid.
pub fn random_task(backbone: &Backbone) -> Plugin {
    let lora = LoraSpec { rank: 2, alpha: 4.0, attention: AttentionLora::Fused };
    let content = random_content(backbone, &lora, &[]);
    let recipe = serde_json::from_str(
        r#"{"plane":"axial","size":[28,42],"intensity":{"kind":"percentile","low":0.5,"high":99.5}}"#,
    )
    .expect("a recipe");
    let label = |name: &str, threshold| Label { name: name.into(), threshold };
    let threshold = Threshold { probability: 0.5, rule: "youden on validation".into() };
    let manifest = Manifest {
        schema: SCHEMA.into(),
        task: Task { name: "lesion".into(), version: "1.0.0".into() },
        labels: vec![label("lesion", Some(threshold)), label("artefact", None)],
        activation: Activation::Sigmoid,
        temperature: 1.5,
        backbone: BackboneRef {
            name: backbone.name(),
            sha256: backbone.sha256.clone(),
            blocks: None,
            licence: backbone.licence().into(),
        },
        lora,
        recipe,
        views: BTreeMap::new(),
        missing_views: MissingViews::Refuse,
        streamable: false,
        accepts: None,
        heatmap: backbone.arch.heatmap().into(),
        parameters: content.values().map(|t| t.data.len()).sum(),
        content_sha256: String::new(),
        content_dtype: firmware_config::ContentDtype::F32,
        graph_sha256: "0".repeat(64),
        golden: Vec::new(),
        build: "tests".into(),
    };
    let mut plugin =
        Plugin { manifest, content, golden: Tensors::new(), card: "# lesion\n\nRandom numbers.\n".into() };
    seal(&mut plugin);
    plugin
}

/// As [`random_task`], with two views of another plane and size each; its content's digest is not known yet.
///
/// # Panics
/// Never: the recipes are valid.
pub fn two_views(backbone: &Backbone, missing: MissingViews) -> Plugin {
    let mut task = random_task(backbone);
    give_views(&mut task.manifest, missing);
    task.content = random_content(backbone, &task.manifest.lora, &["axial", "sagittal"]);
    task
}

/// Makes a task one of the views `axial`, by the task's own recipe, and `sagittal`.
///
/// # Panics
/// Never: the recipe is valid.
pub fn give_views(manifest: &mut Manifest, missing: MissingViews) {
    let recipe = serde_json::from_str(
        r#"{"plane":"sagittal","size":[42,28],"intensity":{"kind":"percentile","low":0,"high":100}}"#,
    )
    .expect("a recipe");
    let views = [("axial", View::default()), ("sagittal", View { recipe: Some(recipe) })];
    manifest.views = views.map(|(name, view)| (name.to_owned(), view)).into();
    manifest.missing_views = missing;
}

/// Random content of a plugin of two labels.
fn random_content(backbone: &Backbone, lora: &LoraSpec, views: &[&str]) -> Tensors {
    let mut random = Random(2);
    let all = expected_content(&backbone.arch, lora, 2, views).into_iter();
    all.map(|(name, shape)| {
        let scale = if name.contains("lora.") { 0.05 } else { 1.0 };
        let tensor = random.tensor(&shape, 0.0, scale);
        (name, tensor)
    })
    .collect()
}

/// Brings what the manifest derives from the rest up to date, the graph's hash apart.
fn seal(plugin: &mut Plugin) {
    let manifest = &mut plugin.manifest;
    manifest.streamable = manifest.is_streamable();
    manifest.content_sha256 = content_sha256(&plugin.content, manifest);
}

/// The bytes of a tiny DINOv2 in Hugging Face naming.
pub fn random_backbone(seed: u64) -> Vec<u8> {
    const HIDDEN: usize = 2 * DIM;
    let mut random = Random(seed);
    let mut out = Tensors::new();
    let mut put = |name: String, shape: &[usize], mean: f32, scale: f32| {
        let tensor = random.tensor(shape, mean, scale);
        out.insert(name, tensor);
    };
    put("embeddings.cls_token".into(), &[1, 1, DIM], 0.0, 1.0);
    put("embeddings.position_embeddings".into(), &[1, 17, DIM], 0.0, 0.5);
    put("embeddings.patch_embeddings.projection.weight".into(), &[DIM, 3, PATCH, PATCH], 0.0, 0.05);
    put("embeddings.patch_embeddings.projection.bias".into(), &[DIM], 0.0, 0.1);
    for n in 0..DEPTH {
        let block = format!("encoder.layer.{n}");
        for (part, outputs, inputs) in [
            ("attention.attention.query", DIM, DIM),
            ("attention.attention.key", DIM, DIM),
            ("attention.attention.value", DIM, DIM),
            ("attention.output.dense", DIM, DIM),
            ("mlp.fc1", HIDDEN, DIM),
            ("mlp.fc2", DIM, HIDDEN),
        ] {
            put(format!("{block}.{part}.weight"), &[outputs, inputs], 0.0, 0.3);
            put(format!("{block}.{part}.bias"), &[outputs], 0.0, 0.1);
        }
        for norm in ["norm1", "norm2"] {
            put(format!("{block}.{norm}.weight"), &[DIM], 1.0, 0.1);
            put(format!("{block}.{norm}.bias"), &[DIM], 0.0, 0.1);
        }
        for scale in ["layer_scale1.lambda1", "layer_scale2.lambda1"] {
            put(format!("{block}.{scale}"), &[DIM], 0.5, 0.1);
        }
    }
    put("layernorm.weight".into(), &[DIM], 1.0, 0.1);
    put("layernorm.bias".into(), &[DIM], 0.0, 0.1);
    safetensors_bytes(&out, None)
}

/// A scan of 20 × 24 × 9 voxels of 2 × 2 × 4 mm, stored as `codes` say, with integer values from 0 to 999, no two slices
/// alike.
///
/// # Panics
/// Where `codes` are none.
pub fn scan(codes: &str) -> Volume {
    let codes: AxisCodes = codes.parse().expect("axis codes");
    let dims = [20, 24, 9];
    let mut random = Random(3);
    let voxels = (0..dims.iter().product::<usize>()).map(|n| {
        let (i, j, k) = (n % 20, n / 20 % 24, n / 480);
        let round = (i as f32 - 9.5).powi(2) + (j as f32 - 11.5).powi(2) < 80.0 + 2.0 * k as f32;
        let noise = 50.0 * (1.0 + random.next());
        (if round { 400.0 + 40.0 * k as f32 + noise } else { noise }).floor()
    });
    Volume::from_parts(dims, voxels.collect(), codes.centred([2.0, 2.0, 4.0], dims))
}

/// SplitMix64, as numbers from -1 to 1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn tensor(&mut self, shape: &[usize], mean: f32, scale: f32) -> Tensor {
        let data = (0..shape.iter().product()).map(|_| mean + scale * self.next()).collect();
        Tensor::new(shape, data)
    }
}

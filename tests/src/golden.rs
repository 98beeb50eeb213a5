//! A plugin that a device would activate: the fixture's, with a golden case that the fixture's graph fulfils.

use std::path::PathBuf;

use firmware_config::{GoldenCase, Origin, Tolerance};
use runtime::backbone::Backbone;
use runtime::infer::{LoadedTask, golden_peak, golden_weights};
use runtime::plugin::{Plugin, build_graph, content_sha256};
use runtime::tensor::{Tensor, sha256};
use runtime::volume::{Geometry, Volume};

use crate::fixture::Fixture;

/// The fixture's plugin with a golden case, changed by `edit`, as `name` in the fixture's folder.
///
/// # Panics
/// Where the disk fails, or the edited plugin cannot be written.
pub fn plugin(fixture: &Fixture, name: &str, edit: impl FnOnce(&mut Plugin)) -> PathBuf {
    let mut plugin = with_golden(fixture);
    edit(&mut plugin);
    let path = fixture.folder().join(name);
    plugin.write(&path).expect("a written plugin");
    path
}

/// Another version of the fixture's plugin, changed by `edit` and built anew: its golden case is what it does here.
///
/// # Panics
/// Where the disk fails, or the edited plugin gives no graph.
pub fn version(fixture: &Fixture, version: &str, edit: impl FnOnce(&mut Plugin)) -> PathBuf {
    let mut plugin = with_golden(fixture);
    plugin.manifest.task.version = version.into();
    edit(&mut plugin);
    rebuild(fixture, &mut plugin);
    let path = fixture.folder().join(format!("lesion-{version}.plugin"));
    plugin.write(&path).expect("a written plugin");
    let task = LoadedTask::merge(&fixture.backbone, &path, 1).expect("a task");
    give_golden(&task, &mut plugin);
    plugin.write(&path).expect("a written plugin");
    path
}

/// Brings digests up to date after a plugin was changed.
///
/// # Panics
/// Where it gives no graph.
pub fn rebuild(fixture: &Fixture, plugin: &mut Plugin) {
    plugin.manifest.content_sha256 = content_sha256(&plugin.content, &plugin.manifest);
    let backbone = Backbone::open(&fixture.backbone).expect("the fixture's backbone");
    let graph = build_graph(backbone, &plugin.manifest, &plugin.content).expect("a graph");
    plugin.manifest.graph_sha256 = sha256(&graph);
}

/// The fixture's plugin with a golden case: what the plugin does here.
///
/// # Panics
/// Where the fixture's own files cannot be read.
pub fn with_golden(fixture: &Fixture) -> Plugin {
    let task = LoadedTask::open(&fixture.graph, &fixture.plugin, 1).expect("the fixture's task");
    let (mut plugin, _) = Plugin::read(&fixture.plugin).expect("the fixture's plugin");
    give_golden(&task, &mut plugin);
    plugin
}

/// Gives a plugin the golden case that `task` fulfils.
fn give_golden(task: &LoadedTask, plugin: &mut Plugin) {
    let (dims, spacing_mm) = ([12, 10, 4], [2.0, 3.0, 5.0]);
    let voxels: Vec<f32> = (0..480).map(|i| ((i * 37) % 101) as f32).collect();
    let steps = [[spacing_mm[0], 0.0, 0.0], [0.0, spacing_mm[1], 0.0], [0.0, 0.0, spacing_mm[2]]];
    let volume = Volume::from_parts(dims, voxels.clone(), Geometry::from_columns(steps, [0.0; 3]));
    let found = task.output(&volume).expect("an inference");
    let grids: Vec<_> = task.engine.views().iter().map(|view| view.grid).collect();
    let (slice_weights, heatmap_peak) = (golden_weights(&found), golden_peak(&found, &grids));
    plugin.golden.insert("wave".into(), Tensor::new([4, 10, 12], voxels));
    plugin.manifest.golden = vec![GoldenCase {
        name: "wave".into(),
        origin: Origin::Synthetic,
        spacing_mm,
        logits: found.logits,
        slice_weights,
        heatmap_peak,
        tolerance: Tolerance::default(),
    }];
}

//! A plugin that a device would activate: the fixture's, with a golden case that the fixture's graph fulfils.

use std::path::PathBuf;

use firmware_config::{GoldenCase, Tolerance};
use runtime::infer::{LoadedTask, golden_peak, golden_weights};
use runtime::plugin::Plugin;
use runtime::tensor::Tensor;
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

/// The fixture's plugin with a golden case: what the plugin does here.
///
/// # Panics
/// Where the fixture's own files cannot be read.
pub fn with_golden(fixture: &Fixture) -> Plugin {
    let task = LoadedTask::open(&fixture.graph, &fixture.plugin, 1).expect("the fixture's task");
    let (dims, spacing_mm) = ([12, 10, 4], [2.0, 3.0, 5.0]);
    let voxels: Vec<f32> = (0..480).map(|i| ((i * 37) % 101) as f32).collect();
    let steps = [[spacing_mm[0], 0.0, 0.0], [0.0, spacing_mm[1], 0.0], [0.0, 0.0, spacing_mm[2]]];
    let volume = Volume::from_parts(dims, voxels.clone(), Geometry::from_columns(steps, [0.0; 3]));
    let found = task.output(&volume).expect("an inference");
    let grids: Vec<_> = task.engine.views().iter().map(|view| view.grid).collect();
    let (slice_weights, heatmap_peak) = (golden_weights(&found), golden_peak(&found, &grids));
    let mut plugin = task.plugin;
    plugin.golden.insert("wave".into(), Tensor::new([4, 10, 12], voxels));
    plugin.manifest.golden = vec![GoldenCase {
        name: "wave".into(),
        spacing_mm,
        logits: found.logits,
        slice_weights,
        heatmap_peak,
        tolerance: Tolerance::default(),
    }];
    plugin
}

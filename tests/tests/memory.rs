//! What `scanside infer` holds at most, on the real backbone.
#![cfg(target_arch = "x86_64")]
#![allow(missing_docs, reason = "a test")]

use std::path::Path;
use std::process::{Command, Stdio};

use runtime::backbone::Backbone;
use runtime::plugin::{build_graph, content_sha256};
use runtime::tensor::sha256;
use runtime::volume::{Geometry, Volume, write_nifti};
use tests::fixture::random_task;
use tests::programs::program;

/// Runs to the end and returns the peak resident memory in bytes.
fn peak(command: &mut Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        // The kernel keeps the high-water mark, so the last look before the end counts.
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        if let Some(kb) = line.and_then(|kb| kb.trim().parse::<u64>().ok()) {
            peak = kb * 1024;
        }
        if let Some(code) = child.try_wait().unwrap() {
            assert!(code.success(), "{code}");
            return peak;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn peak_memory_is_under_thrice_the_graph_and_does_not_grow_with_slices() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/assets/backbone/vit_s_focus.onnx");
    let backbone = Backbone::open(&path).unwrap_or_else(|e| panic!("{e}; `cargo xtask assets` fetches it"));
    let folder = tempfile::tempdir().unwrap();
    let mut plugin = random_task(&backbone);
    let manifest = &mut plugin.manifest;
    manifest.recipe.size = [224, 224];
    manifest.content_sha256 = content_sha256(&plugin.content, &manifest.lora, &manifest.recipe);
    let graph = build_graph(backbone, manifest, &plugin.content).unwrap();
    manifest.graph_sha256 = sha256(&graph);
    let (graph_path, plugin_path) = (folder.path().join("task.onnx"), folder.path().join("task.plugin"));
    std::fs::write(&graph_path, &graph).unwrap();
    plugin.write(&plugin_path).unwrap();

    let peak_with = |slices: usize| {
        let dims = [32, 32, slices];
        let voxels = (0..32 * 32 * slices).map(|i| (i % 251) as f32).collect();
        let affine = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]];
        let volume = Volume::from_parts(dims, voxels, Geometry { affine });
        let input = folder.path().join(format!("{slices}.nii"));
        write_nifti(&input, volume.dims, &volume.voxels, &volume.geometry).unwrap();
        let mut infer = program("scanside");
        infer.arg("infer").arg("--graph").arg(&graph_path).arg("--plugin").arg(&plugin_path);
        peak(infer.arg("--input").arg(&input).args(["--threads", "2"]))
    };
    let (few, many) = (peak_with(2), peak_with(24));
    let graph = graph.len() as u64;
    assert!(few < 3 * graph && many < 3 * graph, "{few} and {many} bytes for a graph of {graph}");
    assert!(many < few + graph / 10, "2 slices take {few} bytes, 24 take {many}");
}

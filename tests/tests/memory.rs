//! What `scanside infer` and `scanside-train fit` hold at most, on the real backbone.
#![cfg(target_arch = "x86_64")]
#![allow(missing_docs, reason = "a test")]

use std::path::Path;
use std::process::{Command, Stdio};

use runtime::volume::{Geometry, write_nifti};
use tests::fixture::{packaged_backbone, packaged_backbone_file, task_of_size};
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

/// Writes a volume of 32 × 32 pixels a slice.
fn write_volume(path: &Path, slices: usize) {
    let dims = [32, 32, slices];
    let voxels: Vec<f32> = (0..32 * 32 * slices).map(|i| (i % 251) as f32).collect();
    let affine = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]];
    write_nifti(path, dims, &voxels, &Geometry { affine }).unwrap();
}

#[test]
fn peak_memory_is_under_twice_the_graph_and_does_not_grow_with_slices() {
    let folder = tempfile::tempdir().unwrap();
    let (plugin, graph) = task_of_size(packaged_backbone(), [224, 224]);
    let (graph_path, plugin_path) = (folder.path().join("task.onnx"), folder.path().join("task.plugin"));
    std::fs::write(&graph_path, &graph).unwrap();
    plugin.write(&plugin_path).unwrap();

    let peak_with = |slices: usize, threads: &str| {
        let input = folder.path().join(format!("{slices}.nii"));
        write_volume(&input, slices);
        let mut infer = program("scanside");
        infer.arg("infer").arg("--graph").arg(&graph_path).arg("--plugin").arg(&plugin_path);
        peak(infer.arg("--input").arg(&input).args(["--threads", threads]))
    };
    let graph = graph.len() as u64;
    let two_threads = peak_with(24, "2");
    assert!(two_threads < 2 * graph, "{two_threads} bytes for a graph of {graph}");
    // On one thread: on two, how often both are at the height of their working memory at the same instant is chance, and
    // likelier with more slices.
    let (few, many) = (peak_with(2, "1"), peak_with(24, "1"));
    assert!(many < few + graph / 10, "2 slices take {few} bytes, 24 take {many}");
}

#[test]
fn training_memory_grows_with_the_chunk_and_not_with_the_slices() {
    let folder = tempfile::tempdir().unwrap();
    let peak_with = |slices: usize, chunk: usize| {
        let path = |name: &str| folder.path().join(format!("{slices}-{chunk}-{name}"));
        write_volume(&path("scan.nii"), slices);
        let scan = path("scan.nii").display().to_string();
        std::fs::write(
            path("data.csv"),
            format!("id,split,image,label\na,train,{scan},1\nb,train,{scan},0\n"),
        )
        .unwrap();
        let task = format!(
            "name = 'memory'\nversion = '1.0.0'\nlabels = ['label']\nblocks = 2\n\
             recipe = {{ plane = 'axial', size = [112, 112], intensity = {{ kind = 'z-score' }} }}\n\
             train = {{ epochs = 1, batch = 1, chunk = {chunk} }}\n"
        );
        std::fs::write(path("task.toml"), task).unwrap();
        let mut fit = program("scanside-train");
        fit.arg("fit").arg("--task").arg(path("task.toml")).arg("--data").arg(path("data.csv"));
        fit.arg("--backbone")
            .arg(packaged_backbone_file())
            .arg("--out")
            .arg(path("run"))
            .args(["--threads", "1"]);
        peak(&mut fit)
    };
    let (few, many, whole) = (peak_with(8, 8), peak_with(96, 8), peak_with(96, 96));
    // 88 slices with three channels of 112 × 112, held once as prepared and once on their way in.
    let pixels = 88 * 3 * 112 * 112 * 4;
    assert!(many < few + 3 * pixels, "8 slices take {few} bytes, 96 take {many}");
    assert!(whole > many + 5 * pixels, "96 slices take {whole} bytes at once, {many} in chunks of 8");
}

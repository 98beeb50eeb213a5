//! What `cargo xtask bench` times from file to result: a task, and one scan as `.nii.gz` and as a JPEG-LS series.
//!
//! `bench_volume --backbone FILE --out FOLDER` writes `task.plugin`, the graph that belongs to it (`task.onnx`), the same with all tokens in
//! the last block (`full.onnx`), `scan.nii.gz` and the folder `series`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use runtime::backbone::Backbone;
use runtime::graph::{GraphMeta, full_task_graph};
use runtime::plugin::{Plugin, merge};
use runtime::volume::{AxisCodes, Volume, write_nifti};
use tests::dicom::{SeriesOptions, write_series};
use tests::fixture::Fixture;
use tests::scanner;

/// Columns, rows and slices of the scan.
const DIMS: [usize; 3] = [512, 512, 64];
/// In mm.
const SPACING: [f64; 3] = [0.45, 0.45, 2.5];
/// Height and width of a slice as the network sees it.
const SIZE: [usize; 2] = [224, 224];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench_volume: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let words: Vec<_> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [first, backbone, second, out] = &words[..] else {
        bail!("flags are missing; start this with `cargo xtask bench`");
    };
    ensure!(first == Path::new("--backbone") && second == Path::new("--out"), "expected --backbone, --out");
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    task(backbone, out)?;
    let volume = head();
    nifti(&out.join("scan.nii.gz"), &volume)?;
    series(&out.join("series"), &volume)
}

fn task(backbone: &Path, out: &Path) -> Result<()> {
    let fixture = Fixture::on(backbone.to_owned(), tempfile::tempdir()?, |manifest| {
        manifest.recipe.size = SIZE;
        // Random heads have large logits: their probabilities would all be 0 or 1 and agree whatever was done before.
        manifest.temperature = 20.0;
    });
    fs::copy(&fixture.plugin, out.join("task.plugin"))?;
    fs::copy(&fixture.graph, out.join("task.onnx"))?;
    let (plugin, _) = Plugin::read(&fixture.plugin)?;
    let mut merged = Backbone::open(backbone)?;
    merge(&mut merged, &plugin.content, &plugin.manifest.lora)?;
    let meta = GraphMeta { task: "full".into(), version: "1".into(), content_sha256: String::new() };
    fs::write(out.join("full.onnx"), full_task_graph(merged, &plugin.content, SIZE, &meta)?)?;
    Ok(())
}

/// A head of uneven tissue in air, both with a scanner's noise; integers from 0, stored as scanners store axial slices.
fn head() -> Volume {
    let codes: AxisCodes = "LPS".parse().expect("axis codes");
    let mut state = 1_u32;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 24) as f32
    };
    let mut voxels = Vec::with_capacity(DIMS.iter().product());
    for k in 0..DIMS[2] {
        for j in 0..DIMS[1] {
            for i in 0..DIMS[0] {
                let along = |n: usize, axis: usize| 2.0 * n as f32 / (DIMS[axis] - 1) as f32 - 1.0;
                let [x, y, z] = [along(i, 0) / 0.7, along(j, 1) / 0.85, along(k, 2) / 1.2];
                let radius = x * x + y * y + z * z;
                let fold = (9.0 * x).sin() * (11.0 * y).cos() * (7.0 * z).sin();
                let tissue = match radius {
                    ..0.8 => 420.0 + 120.0 * fold + 60.0 * x,
                    0.8..0.9 => 90.0,
                    0.9..1.0 => 780.0,
                    _ => 0.0,
                };
                voxels.push((tissue + 16.0 * noise()).floor());
            }
        }
    }
    Volume::from_parts(DIMS, voxels, codes.centred(SPACING, DIMS))
}

/// As scanners' converters write it, 16-bit integers, where `write_nifti` has floats.
fn nifti(path: &Path, volume: &Volume) -> Result<()> {
    let floats = path.with_extension("");
    write_nifti(&floats, volume.dims, &volume.voxels, &volume.geometry)?;
    let mut header = fs::read(&floats)?;
    fs::remove_file(&floats)?;
    header.truncate(352);
    header[70..74].copy_from_slice(&[4, 0, 16, 0]); // datatype and bitpix: i16
    let mut out = GzEncoder::new(fs::File::create(path)?, Compression::default());
    out.write_all(&header)?;
    let voxels: Vec<u8> = volume.voxels.iter().flat_map(|voxel| (*voxel as i16).to_le_bytes()).collect();
    out.write_all(&voxels)?;
    out.finish()?;
    Ok(())
}

fn series(folder: &Path, volume: &Volume) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let plain = tempfile::tempdir()?;
    let options = SeriesOptions { signed: false, bits_stored: 12, ..SeriesOptions::default() };
    write_series(plain.path(), volume, &options)?;
    for file in fs::read_dir(plain.path())? {
        let file = file?;
        let (done, said) =
            scanner::run(Command::new("dcmcjpls").arg(file.path()).arg(folder.join(file.file_name())))?;
        ensure!(done, "dcmcjpls failed on {}: {said}", file.path().display());
    }
    Ok(())
}

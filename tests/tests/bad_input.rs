//! What cannot be used is refused: exit code 2, one sentence that names it, and nothing written.
#![allow(missing_docs, reason = "a test")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;
use flate2::Compression;
use flate2::write::GzEncoder;
use runtime::plugin::Plugin;
use runtime::result::TaskResult;
use runtime::tensor::{Tensor, Tensors, safetensors_bytes};
use runtime::volume::write_nifti;
use tests::dicom::{SeriesOptions, Syntax, put_short, write_edited, write_series};
use tests::fixture::{Fixture, random_backbone, random_task, scan};
use tests::programs::{Outcome, program, run};

/// Runs `infer` with every output asked for, and checks that none is left behind where it fails.
fn infer(fixture: &Fixture, graph: &Path, plugin: &Path, input: &Path) -> Outcome {
    let out = tempfile::tempdir().unwrap();
    let mut command = program("scanside");
    command.arg("infer").arg("--graph").arg(graph).arg("--plugin").arg(plugin).arg("--input").arg(input);
    for (flag, name) in [("--heatmap", "h.nii.gz"), ("--picture", "p.png"), ("--slices", "s.npy")] {
        command.arg(flag).arg(out.path().join(name));
    }
    let outcome = run(command.current_dir(fixture.folder()));
    if outcome.code == Some(0) {
        return outcome;
    }
    let left: Vec<_> = fs::read_dir(out.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?} left behind: {outcome:?}");
    outcome
}

fn infer_scan(fixture: &Fixture, input: &Path) -> Outcome {
    infer(fixture, &fixture.graph, &fixture.plugin, input)
}

/// The fixture's scan as an uncompressed file, its bytes changed by `edit`.
fn nifti(fixture: &Fixture, name: &str, edit: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let path = fixture.folder().join(name);
    let volume = scan("RAS");
    let plain = fixture.folder().join("plain.nii");
    write_nifti(&plain, volume.dims, &volume.voxels, &volume.geometry).unwrap();
    let mut bytes = fs::read(&plain).unwrap();
    edit(&mut bytes);
    fs::write(&path, bytes).unwrap();
    path
}

fn gzip(path: &Path, blocks: impl Iterator<Item = Vec<u8>>) {
    let mut out = GzEncoder::new(fs::File::create(path).unwrap(), Compression::best());
    for block in blocks {
        out.write_all(&block).unwrap();
    }
    out.finish().unwrap();
}

#[test]
fn scans_that_cannot_be_read() {
    let fixture = Fixture::default();
    let whole = nifti(&fixture, "whole.nii", |_| ());
    let cases: [(&str, PathBuf); 7] = [
        ("nowhere.nii", fixture.folder().join("nowhere.nii")),
        ("short.nii", nifti(&fixture, "short.nii", |b| b.truncate(5000))),
        ("header.nii", nifti(&fixture, "header.nii", |b| b.truncate(200))),
        ("empty.nii", nifti(&fixture, "empty.nii", Vec::clear)),
        ("no-axis.nii", nifti(&fixture, "no-axis.nii", |b| b[44..46].fill(0))),
        ("nan.nii", nifti(&fixture, "nan.nii", |b| b[2000..2004].copy_from_slice(&f32::NAN.to_le_bytes()))),
        ("text.nii", nifti(&fixture, "text.nii", |b| *b = b"id,label\n1,0\n".repeat(100))),
    ];
    for (name, path) in cases {
        infer_scan(&fixture, &path).refused(name);
    }

    let cut = fixture.folder().join("cut.nii.gz");
    let bytes = fs::read(&fixture.scan).unwrap();
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    infer_scan(&fixture, &cut).refused("cut.nii.gz");

    // A few hundred bytes that promise 27 million million voxels.
    let huge = fixture.folder().join("huge.nii.gz");
    let mut header = fs::read(&whole).unwrap()[..352].to_vec();
    for axis in [42, 44, 46] {
        header[axis..axis + 2].copy_from_slice(&30_000i16.to_le_bytes());
    }
    gzip(&huge, std::iter::once(header));
    infer_scan(&fixture, &huge).refused("huge.nii.gz");
}

#[test]
fn folders_that_hold_no_whole_series() {
    let fixture = Fixture::default();
    let folder = |name: &str| {
        let path = fixture.folder().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    infer_scan(&fixture, &folder("bare")).refused("bare");
    let texts = folder("texts");
    fs::write(texts.join("notes.txt"), "no DICOM").unwrap();
    infer_scan(&fixture, &texts).refused("texts");

    let holed = folder("holed");
    write_series(&holed, &scan("RAS"), &SeriesOptions::default()).unwrap();
    infer_scan(&fixture, &holed).success();
    let mut files: Vec<_> = fs::read_dir(&holed).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    fs::remove_file(&files[4]).unwrap();
    infer_scan(&fixture, &holed).refused("holed");
}

/// Changes a slice, by its index, before it is written.
type Edit = fn(usize, &mut InMemDicomObject);

#[test]
fn dicom_files_that_cannot_be_used() {
    let fixture = Fixture::default();
    let series = |name: &str, syntax: Syntax, edit: Edit| {
        let folder = fixture.folder().join(name);
        fs::create_dir(&folder).unwrap();
        write_edited(&folder, &scan("LPS"), &SeriesOptions { syntax, ..SeriesOptions::default() }, edit)
            .unwrap();
        (folder.join("0000000002.dcm"), folder)
    };
    let untouched: Edit = |_, _| ();
    for syntax in Syntax::ALL {
        let (slice, folder) = series(&format!("{syntax:?}"), syntax, untouched);
        infer_scan(&fixture, &folder).success();
        let whole = fs::read(&slice).unwrap();
        fs::write(&slice, &whole[..whole.len() - 20]).unwrap();
        infer_scan(&fixture, &folder).refused("0000000002.dcm");
        fs::write(&slice, b"not a slice").unwrap();
        infer_scan(&fixture, &folder).refused("0000000002.dcm");
    }
    let edits: [(&str, Edit, &str); 3] = [
        ("rows", |_, slice| put_short(slice, tags::ROWS, 500), "bytes"),
        (
            "place",
            |_, slice| assert!(slice.remove_element(tags::IMAGE_POSITION_PATIENT)),
            "ImagePositionPatient",
        ),
        ("size", |k, slice| put_short(slice, tags::ROWS, if k == 3 { 3 } else { 4 }), "no single volume"),
    ];
    for (name, edit, told) in edits {
        let (_, folder) = series(name, Syntax::ExplicitLittle, edit);
        infer_scan(&fixture, &folder).refused(told);
    }

    let (slice, folder) = series("trailing", Syntax::ExplicitLittle, untouched);
    let digest = |outcome: &Outcome| {
        outcome.success();
        serde_json::from_str::<TaskResult>(&outcome.stdout).unwrap().provenance.tensor_sha256
    };
    let clean = digest(&infer_scan(&fixture, &folder));
    let mut bytes = fs::read(&slice).unwrap();
    bytes.extend([7; 1000]);
    fs::write(&slice, bytes).unwrap();
    let outcome = infer_scan(&fixture, &folder);
    assert_eq!(digest(&outcome), clean);
    assert!(outcome.stderr.contains("after") && outcome.stderr.contains("0000000002.dcm"), "{outcome:?}");
}

#[test]
fn a_flipped_byte_in_a_plugin_or_graph() {
    let fixture = Fixture::default();
    let damaged = fixture.folder().join("damaged");
    let flip = |from: &Path, at: usize| {
        let mut bytes = fs::read(from).unwrap();
        bytes[at] ^= 0x10;
        fs::write(&damaged, bytes).unwrap();
    };
    // Through the library at many places: the tar's headers and padding, manifest, tensors, card and digests.
    let length = fs::read(&fixture.plugin).unwrap().len();
    for at in (0..length).step_by(97).chain((0..512).step_by(7)).chain((length - 1100..length).step_by(13)) {
        flip(&fixture.plugin, at);
        let error = Plugin::read(&damaged).expect_err("refused");
        assert!(error.is_bad_input() && error.to_string().contains("damaged"), "byte {at}: {error}");
    }
    for at in [0, 700, length / 2, length - 1] {
        flip(&fixture.plugin, at);
        infer(&fixture, &fixture.graph, &damaged, &fixture.scan).refused("damaged");
    }
    let length = fs::read(&fixture.graph).unwrap().len();
    for at in [0, length / 3, length - 1] {
        flip(&fixture.graph, at);
        infer(&fixture, &damaged, &fixture.plugin, &fixture.scan).refused("damaged");
    }
}

#[test]
fn files_that_do_not_belong_together() {
    let fixture = Fixture::default();
    let other = Fixture::new(|manifest| manifest.task.version = "1.0.1".into());
    let outcome = infer(&fixture, &other.graph, &fixture.plugin, &fixture.scan);
    outcome.refused(&fixture.manifest.graph_sha256);

    let backbone = fixture.folder().join("other.safetensors");
    fs::write(&backbone, random_backbone(9)).unwrap();
    let out = fixture.folder().join("out.onnx");
    let merge = |plugin: &Path, backbone: &Path| {
        let mut command = program("scanside");
        command.arg("merge").arg("--plugin").arg(plugin).arg("--backbone").arg(backbone);
        let outcome = run(command.arg("--out").arg(&out));
        assert!(!out.exists());
        outcome
    };
    merge(&fixture.plugin, &backbone).refused(&fixture.manifest.backbone.sha256);
    // A plugin given as a backbone, and the reverse.
    merge(&fixture.plugin, &fixture.plugin).refused("lesion.plugin");
    merge(&fixture.backbone, &fixture.backbone).refused("backbone.safetensors");

    let loaded = runtime::backbone::Backbone::open(&fixture.backbone).unwrap();
    let mut plugin = random_task(&loaded);
    plugin.manifest.recipe.size = [30, 42];
    plugin.manifest.content_sha256 = runtime::plugin::content_sha256(&plugin.content, &plugin.manifest);
    let path = fixture.folder().join("uneven.plugin");
    plugin.write(&path).unwrap();
    merge(&path, &fixture.backbone).refused("30x42");
}

#[test]
fn folders_where_files_belong() {
    let fixture = Fixture::default();
    let folder = fixture.folder().join("folder");
    fs::create_dir(&folder).unwrap();
    infer(&fixture, &folder, &fixture.plugin, &fixture.scan).refused("folder");
    infer(&fixture, &fixture.graph, &folder, &fixture.scan).refused("folder");
    run(program("scanside").arg("backbone").arg(&folder)).refused("folder");
    run(program("scanside").arg("backbone").arg(fixture.scan.join("in-a-file"))).refused("in-a-file");
}

#[test]
fn backbones_and_their_inputs() {
    let fixture = Fixture::default();
    let input = fixture.folder().join("in.safetensors");
    let out = fixture.folder().join("out.safetensors");
    let evaluate = |name: &str, shape: &[usize], more: &[&str]| {
        let tensor = Tensor::new(shape, vec![0.5; shape.iter().product()]);
        fs::write(&input, safetensors_bytes(&Tensors::from([(name.into(), tensor)]), None)).unwrap();
        let mut command = program("scanside");
        command.arg("backbone").arg(&fixture.backbone).arg("--input").arg(&input).arg("--out").arg(&out);
        let outcome = run(command.args(more));
        assert!(!out.exists());
        outcome
    };
    evaluate("input", &[1, 3, 28, 43], &[]).refused("28x43");
    evaluate("input", &[1, 1, 28, 42], &[]).refused("in.safetensors");
    evaluate("input", &[0, 3, 28, 42], &[]).refused("in.safetensors");
    evaluate("slices", &[1, 3, 28, 42], &[]).refused("in.safetensors");
    evaluate("input", &[1, 3, 28, 42], &["--blocks", "3"]).refused("3 blocks");
    evaluate("input", &[1, 3, 28, 42], &["--blocks", "0"]).refused("0 blocks");
}

#[test]
fn an_output_that_is_there_stays_where_nothing_new_comes() {
    let fixture = Fixture::default();
    let heatmap = fixture.folder().join("heat.nii");
    fs::write(&heatmap, "old").unwrap();
    let mut command = program("scanside");
    command.arg("infer").arg("--graph").arg(&fixture.graph).arg("--plugin").arg(&fixture.plugin);
    command.arg("--input").arg(fixture.folder().join("nowhere.nii")).arg("--heatmap").arg(&heatmap);
    run(&mut command).refused("nowhere.nii");
    assert_eq!(fs::read(&heatmap).unwrap(), b"old");
}

#[test]
fn flags_that_make_no_sense() {
    let fixture = Fixture::default();
    let scan = fixture.scan.to_str().unwrap();
    let at = |name: &str| fixture.folder().join(name).to_str().unwrap().to_owned();
    let (graph, plugin, backbone) = (at("lesion.onnx"), at("lesion.plugin"), at("backbone.safetensors"));
    let task = ["--graph", &graph, "--plugin", &plugin];
    let named = format!("left={scan}");
    let sentences: [(&[&str], &str); 7] = [
        (&["--input", &named], "names a view"),
        (&["--input", scan, "--input", scan], "2 times"),
        (&["--input", scan, "--heatmap", &at("heat.png")], "--heatmap"),
        (&["--input", scan, "--picture", &at("p.jpg")], "--picture"),
        (&["--input", scan, "--slices", &at("nowhere/s.npy")], "nowhere"),
        (&["--input", scan, "--volume-index", "1"], "scan.nii.gz"),
        (&["--input", &at("nowhere")], "nowhere"),
    ];
    for (arguments, part) in sentences {
        run(program("scanside").arg("infer").args(task).args(arguments)).refused(part);
    }
    // What clap refuses comes with the usage below the sentence.
    let usage: [(&[&str], &str); 7] = [
        (&["--plugin", &plugin, "--input", scan], "--graph"),
        (&["--graph", &graph, "--backbone", &backbone, "--plugin", &plugin, "--input", scan], "--backbone"),
        (&["--graph", &graph, "--plugin", &plugin], "--input"),
        (&["--graph", &graph, "--plugin", &plugin, "--input", scan, "--publish", "mqtts://host"], "TLS"),
        (&["--graph", &graph, "--plugin", &plugin, "--input", scan, "--site", "a/b"], "topic"),
        (&["--graph", &graph, "--plugin", &plugin, "--input", scan, "--threads", "0"], "--threads"),
        (&["--graph", &graph, "--plugin", &plugin, "--input", scan, "--assume-orientation", "RAR"], "RAS"),
    ];
    for (arguments, part) in usage {
        let outcome = run(program("scanside").arg("infer").args(arguments));
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert!(outcome.stderr.contains(part) && outcome.stdout.is_empty(), "{part}: {outcome:?}");
    }
}

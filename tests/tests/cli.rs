//! The `scanside` program on a task in miniature: what it prints, what it writes, how it ends.
#![allow(missing_docs, clippy::float_cmp, reason = "a test; equal bits are meant")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;
use std::time::SystemTime;

use runtime::backbone::Backbone;
use runtime::engine::run_graph;
use runtime::graph::backbone_graph;
use runtime::infer::{Context, LoadedTask};
use runtime::result::TaskResult;
use runtime::tensor::{Tensor, Tensors, read_safetensors, safetensors_bytes, sha256};
use runtime::volume::{ReadOptions, read};
use tests::dicom::{SeriesOptions, write_series};
use tests::fixture::{DIM, Fixture, scan};
use tests::programs::{Outcome, program, run};

fn infer(fixture: &Fixture, more: &[&str]) -> Outcome {
    let mut command = program("scanside");
    command.arg("infer").arg("--graph").arg(&fixture.graph).arg("--plugin").arg(&fixture.plugin);
    run(command.args(["--device", "ct-2"]).args(more))
}

fn infer_scan(fixture: &Fixture, more: &[&str]) -> TaskResult {
    let scan = fixture.scan.to_str().unwrap();
    let outcome = infer(fixture, &[["--input", scan].as_slice(), more].concat());
    outcome.success();
    one(&outcome)
}

/// The one result on stdout.
fn one(outcome: &Outcome) -> TaskResult {
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines.len(), 1, "{outcome:?}");
    serde_json::from_str(lines[0]).unwrap()
}

/// Without what differs from run to run.
fn timeless(result: &TaskResult) -> TaskResult {
    TaskResult { created: String::new(), timings_ms: std::collections::BTreeMap::new(), ..result.clone() }
}

#[test]
fn infer_prints_what_the_library_computes() {
    let fixture = Fixture::default();
    let result = infer_scan(&fixture, &["--threads", "2"]);

    let task = LoadedTask::open(&fixture.graph, &fixture.plugin, 2).unwrap();
    let volume = read(&fixture.scan, &ReadOptions::default()).unwrap().remove(0);
    let prepared = task.prepare(0, &volume).unwrap();
    let context = Context::given("ct-2".into(), SystemTime::UNIX_EPOCH);
    let expected = task.classify(&[Some(&prepared)], &context, &|| ()).unwrap();
    // Through JSON too: its reader may round the last digit of an f64 otherwise.
    let reread: TaskResult = serde_json::from_str(&expected.result.to_json()).unwrap();
    assert_eq!(timeless(&result), timeless(&reread));
    assert_eq!(expected.result.created, "1970-01-01T00:00:00.000Z");

    assert_eq!(result.provenance.plugin_sha256, sha256(&fs::read(&fixture.plugin).unwrap()));
    assert_eq!(result.provenance.graph_sha256, sha256(&fs::read(&fixture.graph).unwrap()));
    assert_eq!(result.provenance.backbone_sha256, sha256(&fs::read(&fixture.backbone).unwrap()));
    assert_eq!(result.input.digest, sha256(&fs::read(&fixture.scan).unwrap()));
    assert_eq!(result.provenance.digest, result.provenance.compute_digest());
    let [lesion, artefact] = result.labels.as_slice() else { panic!("{:?}", result.labels) };
    let probability = 1.0 / (1.0 + (-f64::from(lesion.logit) / 1.5).exp());
    assert!((lesion.probability - probability).abs() < 1e-12, "after the temperature of 1.5");
    assert_eq!((lesion.threshold, lesion.positive), (Some(0.5), Some(lesion.probability >= 0.5)));
    assert_eq!((artefact.threshold, artefact.positive), (None, None));
    assert!(
        ["load", "read", "prepare", "encode", "total"].iter().all(|k| result.timings_ms.contains_key(*k))
    );
    assert_eq!(result.warnings, ["the plugin's manifest does not say which scans it accepts"]);
}

#[test]
fn key_slices_are_the_heaviest_in_order() {
    let fixture = Fixture::default();
    let result = infer_scan(&fixture, &[]);
    let task = LoadedTask::open(&fixture.graph, &fixture.plugin, 1).unwrap();
    let volume = read(&fixture.scan, &ReadOptions::default()).unwrap().remove(0);
    let prepared = task.prepare(0, &volume).unwrap();
    let context = Context::given(String::new(), SystemTime::UNIX_EPOCH);
    let weights =
        task.classify(&[Some(&prepared)], &context, &|| ()).unwrap().output.views[0].slice_weights.clone();
    assert_eq!(weights.len(), 9);
    let found: Vec<f32> = result.key_slices.iter().map(|k| k.weight).collect();
    let mut sorted = weights.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    assert_eq!(found, sorted[..5]);
    assert!(sorted[0] > sorted[8], "the query prefers some slices");
    // All slices are used, and axial ones count from the feet.
    assert!(result.key_slices.iter().all(|k| weights[k.index].to_bits() == k.weight.to_bits()));
}

#[test]
fn merging_in_memory_and_threads_change_nothing() {
    let fixture = Fixture::default();
    let result = infer_scan(&fixture, &["--threads", "1"]);
    let mut command = program("scanside");
    command.arg("infer").arg("--backbone").arg(&fixture.backbone).arg("--plugin").arg(&fixture.plugin);
    command.arg("--input").arg(&fixture.scan).args(["--device", "ct-2", "--threads", "3"]);
    let outcome = run(&mut command);
    outcome.success();
    let mut merged = timeless(&one(&outcome));
    assert_eq!(merged.provenance.engine.threads, 3);
    merged.provenance.engine.threads = 1;
    merged.provenance.digest = merged.provenance.compute_digest();
    assert_eq!(merged, timeless(&result));
}

#[test]
fn every_output_is_written() {
    let fixture = Fixture::default();
    let at = |name: &str| fixture.folder().join(name).to_str().unwrap().to_owned();
    let (heatmap, picture, slices) = (at("heat.nii.gz"), at("picture.png"), at("slices.npy"));
    let result = infer_scan(
        &fixture,
        &["--heatmap", &heatmap, "--picture", &picture, "--slices", &slices, "--threads", "3"],
    );

    let volume = read(&fixture.scan, &ReadOptions::default()).unwrap().remove(0);
    let heat = read(Path::new(&heatmap), &ReadOptions::default()).unwrap().remove(0);
    assert_eq!((heat.dims, heat.geometry), (volume.dims, volume.geometry));
    assert!(heat.voxels.iter().any(|&x| x > 0.0));

    assert!(fs::read(&picture).unwrap().starts_with(b"\x89PNG\r\n\x1a\n"));

    let bytes = fs::read(&slices).unwrap();
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let text = String::from_utf8_lossy(&bytes[10..header]);
    assert!(bytes.starts_with(b"\x93NUMPY\x01\x00") && text.contains("'shape': (9, 3, 28, 42)"), "{text}");
    let data = &bytes[header..];
    let task = LoadedTask::open(&fixture.graph, &fixture.plugin, 1).unwrap();
    let prepared = task.prepare(0, &volume).unwrap();
    let size = 3 * 28 * 42;
    assert_eq!(data.len(), 9 * size * 4);
    let mut digests = Vec::new();
    for (s, found) in data.chunks_exact(4 * size).enumerate() {
        let mut expected = vec![0.0f32; size];
        prepared.write_slice(s, &mut expected);
        assert!(found.chunks_exact(4).zip(&expected).all(|(b, x)| b == x.to_le_bytes()), "slice {s}");
        digests.extend(unhex(&sha256(found)));
    }
    assert_eq!(result.provenance.tensor_sha256, sha256(&digests), "as its documentation says");
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

#[test]
fn how_a_scan_is_stored_does_not_matter() {
    let fixture = Fixture::default();
    let volume = scan("RAS");
    let reference = infer_scan(&fixture, &[]);
    let folder = fixture.folder().join("series");
    fs::create_dir(&folder).unwrap();
    write_series(&folder, &volume, &SeriesOptions { shuffle: true, ..SeriesOptions::default() }).unwrap();
    let outcome = infer(&fixture, &["--input", folder.to_str().unwrap()]);
    outcome.success();
    let dicom = one(&outcome);
    assert_eq!(dicom.provenance.tensor_sha256, reference.provenance.tensor_sha256);
    assert_eq!(dicom.labels, reference.labels);
    assert_eq!(dicom.input.instances, 9);
    let uid = |k: &runtime::result::KeySlice| k.sop_instance_uid.clone().unwrap();
    for key in &dicom.key_slices {
        // The writer numbers instances from 1 along the third axis, which runs to the head.
        assert_eq!(uid(key), format!("{}.{}", SeriesOptions::default().series_uid, key.index + 1));
    }
}

#[test]
fn a_folder_of_two_series_gives_two_lines_and_no_patient() {
    let fixture = Fixture::default();
    let folder = fixture.folder().join("study");
    for (name, uid, codes) in
        [("a", "1.2.826.0.1.3680043.10.99.7", "LPS"), ("b", "1.2.826.0.1.3680043.10.99.8", "RAS")]
    {
        // One folder, two series: file names must differ.
        let series = fixture.folder().join(name);
        fs::create_dir_all(&series).unwrap();
        fs::create_dir_all(&folder).unwrap();
        write_series(
            &series,
            &scan(codes),
            &SeriesOptions { series_uid: uid.into(), ..SeriesOptions::default() },
        )
        .unwrap();
        for file in fs::read_dir(&series).unwrap() {
            let file = file.unwrap();
            fs::rename(file.path(), folder.join(format!("{name}-{}", file.file_name().to_string_lossy())))
                .unwrap();
        }
    }
    let input = folder.to_str().unwrap();
    let outcome = infer(&fixture, &["--input", input]);
    outcome.success();
    let results: Vec<TaskResult> = outcome.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let uids: BTreeSet<String> = results.iter().filter_map(|r| r.input.series_uid.clone()).collect();
    assert_eq!(uids.len(), 2, "{outcome:?}");
    assert_ne!(results[0].result_id, results[1].result_id);
    for secret in ["Secret", "SECRET", "19991231"] {
        assert!(
            !outcome.stdout.contains(secret) && !outcome.stderr.contains(secret),
            "{secret}: {outcome:?}"
        );
    }

    let heatmap = fixture.folder().join("heat.nii");
    infer(&fixture, &["--input", input, "--heatmap", heatmap.to_str().unwrap()]).refused("2 series");
    assert!(!heatmap.exists());

    // A series with a hole is told; the other one is classified all the same.
    fs::remove_file(folder.join("a-0000000003.dcm")).unwrap();
    let holed = infer(&fixture, &["--input", input]);
    assert_eq!(holed.code, Some(2), "{holed:?}");
    assert_eq!(timeless(&one(&holed)), timeless(&results[1]));
    assert!(
        holed.stderr.contains("no single volume") && holed.stderr.contains("1 of the 2 series"),
        "{holed:?}"
    );
}

#[test]
fn what_the_manifest_does_not_accept_is_told() {
    let fixture = Fixture::new(|manifest| {
        manifest.accepts = serde_json::from_str(r#"{"min_slices":100,"modality":["MR"]}"#).unwrap();
    });
    let result = infer_scan(&fixture, &[]);
    assert_eq!(result.warnings.len(), 1, "{:?}", result.warnings);
    assert!(
        result.warnings[0].starts_with("the plugin's manifest does not accept this scan:")
            && result.warnings[0].contains("100"),
        "{:?}",
        result.warnings
    );
}

#[test]
fn merge_writes_the_exported_graph() {
    let fixture = Fixture::default();
    let out = fixture.folder().join("merged.onnx");
    let mut command = program("scanside");
    command.arg("merge").arg("--plugin").arg(&fixture.plugin).arg("--backbone").arg(&fixture.backbone);
    let outcome = run(command.arg("--out").arg(&out));
    outcome.success();
    assert_eq!(fs::read(&out).unwrap(), fs::read(&fixture.graph).unwrap());
    assert_eq!(outcome.stdout, format!("{}  {}\n", fixture.manifest.graph_sha256, out.display()));
}

#[test]
fn backbone_tells_runs_and_saves() {
    let fixture = Fixture::default();
    let [input, out, saved] =
        ["in.safetensors", "out.safetensors", "saved.safetensors"].map(|n| fixture.folder().join(n));
    let data = (0..2 * 3 * 28 * 42).map(|n| (n as f32 * 0.37).sin()).collect();
    let slices = Tensor::new([2, 3, 28, 42], data);
    fs::write(&input, safetensors_bytes(&Tensors::from([("input".into(), slices.clone())]), None)).unwrap();
    let mut command = program("scanside");
    command.arg("backbone").arg(&fixture.backbone).args(["--blocks", "1"]);
    command.arg("--input").arg(&input).arg("--out").arg(&out);
    let outcome = run(command.arg("--save").arg(&saved).args(["--name", "tiny"]));
    outcome.success();
    let hash = sha256(&fs::read(&fixture.backbone).unwrap());
    for part in ["the first 1 of 2", "Hugging Face", "Apache-2.0", "14 x 14 pixels", &hash] {
        assert!(outcome.stdout.contains(part), "{part}: {outcome:?}");
    }

    let mut backbone = Backbone::open(&fixture.backbone).unwrap();
    backbone.truncate(1).unwrap();
    let again = Backbone::open(&saved).unwrap();
    assert_eq!((again.name(), &again.tensors), ("tiny".into(), &backbone.tensors));
    let expected = run_graph(backbone_graph(backbone, [28, 42]).unwrap(), &slices).unwrap();
    let found = read_safetensors(&out).unwrap().tensors;
    assert_eq!(found, expected);
    assert_eq!((&found["cls"].shape, &found["patch"].shape), (&vec![2, DIM], &vec![2, 6, DIM]));
}

#[test]
fn plugin_show_summarises() {
    let fixture = Fixture::default();
    let outcome = run(program("scanside").args(["plugin", "show"]).arg(&fixture.plugin));
    outcome.success();
    let hash = sha256(&fs::read(&fixture.plugin).unwrap());
    for part in ["lesion 1.0.0", "positive from 0.5, youden on validation", "rank 2", "not stated", &hash] {
        assert!(outcome.stdout.contains(part), "{part}: {outcome:?}");
    }
}

#[test]
fn verify_reproduces_a_result_and_finds_a_false_one() {
    let fixture = Fixture::default();
    let outcome = infer(&fixture, &["--input", fixture.scan.to_str().unwrap()]);
    outcome.success();
    let file = fixture.folder().join("result.json");
    let verify = |text: &str, scan: &Path| {
        fs::write(&file, text).unwrap();
        let mut command = program("scanside");
        command
            .arg("verify")
            .arg(&file)
            .arg("--graph")
            .arg(&fixture.graph)
            .arg("--plugin")
            .arg(&fixture.plugin);
        run(command.arg("--input").arg(scan))
    };
    let honest = verify(&outcome.stdout, &fixture.scan);
    honest.success();
    assert!(honest.stdout.contains("reproduced"), "{honest:?}");

    let result = one(&outcome);
    let mut false_logit = result.clone();
    false_logit.labels[0].logit += 0.1;
    let found = verify(&false_logit.to_json(), &fixture.scan);
    assert_eq!(found.code, Some(1), "{found:?}");
    assert!(found.stderr.contains("the logit of lesion is"), "{found:?}");
    let mut false_hash = result;
    false_hash.provenance.tensor_sha256 = "0".repeat(64);
    let found = verify(&false_hash.to_json(), &fixture.scan);
    assert_eq!(found.code, Some(1), "{found:?}");
    assert!(
        found.stderr.contains("tensor SHA-256") && found.stderr.contains("provenance digest"),
        "{found:?}"
    );

    let other = fixture.folder().join("other.nii");
    let volume = scan("LPS");
    runtime::volume::write_nifti(&other, volume.dims, &volume.voxels, &volume.geometry).unwrap();
    let found = verify(&outcome.stdout, &other);
    assert_eq!(found.code, Some(1), "{found:?}");
    verify("{}", &fixture.scan).refused("result.json");
}

#[test]
fn a_reader_who_leaves_early_is_no_fault() {
    let fixture = Fixture::default();
    let mut command = program("scanside");
    command.args(["plugin", "show"]).arg(&fixture.plugin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(child.wait().unwrap().success() && stderr.is_empty(), "{stderr}");
}

#[test]
fn help_and_version_succeed() {
    for arguments in
        [["--help"].as_slice(), &["--version"], &["infer", "--help"], &["plugin", "show", "--help"]]
    {
        let outcome = run(program("scanside").args(arguments));
        outcome.success();
        assert!(!outcome.stdout.is_empty());
    }
}

#[test]
fn the_manual_has_a_page_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    run(program("scanside").arg("manual").arg(folder.path())).success();
    let page = |name: &str| {
        let path = folder.path().join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    assert!(page("scanside.1").contains(".TH scanside 1"));
    assert!(page("scanside-doctor.1").contains("device.toml"));
    assert!(page("scanside-plugin-show.1").contains("plugin"));
    assert!(!folder.path().join("scanside-manual.1").exists(), "nobody but packagers needs that one");
    run(program("scanside").arg("manual").arg(folder.path().join("none"))).refused("none");
}

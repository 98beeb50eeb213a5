//! Tasks of several views: a study's series pooled by one graph, on this device as the definition says.
#![allow(missing_docs, reason = "a test")]

use std::process::Command;
use std::time::SystemTime;

use firmware_config::MissingViews;
use runtime::backbone::Backbone;
use runtime::engine::{Engine, Output};
use runtime::infer::{Context, LoadedTask, views_digest};
use runtime::plugin::{Plugin, build_graph, view_content};
use runtime::result::TaskResult;
use runtime::tensor::{Tensors, sha256};
use runtime::volume::{Volume, write_nifti};
use tests::fixture::{Fixture, give_views, scan};
use tests::programs::{Outcome, program, run};

fn fixture(missing: MissingViews) -> Fixture {
    Fixture::new(|manifest| give_views(manifest, missing))
}

/// Two scans of one study.
fn study() -> [Volume; 2] {
    let mut other = scan("RAS");
    other.voxels.iter_mut().enumerate().for_each(|(n, x)| *x = (*x + (n % 7) as f32 * 40.0).min(999.0));
    [scan("RAS"), other]
}

fn classify(task: &LoadedTask, volumes: &[Option<&Volume>]) -> Result<(Output, TaskResult), String> {
    let prepared = task.prepare_views(volumes).unwrap();
    let given: Vec<_> = prepared.iter().map(Option::as_ref).collect();
    let context = Context::given("mr-1".into(), SystemTime::UNIX_EPOCH);
    let found = task.classify(&given, &context, &|| ()).map_err(|e| e.to_string())?;
    Ok((found.output, found.result))
}

/// `a = softmax(H q / sqrt(d))` and `aᵀ H` of rows `[_, d]`, in f64.
fn attend(rows: &[f64], query: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let d = query.len();
    let scores = rows
        .chunks_exact(d)
        .map(|row| row.iter().zip(query).map(|(h, q)| h * f64::from(*q)).sum::<f64>() / (d as f64).sqrt());
    let exp: Vec<f64> = scores.map(f64::exp).collect();
    let weights: Vec<f64> = exp.iter().map(|e| e / exp.iter().sum::<f64>()).collect();
    let pooled = (0..d).map(|k| rows.chunks_exact(d).zip(&weights).map(|(row, a)| a * row[k]).sum());
    let pooled = pooled.collect();
    (weights, pooled)
}

fn head(content: &Tensors, pooled: &[f64]) -> Vec<f64> {
    let rows = content["head.weight"].data.chunks_exact(pooled.len()).zip(&content["head.bias"].data);
    let dot = |row: &[f32]| row.iter().zip(pooled).map(|(w, v)| f64::from(*w) * v).sum::<f64>();
    rows.map(|(row, bias)| dot(row) + f64::from(*bias)).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

fn near(found: &[f32], expected: &[f64], most: f64) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!((f64::from(*a) - b).abs() <= most, "{found:?} {expected:?}");
    }
}

#[test]
fn views_are_encoded_by_their_own_factors_and_pooled_by_the_tasks_query() {
    let fixture = fixture(MissingViews::Refuse);
    let task = LoadedTask::open(&fixture.graph, &fixture.plugin, 2).unwrap();
    let volumes = study();
    let (found, _) = classify(&task, &[Some(&volumes[0]), Some(&volumes[1])]).unwrap();
    let content = &Plugin::read(&fixture.plugin).unwrap().0.content;

    let mut fused = Vec::new();
    for (k, view) in ["axial", "sagittal"].into_iter().enumerate() {
        // A plugin of this view alone gives the same embeddings, bit for bit.
        let mut manifest = task.plugin.manifest.clone();
        manifest.recipe = manifest.inputs()[k].1.clone();
        manifest.views.clear();
        manifest.missing_views = MissingViews::Refuse;
        let alone = view_content(content, view);
        let graph = build_graph(Backbone::open(&fixture.backbone).unwrap(), &manifest, &alone).unwrap();
        let engine = Engine::load(&graph, 1).unwrap();
        let prepared = task.prepare(k, &volumes[k]).unwrap();
        let expected = engine.run(prepared.slices(), &|s, out| prepared.write_slice(s, out)).unwrap();
        assert_eq!(found.views[k], expected.views[0], "{view}");

        let query = &content[&format!("views.{view}.query")].data;
        let (weights, pooled) = attend(&wide(&found.views[k].embeddings), query);
        near(&found.views[k].slice_weights, &weights, 1e-5);
        fused.extend(pooled);
    }
    let (weights, pooled) = attend(&fused, &content["query"].data);
    near(&found.view_weights, &weights, 1e-5);
    assert!((weights[0] - 0.5).abs() > 0.01, "the query prefers a view: {weights:?}");
    near(&found.logits, &head(content, &pooled), 1e-4);
    assert_ne!(found.views[0].slice_weights.len(), found.views[1].slice_weights.len());
}

#[test]
fn what_no_factors_touch_is_in_the_graph_once() {
    let [one, two] = [Fixture::default(), fixture(MissingViews::Refuse)]
        .map(|fixture| std::fs::metadata(&fixture.graph).unwrap().len() as f64);
    // The MLPs, half of this backbone's weights, stay as they are.
    assert!((1.3..1.7).contains(&(two / one)), "{two} bytes against {one}");
}

#[test]
fn a_missing_view_is_refused_or_left_out_as_declared() {
    let volumes = study();
    let refusing = fixture(MissingViews::Refuse);
    let whole = LoadedTask::open(&refusing.graph, &refusing.plugin, 1).unwrap();
    let error = classify(&whole, &[None, Some(&volumes[1])]).expect_err("refused");
    assert!(error.contains("the views axial, sagittal, and there is no scan for axial"), "{error}");

    let pooling = fixture(MissingViews::Pool);
    let task = LoadedTask::open(&pooling.graph, &pooling.plugin, 1).unwrap();
    let (all, _) = classify(&task, &[Some(&volumes[0]), Some(&volumes[1])]).unwrap();
    let (same, _) = classify(&whole, &[Some(&volumes[0]), Some(&volumes[1])]).unwrap();
    assert_eq!(all, same, "a mask of ones changes nothing");

    let (one, result) = classify(&task, &[None, Some(&volumes[1])]).unwrap();
    assert_eq!(one.view_weights, [0.0, 1.0]);
    assert!(one.views[0].slice_weights.is_empty() && one.views[0].heatmap.is_empty());
    assert_eq!(one.views[1], all.views[1]);
    let content = &Plugin::read(&pooling.plugin).unwrap().0.content;
    let (_, pooled) = attend(&wide(&one.views[1].embeddings), &content["views.sagittal.query"].data);
    near(&one.logits, &head(content, &pooled), 1e-4);
    assert!(result.warnings.iter().any(|w| w.starts_with("there was no scan for the view axial")));
    assert!(classify(&task, &[None, None]).is_err());
}

#[test]
fn golden_cases_go_through_every_view() {
    let fixture = fixture(MissingViews::Pool);
    let path = tests::golden::plugin(&fixture, "golden.plugin", |_| ());
    let task = LoadedTask::open(&fixture.graph, &path, 1).unwrap();
    assert_eq!(task.check_golden().unwrap().cases, 1);
    let path = tests::golden::plugin(&fixture, "off.plugin", |plugin: &mut Plugin| {
        let case = &mut plugin.manifest.golden[0];
        case.heatmap_peak[0] = case.slice_weights.len() - 1 - case.heatmap_peak[0];
    });
    let error = LoadedTask::open(&fixture.graph, &path, 1).unwrap().check_golden().unwrap_err();
    assert!(error.to_string().contains("the heat map does not peak at"), "{error}");
}

/// `scanside infer` on the study's files, `inputs` being views with names of files in the fixture's folder.
fn infer(fixture: &Fixture, inputs: &[(&str, &str)], more: &[&str]) -> Outcome {
    for (volume, name) in study().iter().zip(["axial.nii.gz", "sagittal.nii.gz"]) {
        let path = fixture.folder().join(name);
        write_nifti(&path, volume.dims, &volume.voxels, &volume.geometry).unwrap();
    }
    let mut infer = program("scanside");
    infer.current_dir(fixture.folder()).args(["infer", "--device", "mr-1"]).args(more);
    infer.arg("--graph").arg(&fixture.graph).arg("--plugin").arg(&fixture.plugin);
    for (view, file) in inputs {
        infer.arg("--input").arg(if view.is_empty() { (*file).to_owned() } else { format!("{view}={file}") });
    }
    run(&mut infer)
}

const BOTH: [(&str, &str); 2] = [("sagittal", "sagittal.nii.gz"), ("axial", "axial.nii.gz")];

#[test]
fn the_command_takes_each_view_by_its_name() {
    let fixture = fixture(MissingViews::Refuse);
    let files = ["--heatmap", "heat.nii.gz", "--picture", "picture.png", "--slices", "slices.npy"];
    let outcome = infer(&fixture, &BOTH, &files);
    outcome.success();
    let result: TaskResult = serde_json::from_str(outcome.stdout.trim()).unwrap();
    assert_eq!(result.input.views.keys().collect::<Vec<_>>(), ["axial", "sagittal"]);
    for (view, input) in &result.input.views {
        let file = std::fs::read(fixture.folder().join(format!("{view}.nii.gz"))).unwrap();
        assert_eq!(input.digest, sha256(&file));
    }
    assert_eq!(result.input.digest, views_digest(&result.input.views));
    assert!((result.view_weights.values().sum::<f32>() - 1.0).abs() < 1e-6);
    let task = LoadedTask::open(&fixture.graph, &fixture.plugin, 1).unwrap();
    let volumes = study();
    let (output, _) = classify(&task, &[Some(&volumes[0]), Some(&volumes[1])]).unwrap();
    for key in &result.key_slices {
        let view = usize::from(key.view.as_deref() == Some("sagittal"));
        let expected = output.views[view].slice_weights[key.index] * output.view_weights[view];
        assert!((key.weight - expected).abs() < 1e-6);
    }
    for name in ["heat-axial.nii.gz", "heat-sagittal.nii.gz", "picture-axial.png", "slices-sagittal.npy"] {
        assert!(fixture.folder().join(name).is_file(), "{name}");
    }
    assert!(!fixture.folder().join("heat.nii.gz").exists());

    let claimed = fixture.folder().join("result.json");
    std::fs::write(&claimed, &outcome.stdout).unwrap();
    let verify = |inputs: [&str; 2]| {
        let mut verify: Command = program("scanside");
        verify.current_dir(fixture.folder()).arg("verify").arg(&claimed);
        verify.arg("--graph").arg(&fixture.graph).arg("--plugin").arg(&fixture.plugin);
        run(verify.args(inputs.iter().flat_map(|input| ["--input", input])))
    };
    verify(["axial=axial.nii.gz", "sagittal=sagittal.nii.gz"]).success();
    let exchanged = verify(["axial=sagittal.nii.gz", "sagittal=axial.nii.gz"]);
    assert!(exchanged.stderr.contains("the view axial is given"), "{}", exchanged.stderr);
}

#[test]
fn wrong_views_are_told_in_a_sentence() {
    let fixture = fixture(MissingViews::Refuse);
    for (inputs, told) in [
        (vec![("", "axial.nii.gz")], "names no view, but the task has the views axial, sagittal"),
        (
            vec![("coronal", "axial.nii.gz")],
            "names the view coronal, but the task has the views axial, sagittal",
        ),
        (vec![("axial", "axial.nii.gz")], "there is no scan for sagittal"),
        (vec![BOTH[0], BOTH[1], BOTH[1]], "--input axial= is given twice"),
    ] {
        let outcome = infer(&fixture, &inputs, &[]);
        assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(told), "{}", outcome.stderr);
        assert!(outcome.stdout.is_empty());
    }
}

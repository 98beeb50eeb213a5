//! The graphs in onnxruntime, unchanged: a task's against `scanside infer`, and every backbone's against the public
//! implementations' numbers.
#![cfg(target_arch = "x86_64")] // onnxruntime runs natively; `cargo xtask test` puts it into target/bench/venv.
#![allow(missing_docs, reason = "a test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use firmware_config::MissingViews;
use runtime::backbone::Backbone;
use runtime::engine::{Engine, run_graph};
use runtime::graph::backbone_graph;
use runtime::plugin::build_graph;
use runtime::result::TaskResult;
use runtime::tensor::{Tensor, Tensors};
use tests::fixture::{Fixture, give_views, random_task};
use tests::programs::{program, run};
use tests::reference::{cases, difference, tensors};

/// Runs a graph on slices in an .npy file and prints logits and slice weights, one list a line.
const SCRIPT: &str = "
import sys, json, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])
outputs = session.run(['logits', 'slice_weights', 'heatmap', 'slice_embeddings'], {'slices': numpy.load(sys.argv[2])})
print(json.dumps(outputs[0].tolist()))
print(json.dumps(outputs[1].tolist()))
print(json.dumps([list(o.shape) for o in outputs]))
";

#[test]
fn onnxruntime_gives_the_same_logits() {
    let fixture = Fixture::default();
    let slices = fixture.folder().join("slices.npy");
    let mut infer = program("scanside");
    infer.arg("infer").arg("--graph").arg(&fixture.graph).arg("--plugin").arg(&fixture.plugin);
    let outcome = run(infer.arg("--input").arg(&fixture.scan).arg("--slices").arg(&slices));
    outcome.success();
    let result: TaskResult = serde_json::from_str(outcome.stdout.trim()).unwrap();

    let theirs = run(Command::new(python()).args(["-c", SCRIPT]).arg(&fixture.graph).arg(&slices));
    theirs.success();
    let lines: Vec<&str> = theirs.stdout.lines().collect();
    let logits: Vec<f32> = serde_json::from_str(lines[0]).unwrap();
    let weights: Vec<f32> = serde_json::from_str(lines[1]).unwrap();
    let shapes: Vec<Vec<usize>> = serde_json::from_str(lines[2]).unwrap();

    assert_eq!(logits.len(), result.labels.len());
    for (theirs, ours) in logits.iter().zip(&result.labels) {
        assert!((theirs - ours.logit).abs() <= 1e-4, "{theirs} against {}", ours.logit);
    }
    for slice in &result.key_slices {
        assert!(weights.iter().any(|w| (w - slice.weight).abs() <= 1e-5), "{} in {weights:?}", slice.weight);
    }
    let s = weights.len();
    assert_eq!((shapes[0].len(), shapes[1].len(), shapes[2].len()), (1, 1, 3));
    assert_eq!((shapes[2][0], shapes[3][0]), (s, s));
}

/// Runs a graph of the views axial and sagittal on waves, with the mask given; prints the outputs by name.
const VIEWS: &str = "
import sys, json, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])
wave = lambda *shape: numpy.sin(numpy.arange(numpy.prod(shape), dtype='f4') * numpy.float32(0.37)).reshape(shape)
inputs = {'slices_axial': wave(3, 3, 28, 42), 'slices_sagittal': wave(2, 3, 42, 28),
          'view_mask': numpy.array(json.loads(sys.argv[2]), 'f4')}
names = [o.name for o in session.get_outputs()]
print(json.dumps({n: v.flatten().tolist() for n, v in zip(names, session.run(names, inputs))}))
";

#[test]
fn a_graph_of_views_gives_the_same_in_onnxruntime() {
    let fixture = Fixture::new(|manifest| give_views(manifest, MissingViews::Pool));
    let engine = Engine::open(&fixture.graph, 1).unwrap().0;
    let encode = |view: usize, slices: usize| {
        let write = |s: usize, out: &mut [f32]| {
            let first = s * out.len();
            out.iter_mut().enumerate().for_each(|(i, x)| *x = ((first + i) as f32 * 0.37).sin());
        };
        Some(engine.encode(view, slices, &write).unwrap())
    };
    for mask in ["[1, 1]", "[0, 1]"] {
        let theirs = run(Command::new(python()).args(["-c", VIEWS]).arg(&fixture.graph).arg(mask));
        theirs.success();
        let theirs: BTreeMap<String, Vec<f32>> = serde_json::from_str(theirs.stdout.trim()).unwrap();
        let axial = if mask == "[1, 1]" { encode(0, 3) } else { None };
        let ours = engine.pool(vec![axial, encode(1, 2)]).unwrap();
        let [axial, sagittal] = ours.views.as_slice() else { panic!("two views") };
        let mut pairs = vec![
            ("logits", &ours.logits),
            ("view_weights", &ours.view_weights),
            ("slice_weights_sagittal", &sagittal.slice_weights),
            ("heatmap_sagittal", &sagittal.heatmap),
            ("slice_embeddings_sagittal", &sagittal.embeddings),
        ];
        if !axial.embeddings.is_empty() {
            pairs.push(("heatmap_axial", &axial.heatmap));
            pairs.push(("slice_embeddings_axial", &axial.embeddings));
        }
        for (name, ours) in pairs {
            assert_eq!(ours.len(), theirs[name].len(), "{name}");
            let off = ours.iter().zip(&theirs[name]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off <= 1e-4, "{name} with the mask {mask} differs by {off:e}");
        }
    }
}

fn python() -> std::path::PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench/venv/bin/python3");
    assert!(python.is_file(), "{} is missing: `cargo xtask test` makes it", python.display());
    python
}

/// In each folder given: runs `graph.onnx` on `slices`, and writes each output into a file of its name; both are raw f32.
const FOLDERS: &str = "
import sys, numpy, onnxruntime
for folder in sys.argv[1:]:
    session = onnxruntime.InferenceSession(folder + '/graph.onnx', providers=['CPUExecutionProvider'])
    shape = [-1] + session.get_inputs()[0].shape[1:]
    slices = numpy.fromfile(folder + '/slices', '<f4').reshape(shape)
    names = [output.name for output in session.get_outputs()]
    for name, value in zip(names, session.run(names, {'slices': slices})):
        value.astype('<f4').tofile(folder + '/' + name)
";

/// What onnxruntime makes of graphs and their slices, by the names of the outputs.
fn in_onnxruntime(graphs: &[(Vec<u8>, &Tensor)]) -> Vec<Tensors> {
    let folder = tempfile::tempdir().unwrap();
    let folders: Vec<_> = (0..graphs.len()).map(|n| folder.path().join(n.to_string())).collect();
    for ((graph, slices), folder) in graphs.iter().zip(&folders) {
        std::fs::create_dir(folder).unwrap();
        std::fs::write(folder.join("graph.onnx"), graph).unwrap();
        let slices: Vec<u8> = slices.data.iter().flat_map(|x| x.to_le_bytes()).collect();
        std::fs::write(folder.join("slices"), slices).unwrap();
    }
    run(Command::new(python()).args(["-c", FOLDERS]).args(&folders)).success();
    let outputs = |folder: &std::path::PathBuf| {
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        // What went in stays out.
        let files = files.filter(|file| !file.ends_with("slices"));
        let tensor = |file: std::path::PathBuf| {
            let bytes = std::fs::read(&file).unwrap();
            let data: Vec<f32> =
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            (file.file_name().unwrap().to_str().unwrap().to_owned(), Tensor::new([data.len()], data))
        };
        files.filter(|file| file.extension().is_none()).map(tensor).collect()
    };
    folders.iter().map(outputs).collect()
}

#[test]
fn every_backbone_matches_the_public_implementations_in_onnxruntime() {
    let cases = cases("backbones", "");
    let inputs: Vec<Tensors> = cases.iter().map(|case| tensors(&case.join("case.safetensors"))).collect();
    let graphs: Vec<_> = cases
        .iter()
        .zip(&inputs)
        .map(|(case, stored)| {
            let [_, _, h, w] = stored["input"].shape[..] else { panic!("{:?}", stored["input"].shape) };
            let backbone = Backbone::open(&case.join("weights.safetensors")).unwrap();
            (backbone_graph(backbone, [h, w]).unwrap(), &stored["input"])
        })
        .collect();
    let found = in_onnxruntime(&graphs);
    for ((case, expected), found) in cases.iter().zip(&inputs).zip(&found) {
        for (name, expected) in expected.iter().filter(|(name, _)| *name != "input") {
            let limit = if name.ends_with("attention") { 2e-6 } else { 5e-5 };
            let difference = difference(&found[name], expected);
            assert!(difference <= limit, "{}: {name} differs by {difference:e}", case.display());
        }
    }
}

/// Task graphs leave out what a bare backbone's keep: the last block's other rows.
#[test]
fn task_graphs_of_every_family_give_the_same_in_both() {
    let names = [
        "dinov3_fb_96x64",
        "dinov3_hf_gated_96x64",
        "vit_hf_96x80",
        "siglip_hf_98x84",
        "davit_timm_48x48",
        "davit_hf_60x44",
    ];
    let mut stored = Vec::new();
    let mut graphs = Vec::new();
    for name in names {
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reference/backbones").join(name);
        let backbone = Backbone::open(&case.join("weights.safetensors")).unwrap();
        let input = tensors(&case.join("case.safetensors")).remove("input").unwrap();
        let mut task = random_task(&backbone);
        task.manifest.recipe.size = [input.shape[2], input.shape[3]];
        graphs.push(build_graph(backbone, &task.manifest, &task.content).unwrap());
        stored.push(input);
    }
    let pairs: Vec<_> = graphs.iter().cloned().zip(&stored).collect();
    for ((name, theirs), (graph, input)) in names.iter().zip(in_onnxruntime(&pairs)).zip(pairs) {
        let ours = run_graph(graph, input).unwrap();
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        for (output, ours) in &ours {
            let difference = difference(&theirs[output], ours);
            assert!(difference <= 5e-5, "{name}: {output} differs by {difference:e}");
        }
    }
}

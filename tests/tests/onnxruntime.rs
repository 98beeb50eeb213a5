//! The exported graph in onnxruntime, unchanged, against `scanside infer`.
#![cfg(target_arch = "x86_64")] // onnxruntime runs natively; `cargo xtask test` puts it into target/bench/venv.
#![allow(missing_docs, reason = "a test")]

use std::path::Path;
use std::process::Command;

use runtime::result::TaskResult;
use tests::fixture::Fixture;
use tests::programs::{program, run};

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

    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench/venv/bin/python3");
    assert!(python.is_file(), "{} is missing: `cargo xtask test` makes it", python.display());
    let theirs = run(Command::new(python).args(["-c", SCRIPT]).arg(&fixture.graph).arg(&slices));
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

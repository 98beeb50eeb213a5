//! In less than single precision a task says nearly what it says, or is computed in single precision.
#![allow(missing_docs, reason = "a test")]

use firmware_config::device::Weights;
use runtime::engine::{Engine, Mode, Output, Precision, has_instructions_for};
use runtime::infer::{LoadedTask, Loader};
use runtime::plugin::Plugin;
use runtime::result::TaskResult;
use tests::fixture::{Fixture, scan};
use tests::golden::with_golden;
use tests::programs::{program, run};

/// On a machine without the instructions there is nothing to compare.
fn precisions() -> Vec<(Precision, f32)> {
    let all = [(Precision::Bf16, 0.05), (Precision::Int8, 0.3)];
    let here: Vec<_> = all.into_iter().filter(|(precision, _)| has_instructions_for(*precision)).collect();
    println!("compared on this machine: {here:?}");
    here
}

/// What a task says of slices of waves.
fn waves(engine: &Engine) -> Output {
    let write = |s: usize, out: &mut [f32]| {
        out.iter_mut().enumerate().for_each(|(i, x)| *x = ((i + 7 * s) as f32 * 0.013).sin());
    };
    engine.run(3, &write).unwrap()
}

/// A golden case may be off by that much.
fn tolerant(fixture: &Fixture, logits: f32) {
    let mut plugin = with_golden(fixture);
    plugin.manifest.golden[0].tolerance.logits = logits;
    plugin.manifest.golden[0].tolerance.slice_weights = 1.0;
    plugin.write(&fixture.plugin).unwrap();
}

#[test]
fn fewer_bits_are_near_and_the_same_on_any_number_of_threads() {
    let fixture = Fixture::default();
    let bytes = std::fs::read(&fixture.graph).unwrap();
    let model = || runtime::engine::onnx::decode(&bytes).unwrap();
    let whole = waves(&Engine::of(model(), 1).unwrap());
    for (precision, most) in precisions() {
        let engine = |threads| Engine::of_precision(model(), precision, threads).unwrap();
        let found = waves(&engine(1));
        assert_eq!(engine(1).info().precision, precision);
        for threads in [2, 5] {
            assert_eq!(waves(&engine(threads)), found, "{precision:?} on {threads} threads");
        }
        let off: Vec<f32> = whole.logits.iter().zip(&found.logits).map(|(a, b)| (a - b).abs()).collect();
        assert!(off.iter().all(|off| *off < most), "{precision:?} is off by {off:?}");
        assert!(off.iter().any(|off| *off > 1e-6), "{precision:?} is not what was computed in");
    }
}

#[test]
fn golden_cases_decide_whether_a_task_is_computed_with_fewer_bits() {
    let fixture = Fixture::default();
    let load = |precision, weights| -> LoadedTask {
        let loader = Loader::new(&fixture.backbone, 1, weights).in_precision(precision);
        let (plugin, sha256) = Plugin::read(&fixture.plugin).unwrap();
        loader.load(plugin, sha256, &fixture.plugin, &fixture.backbone, true).unwrap()
    };
    for (precision, _) in precisions() {
        for (tolerance, expected) in [(1.0, precision), (1e-7, Precision::F32)] {
            tolerant(&fixture, tolerance);
            for (weights, mode) in [(Weights::Merged, Mode::Merged), (Weights::Shared, Mode::Shared)] {
                let info = load(precision, weights).engine.info();
                assert_eq!((info.precision, info.mode), (expected, mode), "{tolerance}");
            }
        }
        // One that has none cannot tell.
        let fixture = Fixture::default();
        let loader = Loader::new(&fixture.backbone, 1, Weights::Merged).in_precision(precision);
        let (plugin, sha256) = Plugin::read(&fixture.plugin).unwrap();
        let task = loader.load(plugin, sha256, &fixture.plugin, &fixture.backbone, true).unwrap();
        assert_eq!(task.engine.info().precision, Precision::F32);
    }
}

#[test]
fn verify_computes_in_the_precision_of_the_result() {
    let fixture = Fixture::default();
    tolerant(&fixture, 1.0);
    let volume = scan("RAS");
    assert_eq!(volume.dims, [20, 24, 9]);
    let command = |name: &str, flags: &[&str]| {
        let mut command = program("scanside");
        command.arg(name).args(flags).arg("--backbone").arg(&fixture.backbone);
        let outcome = run(command.arg("--plugin").arg(&fixture.plugin).arg("--input").arg(&fixture.scan));
        outcome.success();
        outcome.stdout
    };
    for (precision, _) in precisions() {
        let said = command("infer", &["--precision", precision.as_str()]);
        let result: TaskResult = serde_json::from_str(&said).unwrap();
        assert_eq!(result.provenance.engine.precision, precision);
        let claimed = fixture.folder().join("result.json");
        std::fs::write(&claimed, said).unwrap();
        command("verify", &[claimed.to_str().unwrap()]);
    }
}

use runtime::engine::Engine;

use super::*;
use crate::data::Study;
use crate::fit::fit;
use crate::fit::tests::Bench;

#[test]
fn the_worst_cases_are_drawn_with_the_heat_map_that_the_graph_gives() {
    let bench = Bench::new();
    let fitted = fit(&bench.options("run")).unwrap().unwrap();
    let exported = bench.export("run", "out").unwrap();
    let run = Run::open(&bench.path("run")).unwrap();
    let task = &run.settings().task;
    let network = run.network(&run.backbone(None).unwrap(), Device::Cpu).unwrap();
    let table = Table::read(&bench.path("data.csv"), task, false).unwrap();
    let study = Study::load(&table, &table.samples[3], task).unwrap();
    let found = network.predict(&study, 2).unwrap().views.remove(0);
    let slices = study.views[0].as_ref().unwrap();
    let engine = Engine::load(&std::fs::read(&exported.graph).unwrap(), 1).unwrap();
    let each = 3 * 28 * 28;
    let write = |s: usize, out: &mut [f32]| out.copy_from_slice(&slices.values[s * each..][..each]);
    let expected = engine.run(slices.count, &write).unwrap();
    let close =
        |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(close(&found.slice_weights, &expected.views[0].slice_weights));
    assert!(
        close(&found.heatmap, &expected.views[0].heatmap) && found.heatmap.iter().any(|&heat| heat > 1e-4)
    );

    let options = Options {
        run: bench.path("run"),
        pictures: vec![],
        wrong: 3,
        backbone: None,
        data: None,
        device: Device::Cpu,
        threads: 1,
    };
    let report = gather(&options).unwrap();
    assert_eq!(report.wrong.len(), 3);
    assert!(report.wrong.is_sorted_by(|a, b| a.loss >= b.loss));
    for case in &report.wrong {
        let png = case.png.as_deref().unwrap();
        assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"));
        let (label, truth, p) = &case.labels[0];
        assert_eq!(label, "bright");
        assert!((case.loss + if *truth { p.ln() } else { (1.0 - p).ln() }).abs() < 1e-12);
    }
    let page = report.render();
    assert!(page.contains("<h2>Most wrong</h2>") && page.contains("<h2>Operating points</h2>"));
    assert!(page.contains(&format!("<td>{:.3}</td>", fitted.temperature)));
    // Without pictures neither scans nor backbone are looked for.
    std::fs::remove_file(bench.path("data.csv")).unwrap();
    assert!(gather(&Options { wrong: 0, ..options.clone() }).unwrap().wrong.is_empty());
    assert!(gather(&options).unwrap_err().is_bad_input());
}

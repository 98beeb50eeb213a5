//! Fits of tasks of several views.

use firmware_config::{MissingViews, View};
use runtime::infer::LoadedTask;

use super::*;
use crate::predict::predict;

/// The bench with each volume beside the next volume of its class: `bright` is to be seen in the view `b` alone, since `a` is
/// drawn from both classes.
fn bench(missing: MissingViews) -> Bench {
    let mut bench = Bench::new();
    let mut csv = String::from("id,split,image:a,image:b,bright\n");
    for i in 0..20 {
        let split = i / 2 % 5;
        // Another volume of the same split, of either class.
        let other = 2 * split + 10 * usize::from(i < 10) + usize::from(i % 4 < 2);
        let a = if missing == MissingViews::Pool && i % 3 == 0 {
            String::new()
        } else {
            format!("{other}.nii.gz")
        };
        csv +=
            &format!("v{i},{},{a},{i}.nii.gz,{}\n", ["train", "train", "train", "val", "test"][split], i % 2);
    }
    std::fs::write(bench.path("data.csv"), csv).unwrap();
    let mut turned = bench.task.recipe.clone();
    turned.size = [42, 28];
    let views = [("a", View { recipe: Some(turned) }), ("b", View::default())];
    bench.task.views = views.map(|(name, view)| (name.to_owned(), view)).into();
    bench.task.missing_views = missing;
    // Studies of up to twelve slices, so that both ways through the network are taken.
    bench.task.train.chunk = 8;
    bench
}

#[test]
fn a_task_of_views_is_fitted_resumed_exported_and_reproduced() {
    for missing in [MissingViews::Refuse, MissingViews::Pool] {
        let bench = bench(missing);
        let straight = fit(&bench.options("run")).unwrap().unwrap();
        assert_eq!(fit(&Options { stop_after: Some(1), ..bench.options("resumed") }).unwrap(), None);
        let resumed = fit(&bench.options("resumed")).unwrap().unwrap();
        assert_eq!((straight.labels, straight.parameters), (resumed.labels, resumed.parameters));
        let run = Run::open(&bench.path("run")).unwrap();
        let content = run.best.content();
        assert_eq!(content, Run::open(&bench.path("resumed")).unwrap().best.content());
        let factors =
            |view: &str| content.keys().filter(|n| n.starts_with(&format!("views.{view}.lora."))).count();
        assert!(factors("a") == factors("b") && factors("a") > 0);

        let exported = bench.export("run", "out").unwrap();
        assert!(exported.parity.logits <= 1e-4, "{:?}", exported.parity);
        // The device merges the same graph, and does what libtorch did.
        let task = LoadedTask::merge(&backbone_path(), &exported.plugin, 1).unwrap();
        assert_eq!(task.graph_sha256, exported.graph_sha256);
        assert_eq!(task.check_golden().unwrap().cases, 2);
        let (settings, backbone) = (run.settings(), run.backbone(None).unwrap());
        let network = run.network(&backbone, Device::Cpu).unwrap();
        let table = Table::read(&settings.data.path, &settings.task, false).unwrap();
        let rows =
            predict(&network, &table, &settings.task, Some(&bench.path("kept")), 0.0, 1, false).unwrap();
        assert_eq!(rows.len(), 20);
        for row in [&rows[0], &rows[7]] {
            let volume = |image: &PathBuf| {
                runtime::volume::read(image, &runtime::volume::ReadOptions::default()).unwrap().remove(0)
            };
            let volumes: Vec<_> =
                table.samples[row.index].images.iter().map(|image| image.as_ref().map(volume)).collect();
            let volumes: Vec<_> = volumes.iter().map(Option::as_ref).collect();
            let prepared = task.prepare_views(&volumes).unwrap();
            let given: Vec<_> = prepared.iter().map(Option::as_ref).collect();
            let context = runtime::infer::Context::given(String::new(), std::time::SystemTime::UNIX_EPOCH);
            let found = task.classify(&given, &context, &|| ()).unwrap().output;
            assert!((found.logits[0] - row.logits[0]).abs() <= 1e-4, "{found:?}");
            assert_eq!(volumes[0].is_none(), found.view_weights[0] == 0.0);
        }
        // Read back from the folder of prepared slices, it is the same.
        let again =
            predict(&network, &table, &settings.task, Some(&bench.path("kept")), 0.0, 1, false).unwrap();
        assert_eq!(again, rows);
    }
}

#[test]
fn what_views_do_not_go_with_is_told() {
    let mut bench = bench(MissingViews::Refuse);
    let told = |options: &Options| fit(options).unwrap_err().to_string();
    let from = Options { init_from: Some(bench.path("adapter")), ..bench.options("a") };
    assert!(told(&from).contains("--init-from"), "{}", told(&from));
    bench.task.train.pixel = Some(crate::task::Pixel { weight: 1.0, width: 4 });
    assert!(told(&bench.options("b")).contains("train.pixel"));
}

//! Fits on tables with scans that cannot be read, and with prepared slices kept on disk.

use super::*;

/// Breaks a training volume, a validation volume and a test volume, each in its own way.
fn broken(bench: &Bench) {
    std::fs::write(bench.path("0.nii.gz"), "no scan").unwrap();
    let sound = bytes(&bench.path("6.nii.gz"));
    std::fs::write(bench.path("6.nii.gz"), &sound[..sound.len() / 2]).unwrap();
    let geometry = Geometry::from_columns([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 5.0]], [0.0; 3]);
    let voxels: Vec<f32> = (0..14 * 14 * 3).map(|i| if i == 99 { f32::NAN } else { i as f32 }).collect();
    write_nifti(&bench.path("8.nii.gz"), [14, 14, 3], &voxels, &geometry).unwrap();
}

#[test]
fn a_scan_that_cannot_be_read_is_named_with_its_row() {
    let bench = Bench::new();
    broken(&bench);
    let error = fit(&bench.options("run")).unwrap_err();
    let text = error.to_string();
    assert!(error.is_bad_input() && error.is_unreadable_scan(), "{text}");
    assert!(text.starts_with("the scan of `v0` (row 2 of ") && text.contains("0.nii.gz is "), "{text}");
}

#[test]
fn unreadable_scans_are_skipped_counted_and_named_where_asked_for() {
    let mut bench = Bench::new();
    broken(&bench);
    bench.task.train.skip_unreadable = true;
    let straight = fit(&Options { probe: true, ..bench.options("straight") }).unwrap().unwrap();
    let ids: Vec<&str> = straight.skipped.keys().map(String::as_str).collect();
    assert_eq!(ids, ["v0", "v6", "v8"]);
    assert!(straight.skipped["v8"].contains("NaN") && straight.skipped["v6"].contains("6.nii.gz"));
    assert!(straight.probe_auroc.is_some());
    let predictions = |out: &str| bytes(&bench.path(out).join(file::PREDICTIONS));
    let text = String::from_utf8(predictions("straight")).unwrap();
    assert_eq!(text.lines().count(), 1 + 8 - 2, "validation and test volumes but the two");
    assert!(!text.contains("v6,") && !text.contains("v8,"));
    // One training and one validation volume, in every epoch.
    let metrics = String::from_utf8(bytes(&bench.path("straight").join(file::METRICS))).unwrap();
    let column: Vec<&str> = metrics.lines().map(|line| line.split(',').nth(7).unwrap()).collect();
    assert_eq!(column, ["skipped", "2", "2", "2"]);

    // The export compares on the first scans that can be read: two of validation, two of test, and the golden cases.
    let exported = bench.export("straight", "out");
    assert_eq!(exported.unwrap().parity.volumes, 6);

    // An interruption changes nothing.
    fit(&Options { stop_after: Some(1), ..bench.options("resumed") }).unwrap();
    let resumed = fit(&bench.options("resumed")).unwrap().unwrap();
    assert_eq!((resumed.skipped, predictions("resumed")), (straight.skipped, predictions("straight")));

    // The steps are those of the table without the volume: a batch of one fewer.
    let last = Checkpoint::read(&bench.path("straight").join(file::LAST)).unwrap();
    assert_eq!(last.state.step, 3 * 3);
}

#[test]
fn a_vanished_scan_and_a_table_of_none_are_no_matter_of_skipping() {
    let mut bench = Bench::new();
    bench.task.train.skip_unreadable = true;
    let options = bench.options("run");
    let csv = String::from_utf8(bytes(&options.data)).unwrap();
    for line in csv.lines().skip(1) {
        std::fs::write(bench.path(line.split(',').nth(2).unwrap()), "no scan").unwrap();
    }
    let error = fit(&options).unwrap_err().to_string();
    assert!(error.contains("none of the 12 training volumes can be read"), "{error}");
    assert!(!options.out.join(file::LAST).exists());

    let table = Table::read(&options.data, &bench.task, false).unwrap();
    let cache = Cache::new(&table, &bench.task, 0).skipping(true);
    assert_eq!((cache.get(3).unwrap(), cache.skipped().len()), (None, 1));
    // A share that is not mounted must not look like a table of broken scans.
    std::fs::remove_file(table.samples[5].image()).unwrap();
    assert!(cache.get(5).unwrap_err().to_string().contains("cannot read"));
}

#[test]
fn slices_on_disk_give_the_same_bits_and_are_used() {
    let bench = Bench::new();
    let kept = Options { cache: Some(bench.path("cache")), ..bench.options("kept") };
    fit(&bench.options("plain")).unwrap();
    fit(&kept).unwrap();
    let content = |out: &str| Run::open(&bench.path(out)).unwrap().best.content();
    let predictions = |out: &str| bytes(&bench.path(out).join(file::PREDICTIONS));
    assert_eq!((content("plain"), predictions("plain")), (content("kept"), predictions("kept")));
    let entries = || std::fs::read_dir(bench.path("cache")).unwrap().count();
    assert_eq!(entries(), 20);

    // Scans of the same length and time are taken to be the same, so that nothing is read from these.
    let table = Table::read(&kept.data, &bench.task, false).unwrap();
    for sample in &table.samples {
        let (length, changed) = {
            let found = sample.image().metadata().unwrap();
            (found.len(), found.modified().unwrap())
        };
        std::fs::write(sample.image(), vec![0; length as usize]).unwrap();
        std::fs::File::options().write(true).open(sample.image()).unwrap().set_modified(changed).unwrap();
    }
    fit(&Options { out: bench.path("again"), ..kept.clone() }).unwrap();
    assert_eq!(predictions("again"), predictions("plain"));
    let run = Run::open(&bench.path("again")).unwrap();
    let network = run.network(&run.backbone(None).unwrap(), Device::Cpu).unwrap();
    let predict = |cache| predict::predict(&network, &table, &bench.task, cache, 0.0, 1, false);
    assert_eq!(predict(kept.cache.as_deref()).unwrap().len(), 20);
    assert!(predict(None).is_err());
    assert_eq!(entries(), 20);
}

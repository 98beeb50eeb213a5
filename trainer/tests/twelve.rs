//! The benchmark's twelve suites, from the real scans in `target/assets/scans` (`cargo xtask assets` fetches them).

use std::path::{Path, PathBuf};

use trainer::data::{Split as Part, Table};
use trainer::metrics::auroc;
use trainer::phantom::{Counts, Label, Phantom, Split, Suite, Templates, generate, render};
use trainer::task::Task;

fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/assets/scans")
}

fn load(suite: &Suite) -> Templates {
    Templates::load(suite, &assets()).unwrap_or_else(|error| panic!("{error}"))
}

/// The suite with a quarter of the pixels, and few volumes.
fn small(name: &str) -> Suite {
    Suite { counts: Counts { train: 4, val: 2, test: 3 }, ..coarse(name) }
}

/// The suite with a quarter of the pixels.
fn coarse(name: &str) -> Suite {
    let mut suite = Suite::load(name).unwrap();
    for grid in
        std::iter::once(&mut suite.grid).chain(suite.views.values_mut().filter_map(|v| v.grid.as_mut()))
    {
        for axis in 0..3 {
            if grid.dims[axis] > 50 {
                grid.dims[axis] /= 2;
                grid.spacing_mm[axis] *= 2.0;
            }
        }
    }
    suite
}

#[test]
fn there_are_twelve_and_the_test_is_on_other_templates() {
    let names: Vec<&str> = Suite::twelve().collect();
    assert_eq!(names.len(), 12);
    for (i, name) in names.iter().enumerate() {
        assert!(name.starts_with(&format!("t{:02}-", i + 1)), "{name}");
        let suite = Suite::load(name).unwrap();
        let files = |split| suite.templates_of(split).map(|t| (&t.file, t.mirror)).collect::<Vec<_>>();
        for test in files(Split::Test) {
            assert!(
                !files(Split::Train).contains(&test) && !files(Split::Val).contains(&test),
                "{name}: {test:?}"
            );
        }
    }
    let labels = |name| Suite::load(name).unwrap().targets().iter().filter(|t| !t.hidden).count();
    assert_eq!([labels(names[0]), labels(names[10]), labels(names[11])], [1, 18, 75]);
}

#[test]
fn counts_are_three_numbers() {
    assert_eq!("60,20, 6".parse(), Ok(Counts { train: 60, val: 20, test: 6 }));
    for wrong in ["60,20", "60,20,60,1", "60,x,60", "-1,2,3", ""] {
        assert!(wrong.parse::<Counts>().unwrap_err().contains("three numbers"), "{wrong}");
    }
}

#[test]
fn what_is_made_is_what_fit_reads() {
    let folder = tempfile::tempdir().unwrap();
    for name in Suite::twelve() {
        let (suite, out) = (small(name), folder.path().join(name));
        let summary = generate(&suite, &assets(), &out, 2, &|_, _| {}).unwrap();
        let task = Task::read(&out.join("task.toml")).unwrap();
        for patch in [14, 16] {
            task.validate(patch).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        assert_eq!(task.laterality_warning(), None, "{name}");
        let names: Vec<String> =
            suite.targets().into_iter().filter(|t| !t.hidden).map(|target| target.name).collect();
        assert_eq!(task.labels, names);
        assert!(task.view_names().into_iter().eq(suite.views.keys()), "{name}");

        let table = Table::read(&out.join("data.csv"), &task, false).unwrap();
        assert_eq!((table.samples.len(), summary.volumes), (9, 9));
        assert_eq!([Part::Train, Part::Val, Part::Test].map(|s| table.split(s).len()), [4, 2, 3]);
        for sample in &table.samples {
            assert!(sample.images.iter().all(Option::is_some) && sample.targets.iter().all(Option::is_some));
            assert_eq!(sample.images.len(), suite.views.len().max(1));
            let has_one = sample.targets.contains(&Some(true));
            assert_eq!(sample.mask.is_some(), suite.masks && has_one, "{}", sample.id);
        }
        let echo = Suite::load(out.join("suite.toml").to_str().unwrap()).unwrap();
        assert_eq!(echo, suite);
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_whatever_the_threads_and_counts() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["t09-shoulder-planes", "t11-chest"] {
        let mut suite = small(name);
        let (one, two) = (folder.path().join(name).join("1"), folder.path().join(name).join("2"));
        generate(&suite, &assets(), &one, 1, &|_, _| {}).unwrap();
        suite.counts.train += 3;
        generate(&suite, &assets(), &two, 2, &|_, _| {}).unwrap();
        for file in std::fs::read_dir(one.join("images")).unwrap() {
            let file = file.unwrap().path();
            let other = two.join("images").join(file.file_name().unwrap());
            assert!(std::fs::read(&file).unwrap() == std::fs::read(other).unwrap(), "{}", file.display());
        }
        let text = |folder: &Path| std::fs::read_to_string(folder.join("data.csv")).unwrap();
        let (one, two) = (text(&one), text(&two));
        assert!(one.lines().all(|row| two.lines().any(|r| r == row)));
    }
}

#[test]
fn each_finding_of_the_many_can_be_seen() {
    for name in ["t11-chest", "t12-head"] {
        let suite = Suite::load(name).unwrap();
        let templates = load(&suite);
        let single = |label: &Label, sites: Vec<String>| Label { prevalence: 1.0, sites, ..label.clone() };
        let labels: Vec<Label> = suite
            .labels
            .iter()
            .flat_map(|label| match label.sites.as_slice() {
                [] => vec![single(label, Vec::new())],
                sites => sites.iter().map(|site| single(label, vec![site.clone()])).collect(),
            })
            .collect();
        assert_eq!(labels.len(), suite.targets().len());
        for (i, label) in labels.into_iter().enumerate() {
            let alone = Suite { labels: vec![label], masks: true, ..suite.clone() };
            for split in [Split::Train, Split::Test] {
                let mask = render(&alone, &templates, split, i % 5).unwrap().mask.unwrap();
                let voxels = mask.iter().filter(|m| **m > 0.0).count();
                assert!(voxels >= 3, "{name} {split} {}: {voxels} voxels", alone.targets()[0].name);
            }
        }
    }
}

#[test]
fn a_view_of_inverted_contrast_shows_the_finding_the_other_way_about() {
    let mut suite = small("t10-shoulder-contrasts");
    (suite.variation.noise, suite.variation.bias) = ([0.0, 0.0], 0.0);
    suite.variation.level = [1.0, 1.0];
    let templates = load(&suite);
    let mut plain = suite.clone();
    plain.finding.contrast = [0.0, 0.0];
    let [with, without] = [&suite, &plain].map(|s| render(s, &templates, Split::Train, 3).unwrap());
    assert!(with.labels[0] && with.mask.is_none());
    let names: Vec<_> = with.scans.iter().map(|s| s.view.as_deref()).collect();
    assert_eq!(names, [Some("t1"), Some("t2")]);
    let change = |view: usize| {
        let pairs = with.scans[view].voxels.iter().zip(&without.scans[view].voxels);
        let changed: Vec<f32> = pairs.map(|(a, b)| a - b).filter(|d| d.abs() > 20.0).collect();
        (changed.len(), changed.iter().sum::<f32>() / changed.len() as f32)
    };
    let ((dark, darker), (bright, brighter)) = (change(0), change(1));
    assert!(
        dark > 10 && bright > 10 && darker < 0.0 && brighter > 0.0,
        "{dark} {darker} {bright} {brighter}"
    );
}

/// For each label with a column the AUROC of the mean of the volume, or of the view, that gives most away; taken the other way about
/// where that is below 0.5.
fn by_the_mean(suite: &Suite, templates: &Templates) -> Vec<(String, f64)> {
    let of = |part: usize| -> Vec<Phantom> {
        (0..suite.counts.test)
            .filter(|i| i % 2 == part)
            .filter_map(|i| render(suite, templates, Split::Test, i))
            .collect()
    };
    let phantoms: Vec<Phantom> = std::thread::scope(|scope| {
        let other = scope.spawn(|| of(1));
        let mut all = of(0);
        all.extend(other.join().unwrap());
        all
    });
    let mean = |v: &[f32]| v.iter().map(|&v| f64::from(v)).sum::<f64>() / v.len() as f64;
    let targets = suite.targets();
    let asked = targets.iter().enumerate().filter(|(_, target)| !target.hidden);
    asked
        .map(|(i, target)| {
            let labels: Vec<bool> = phantoms.iter().map(|p| p.labels[i]).collect();
            let of_view = |view: usize| {
                let means: Vec<f64> = phantoms.iter().map(|p| mean(&p.scans[view].voxels)).collect();
                let area = auroc(&means, &labels).unwrap();
                area.max(1.0 - area)
            };
            (target.name.clone(), (0..phantoms[0].scans.len()).map(of_view).fold(0.0, f64::max))
        })
        .collect()
}

#[test]
fn a_volumes_mean_gives_no_suite_away() {
    // All but the last are made from the same scans.
    let brain = load(&coarse("t01-bowel"));
    for name in Suite::twelve() {
        let suite = coarse(name);
        let head = (name == "t12-head").then(|| load(&suite));
        let areas = by_the_mean(&suite, head.as_ref().unwrap_or(&brain));
        let macro_mean = areas.iter().map(|(_, area)| area).sum::<f64>() / areas.len() as f64;
        let high: Vec<String> =
            areas.iter().filter(|(_, a)| *a > 0.75).map(|(label, a)| format!("{label} {a:.2}")).collect();
        println!(
            "{name}: AUROC of the mean {macro_mean:.3} over {} labels; above 0.75: {high:?}",
            areas.len()
        );
        assert!(macro_mean < 0.75, "{name}: AUROC of the mean is {macro_mean:.2}");
    }
}

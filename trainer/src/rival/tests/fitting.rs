use runtime::volume::{Geometry, write_nifti};
use tempfile::TempDir;

use std::time::Duration;

use super::super::fit::{Item, gradients};
use super::*;
use crate::data::{Cache, Split, Table};
use crate::metrics::auroc;
use crate::model::Group;
use crate::optim::{AdamW, Rates};
use crate::predict;

/// Volumes of which every other one is brighter in the middle of one slice, and whether it is.
fn examples() -> Vec<(Slices, [Option<bool>; 1])> {
    let example = |i: usize| {
        let mut slices = slices(3, i as u64);
        slices.values.iter_mut().for_each(|value| *value *= 0.3);
        if i % 2 == 1 {
            let start = (i / 2 % 3) * 3 * 784;
            for row in slices.values[start..start + 3 * 784].chunks_exact_mut(28).skip(2) {
                row[6..20].iter_mut().for_each(|value| *value += 2.0);
            }
        }
        (slices, [Some(i % 2 == 1)])
    };
    (0..4).map(example).collect()
}

fn step<'a>(
    rival: &dyn Rival,
    task: &Task,
    examples: impl IntoIterator<Item = &'a (Slices, [Option<bool>; 1])>,
) -> Option<(f64, Tensor)> {
    let item = |(slices, targets): &'a (Slices, [Option<bool>; 1])| Item {
        slices: slices.clone().into(),
        targets: targets.as_slice(),
    };
    gradients(rival, task, Device::Cpu, examples.into_iter().map(item).collect()).unwrap()
}

#[test]
fn every_network_learns_a_few_volumes_by_heart() {
    let (task, examples) = (task(TASK), examples());
    // VoCo's takes a second for a step; its gradients are compared with MONAI's.
    for method in NETWORKS.into_iter().filter(|&method| method != Method::Voco) {
        let rival = small(method);
        let named = rival.weights().named().iter();
        let mut optimiser =
            AdamW::new(named.map(|(name, tensor)| (name.clone(), tensor.shallow_clone(), Group::Head)))
                .unwrap();
        let (lr, steps) = if method == Method::SliceCnn { (2e-3, 20) } else { (2e-2, 40) };
        let mut losses = Vec::new();
        for _ in 0..steps {
            let (loss, gradients) = step(rival.as_ref(), &task, &examples).unwrap();
            optimiser.step(&gradients, |_| Rates { lr, decay: 0.0 }).unwrap();
            losses.push(loss);
        }
        let last = losses[losses.len() - 1];
        assert!(losses[0] > 0.3 && last < 0.1, "{}: {losses:?}", method.name());
    }
}

#[test]
fn volumes_of_several_sizes_are_one_batch() {
    let task = task(TASK);
    let rival = small(Method::Mst);
    let mut all = examples();
    all[1].0 = slices(2, 8);
    all[2].1 = [None];
    let (loss, found) = step(rival.as_ref(), &task, &all).unwrap();
    // Three known labels; without batch norm each volume counts for itself.
    let each: Vec<(f64, Tensor)> = [0, 1, 3].map(|i| step(rival.as_ref(), &task, [&all[i]]).unwrap()).into();
    assert!((loss - each.iter().map(|(loss, _)| loss).sum::<f64>() / 3.0).abs() < 1e-6);
    let mean = (&each[0].1 + &each[1].1 + &each[2].1) / 3.0;
    assert!(off(&found, &mean) < 1e-5 && found.abs().max().double_value(&[]) > 1e-2);
    for (_, targets) in &mut all {
        *targets = [None];
    }
    assert!(step(rival.as_ref(), &task, &all).is_none());
}

/// Twelve small volumes of three and four slices.
fn bench() -> (TempDir, Task, Table) {
    let folder = tempfile::tempdir().unwrap();
    let mut csv = String::from("id,split,image,bright\n");
    for i in 0..12 {
        let dims = [8, 8, 3 + i / 2 % 2];
        let positive = i % 2;
        let noise = values(dims.iter().product(), i as u64);
        let voxels: Vec<f32> = noise.iter().map(|x| 200.0 + 100.0 * x + 300.0 * positive as f32).collect();
        let geometry = Geometry::from_columns([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 5.0]], [0.0; 3]);
        write_nifti(&folder.path().join(format!("{i}.nii")), dims, &voxels, &geometry).unwrap();
        let split = ["train", "train", "val", "test"][i / 2 % 4];
        csv += &format!("v{i},{split},{i}.nii,{positive}\n");
    }
    let path = folder.path().join("data.csv");
    std::fs::write(&path, csv).unwrap();
    let task = task(TASK);
    let table = Table::read(&path, &task, false).unwrap();
    (folder, task, table)
}

fn options<'a>(method: Method, task: &'a Task, cache: &'a Cache<'a>, lr: f64) -> Options<'a> {
    Options {
        task,
        cache,
        device: Device::Cpu,
        threads: 1,
        settings: Settings { lr, ..Settings::usual(method, task) },
        checkpoint: None,
        stop_after: None,
        progress: false,
    }
}

/// A fit without the times of its epochs, and its network's logits for all volumes that were not trained on.
type Found = (Vec<crate::fit::Epoch>, usize, Vec<predict::Row>);

fn found(rival: &dyn Rival, fitted: Fitted, cache: &Cache<'_>) -> Found {
    // As many threads as the fit had, since sums depend on them.
    tch::set_num_threads(1);
    let history = fitted.history.into_iter().map(|epoch| crate::fit::Epoch { seconds: 0.0, ..epoch });
    let samples = cache.table().samples.iter().enumerate();
    let rows = samples.filter(|(_, sample)| sample.split != Split::Train).map(|(index, _)| {
        let study = cache.get(index).unwrap().unwrap();
        let logits = logits(rival, study.views[0].as_ref().unwrap(), Device::Cpu).unwrap();
        predict::Row { index, logits, located: None }
    });
    (history.collect(), fitted.best, rows.collect())
}

fn fitted(method: Method, task: &Task, table: &Table, lr: f64) -> Result<Found, Error> {
    let (cache, rival) = (Cache::new(table, task, 1 << 24), small(method));
    let fitted = fit(method, rival.as_ref(), &options(method, task, &cache, lr))?.unwrap();
    assert!(fitted.seconds > 0.0);
    Ok(found(rival.as_ref(), fitted, &cache))
}

#[test]
fn a_fit_learns_keeps_its_best_epoch_and_is_the_same_each_time() {
    let (_folder, task, table) = bench();
    for method in [Method::DenseNet121, Method::SliceCnn, Method::Mst] {
        let run = || fitted(method, &task, &table, 5e-3).unwrap();
        let (first, second) = (run(), run());
        assert_eq!(first, second, "{}", method.name());
        let (history, best, rows) = first;
        assert_eq!(history.len(), 4);
        assert!(history[3].train_loss < history[0].train_loss, "{history:?}");
        // The network is left as its best epoch had it.
        let val: Vec<_> =
            rows.into_iter().filter(|row| table.samples[row.index].split == Split::Val).collect();
        let (scores, truth) = predict::known(&table, &task, &val, 0);
        assert_eq!(auroc(&scores, &truth), history[best - 1].val_auroc);
        assert_eq!(predict::mean_loss(&table, &task, &val).unwrap(), history[best - 1].val_loss);
    }
}

#[test]
fn an_interrupted_fit_goes_on_to_the_same_bits() {
    let (folder, task, table) = bench();
    // With and without running statistics; MST's are of a backbone too.
    for method in [Method::ResNet18, Method::Mst] {
        let cache = Cache::new(&table, &task, 1 << 24);
        let path = folder.path().join(method.name());
        let run = |checkpoint, stop_after| {
            let options = Options { checkpoint, stop_after, ..options(method, &task, &cache, 5e-3) };
            let rival = small(method);
            let fitted = fit(method, rival.as_ref(), &options).unwrap();
            fitted.map(|fitted| found(rival.as_ref(), fitted, &cache))
        };
        let kept = |seconds| Some(Kept { path: path.clone(), every: Duration::from_secs(seconds) });
        let straight = run(None, None);
        // A short fit writes none.
        assert_eq!(run(kept(3600), Some(1)), None);
        assert!(!path.exists());
        for _ in 0..2 {
            assert_eq!(run(kept(0), Some(1)), None);
        }
        assert_eq!(run(kept(0), None), straight, "{}", method.name());
        // The last epoch's stands: nothing is left to be done.
        assert_eq!(run(kept(0), Some(0)), straight);
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(!names.iter().any(|name| name.extension().is_some_and(|e| e == "new")), "{names:?}");

        std::fs::write(&path, b"none").unwrap();
        let options = Options { checkpoint: kept(0), ..options(method, &task, &cache, 5e-3) };
        let text = fit(method, small(method).as_ref(), &options).unwrap_err().to_string();
        assert!(text.contains("no checkpoint") && text.contains("remove it"), "{text}");
    }
}

#[test]
fn a_fit_that_diverges_names_the_volumes_and_the_rate() {
    let (_folder, task, table) = bench();
    let error = fitted(Method::ResNet18, &task, &table, f64::INFINITY).unwrap_err();
    let text = error.to_string();
    assert!(
        !error.is_bad_input() && text.contains("resnet18-3d") && text.contains("lower its learning rate"),
        "{text}"
    );
}

#[test]
fn a_fit_stops_when_nothing_gets_better() {
    let (_folder, mut task, table) = bench();
    (task.train.epochs, task.train.patience, task.train.augment) = (9, Some(2), crate::task::Augment::OFF);
    // Nothing moves, and without batch norm nothing can change.
    let (history, best, _) = fitted(Method::Mst, &task, &table, 0.0).unwrap();
    assert_eq!((best, history.len()), (1, 3));
}

#[test]
fn usual_settings_are_the_papers() {
    let task = task(TASK);
    let mst = Settings::usual(Method::Mst, &task);
    assert_eq!((mst.lr, mst.decay, mst.sampling), (1e-6, 1e-2, Sampling::Balanced));
    let dense = Settings::usual(Method::DenseNet121, &task);
    assert_eq!((dense.lr, dense.decay, dense.sampling), (1e-4, 1e-5, Sampling::All));
}

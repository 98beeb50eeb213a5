use runtime::volume::{Geometry, write_nifti};
use tempfile::TempDir;

use super::super::fit::{Item, fit_built, gradients};
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
    for method in NETWORKS {
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

fn fitted(method: Method, task: &Task, table: &Table, lr: f64) -> Result<Fitted, Error> {
    let cache = Cache::new(table, task, 1 << 24);
    let settings = Settings { lr, ..Settings::usual(method, task) };
    let options = Options {
        task,
        cache: &cache,
        backbone: None,
        weights: None,
        device: Device::Cpu,
        threads: 1,
        settings,
        progress: false,
    };
    fit_built(method, small(method).as_ref(), &options)
}

#[test]
fn a_fit_learns_keeps_its_best_epoch_and_is_the_same_each_time() {
    let (_folder, task, table) = bench();
    for method in [Method::DenseNet121, Method::SliceCnn, Method::Mst] {
        let run = || fitted(method, &task, &table, 5e-3).unwrap();
        let (first, second) = (run(), run());
        let untimed = |fitted: &Fitted| {
            let history =
                fitted.history.iter().map(|epoch| crate::fit::Epoch { seconds: 0.0, ..epoch.clone() });
            (fitted.rows.clone(), history.collect::<Vec<_>>(), fitted.best, fitted.val_auroc)
        };
        assert_eq!(untimed(&first), untimed(&second), "{}", method.name());
        assert_eq!(first.history.len(), 4);
        assert!(first.history[3].train_loss < first.history[0].train_loss, "{:?}", first.history);
        assert_eq!(first.parameters, small(method).weights().count());
        // Rows are of the best epoch, validation and test volumes in order.
        let known = table.samples.iter().enumerate().filter(|(_, sample)| sample.split != Split::Train);
        let indices: Vec<usize> = first.rows.iter().map(|row| row.index).collect();
        assert_eq!(indices, known.map(|(i, _)| i).collect::<Vec<_>>());
        let val: Vec<_> =
            first.rows.iter().filter(|row| table.samples[row.index].split == Split::Val).cloned().collect();
        let (scores, truth) = predict::known(&table, &task, &val, 0);
        assert_eq!(
            (auroc(&scores, &truth), first.val_auroc),
            (first.val_auroc, first.history[first.best - 1].val_auroc)
        );
        assert_eq!(predict::mean_loss(&table, &task, &val).unwrap(), first.history[first.best - 1].val_loss);
        assert_eq!(first.resampled, if method == Method::DenseNet121 { first.rows.len() } else { 0 });
        assert!(first.fit_seconds > 0.0 && first.predict_seconds > 0.0);
    }
}

#[test]
fn a_method_is_built_and_fitted() {
    let (folder, mut task, table) = bench();
    task.train.epochs = 1;
    let (cache, backbone) = (Cache::new(&table, &task, 0), backbone());
    let missing = folder.path().join("none.safetensors");
    let run = |weights| {
        let settings = Settings::usual(Method::Mst, &task);
        let backbone = Some(&backbone);
        let (task, cache, device) = (&task, &cache, Device::Cpu);
        fit(
            Method::Mst,
            &Options { task, cache, backbone, weights, device, threads: 1, settings, progress: false },
        )
    };
    let fitted = run(None).unwrap();
    assert_eq!((fitted.best, fitted.history.len(), fitted.rows[0].logits.len()), (1, 1, 1));
    assert!(fitted.parameters > backbone.arch.dim * backbone.arch.dim);
    let text = run(Some(missing.as_path())).unwrap_err().to_string();
    assert!(text.contains("`mst`") && text.contains("none.safetensors"), "{text}");
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
    let found = fitted(Method::Mst, &task, &table, 0.0).unwrap();
    assert_eq!((found.best, found.history.len()), (1, 3));
}

#[test]
fn usual_settings_are_the_papers() {
    let task = task(TASK);
    let mst = Settings::usual(Method::Mst, &task);
    assert_eq!((mst.lr, mst.decay, mst.sampling), (1e-6, 1e-2, Sampling::Balanced));
    let dense = Settings::usual(Method::DenseNet121, &task);
    assert_eq!((dense.lr, dense.decay, dense.sampling), (1e-4, 1e-5, Sampling::All));
}

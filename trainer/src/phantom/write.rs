//! A suite on disk: volumes, masks, `data.csv`, `task.toml`.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use runtime::files::write_atomically;
use runtime::volume;
use serde::Serialize;

use super::label::Target;
use super::suite::{Split, Suite};
use super::template::Templates;
use super::{PhantomError, render};

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Rows of `data.csv`; of a suite of views each has several volumes.
    pub volumes: usize,
    /// Those with a finding.
    pub positives: usize,
    /// Splits and labels of which all volumes of the split have it, or none has: there is no AUROC. Empty splits are not
    /// listed.
    pub one_class: Vec<(Split, String)>,
}

/// A row of `data.csv`.
struct Row {
    id: String,
    split: Split,
    /// One a view.
    images: Vec<String>,
    mask: String,
    /// One a label with a column.
    labels: Vec<bool>,
}

/// Makes a whole suite in the folder `out`, with `threads` threads, from the scans in the folder `assets`.
///
/// Writes `images/ID.nii.gz` (`images/ID-VIEW.nii.gz`), `masks/ID.nii.gz` for positive volumes of a suite with masks, `data.csv` (paths
/// relative to it), `suite.toml` (the suite as it was used) and `task.toml` (ready for `fit`). `data.csv` is written last, so that
/// it never names a file that is not there. `progress` is told volumes done and in all.
pub fn generate(
    suite: &Suite,
    assets: &Path,
    out: &Path,
    threads: usize,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Summary, PhantomError> {
    suite.validate(&suite.name)?;
    let templates = Templates::load(suite, assets)?;
    for folder in ["images", "masks"].into_iter().take(if suite.masks { 2 } else { 1 }) {
        let path = out.join(folder);
        std::fs::create_dir_all(&path).map_err(PhantomError::io("write", &path))?;
    }
    let jobs: Vec<(Split, usize)> =
        Split::ALL.iter().flat_map(|&s| (0..suite.count(s)).map(move |i| (s, i))).collect();
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failed = Mutex::new(None);
    let rows = Mutex::new(Vec::with_capacity(jobs.len()));
    let work = || {
        while let Some(&(split, index)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            match one(suite, &templates, split, index, out) {
                Ok(row) => lock(&rows).push((split as usize, index, row)),
                Err(error) => {
                    lock(&failed).get_or_insert(error);
                    next.store(jobs.len(), Ordering::Relaxed);
                }
            }
            progress(done.fetch_add(1, Ordering::Relaxed) + 1, jobs.len());
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(work);
        }
    });
    if let Some(error) = lock(&failed).take() {
        return Err(error);
    }
    let mut rows = std::mem::take(&mut *lock(&rows));
    rows.sort_unstable_by_key(|(split, index, _)| (*split, *index));
    let rows: Vec<Row> = rows.into_iter().map(|(_, _, row)| row).collect();

    write_text(&out.join("suite.toml"), &as_toml(&suite.name, suite)?)?;
    let mut task = suite.task.clone();
    task.entry("labels").or_insert_with(|| columns(suite).into());
    write_text(&out.join("task.toml"), &as_toml(&suite.name, &task)?)?;
    write_text(&out.join("data.csv"), &table(suite, &rows))?;
    let positives = rows.iter().filter(|r| r.labels.contains(&true)).count();
    Ok(Summary { volumes: rows.len(), positives, one_class: one_class(suite, &rows) })
}

/// The names of the labels with a column.
fn columns(suite: &Suite) -> Vec<String> {
    suite.targets().into_iter().filter(|t| !t.hidden).map(|t| t.name).collect()
}

fn table(suite: &Suite, rows: &[Row]) -> String {
    let mut header = vec!["id".to_owned(), "split".into()];
    if suite.views.is_empty() {
        header.push("image".into());
    }
    header.extend(suite.views.keys().map(|view| format!("image:{view}")));
    header.extend(suite.masks.then(|| "mask".into()));
    header.extend(columns(suite));
    let mut table = header.join(",") + "\n";
    for Row { id, split, images, mask, labels } in rows {
        let mut cells = vec![id.clone(), split.to_string()];
        cells.extend_from_slice(images);
        cells.extend(suite.masks.then(|| mask.clone()));
        cells.extend(labels.iter().map(|has| u8::from(*has).to_string()));
        table += &(cells.join(",") + "\n");
    }
    table
}

fn one_class(suite: &Suite, rows: &[Row]) -> Vec<(Split, String)> {
    let mut found = Vec::new();
    for split in Split::ALL {
        let of_split: Vec<&Row> = rows.iter().filter(|r| r.split == split).collect();
        for (i, label) in columns(suite).into_iter().enumerate() {
            let first = of_split.first().map(|r| r.labels[i]);
            if first.is_some_and(|first| of_split.iter().all(|r| r.labels[i] == first)) {
                found.push((split, label));
            }
        }
    }
    found
}

fn one(
    suite: &Suite,
    templates: &Templates,
    split: Split,
    index: usize,
    out: &Path,
) -> Result<Row, PhantomError> {
    let Some(phantom) = render(suite, templates, split, index) else {
        return Err(PhantomError::Suite {
            suite: suite.name.clone(),
            field: "template.splits".into(),
            found: format!("no template for {split}"),
            expected: "one or more a split".into(),
        });
    };
    let id = format!("{}-{split}-{index:04}", suite.name);
    let mut images = Vec::new();
    for scan in &phantom.scans {
        let view = scan.view.as_ref().map_or(String::new(), |view| format!("-{view}"));
        let image = format!("images/{id}{view}.nii.gz");
        volume::write_nifti(&out.join(&image), scan.dims, &scan.voxels, &scan.geometry)?;
        images.push(image);
    }
    let mut mask = String::new();
    if let (Some(voxels), [scan]) = (&phantom.mask, phantom.scans.as_slice()) {
        mask = format!("masks/{id}.nii.gz");
        volume::write_nifti(&out.join(&mask), scan.dims, voxels, &scan.geometry)?;
    }
    let shown = |(target, has): (Target, &bool)| (!target.hidden).then_some(*has);
    let labels = suite.targets().into_iter().zip(&phantom.labels).filter_map(shown).collect();
    Ok(Row { id, split, images, mask, labels })
}

/// The lock; a thread that panicked has already brought the scope down.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn as_toml(suite: &str, value: &impl Serialize) -> Result<String, PhantomError> {
    toml::to_string(value).map_err(|error| PhantomError::Suite {
        suite: suite.into(),
        field: "contents".into(),
        found: error.to_string(),
        expected: "what TOML can hold".into(),
    })
}

fn write_text(path: &Path, text: &str) -> Result<(), PhantomError> {
    write_atomically(path, text.as_bytes()).map_err(PhantomError::io("write", path))
}

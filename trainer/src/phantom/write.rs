//! A suite on disk: volumes, masks, `data.csv`, `task.toml`.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use runtime::files::write_atomically;
use runtime::volume;
use serde::Serialize;

use super::suite::{Split, Suite};
use super::template::Templates;
use super::{PhantomError, render};

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Volumes.
    pub volumes: usize,
    /// Those with a finding.
    pub positives: usize,
}

/// A row of `data.csv`.
struct Row {
    id: String,
    split: Split,
    image: String,
    mask: String,
    positive: bool,
}

/// Makes a whole suite in the folder `out`, with `threads` threads, from the scans in the folder `assets`.
///
/// Writes `images/ID.nii.gz`, `masks/ID.nii.gz` for positive volumes, `data.csv` (paths relative to it),
/// `suite.toml` (the suite as it was used) and `task.toml` (ready for `fit`). `data.csv` is written last, so that
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
    for folder in ["images", "masks"] {
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
    write_text(&out.join("task.toml"), &as_toml(&suite.name, &suite.task)?)?;
    let mut table = format!("id,split,image,mask,{}\n", suite.label);
    for Row { id, split, image, mask, positive } in &rows {
        let label = if *positive { "1\n" } else { "0\n" };
        table.push_str(&[id.as_str(), &split.to_string(), image, mask, label].join(","));
    }
    write_text(&out.join("data.csv"), &table)?;
    Ok(Summary { volumes: rows.len(), positives: rows.iter().filter(|r| r.positive).count() })
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
    let image = format!("images/{id}.nii.gz");
    volume::write_nifti(&out.join(&image), phantom.dims, &phantom.voxels, &phantom.geometry)?;
    let mask = match &phantom.mask {
        Some(voxels) => {
            let mask = format!("masks/{id}.nii.gz");
            volume::write_nifti(&out.join(&mask), phantom.dims, voxels, &phantom.geometry)?;
            mask
        }
        None => String::new(),
    };
    Ok(Row { id, split, image, mask, positive: phantom.mask.is_some() })
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

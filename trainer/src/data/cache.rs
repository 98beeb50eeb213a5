use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Slices, Stored, Study, Table};
use crate::Error;
use crate::task::Task;

/// Prepared slices of a table's scans: kept in memory as long as they fit, the rest read from a folder where there is one, or
/// prepared anew each time.
pub struct Cache<'a> {
    table: &'a Table,
    task: &'a Task,
    limit: usize,
    /// One a view.
    stored: Vec<Stored>,
    skips: bool,
    kept: Mutex<Kept>,
    skipped: Mutex<BTreeMap<usize, String>>,
}

#[derive(Default)]
struct Kept {
    bytes: usize,
    slices: HashMap<usize, Arc<Study>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Cache<'a> {
    /// An empty cache of at most `limit` bytes.
    pub fn new(table: &'a Table, task: &'a Task, limit: usize) -> Self {
        let (kept, skipped) = (Mutex::default(), Mutex::default());
        Self { table, task, limit, stored: Vec::new(), skips: false, kept, skipped }
    }

    /// Also keeps slices in a folder; see [`Stored`].
    pub fn stored_in(self, folder: Option<&Path>) -> Result<Self, Error> {
        let open = |folder: &Path| {
            self.task.inputs().into_iter().map(|(_, recipe)| Stored::open(folder, recipe)).collect()
        };
        let stored = folder.map_or(Ok(Vec::new()), open)?;
        Ok(Self { stored, ..self })
    }

    /// Goes on without scans that cannot be read, where `skips`; else the first one is an error.
    #[must_use]
    pub fn skipping(self, skips: bool) -> Self {
        Self { skips, ..self }
    }

    /// The slices of the table's sample `index`; `None` where it is skipped.
    pub fn get(&self, index: usize) -> Result<Option<Arc<Study>>, Error> {
        if let Some(slices) = lock(&self.kept).slices.get(&index) {
            return Ok(Some(Arc::clone(slices)));
        }
        if lock(&self.skipped).contains_key(&index) {
            return Ok(None);
        }
        let slices = match self.load(index) {
            Ok(slices) => Arc::new(slices),
            Err(e) if self.skips && e.is_unreadable_scan() => {
                let reason = e.to_string();
                if lock(&self.skipped).insert(index, reason.clone()).is_none() {
                    tracing::warn!("skipped: {reason}");
                }
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let mut kept = lock(&self.kept);
        let bytes = slices.bytes();
        if kept.bytes + bytes <= self.limit && kept.slices.insert(index, Arc::clone(&slices)).is_none() {
            kept.bytes += bytes;
        }
        Ok(Some(slices))
    }

    fn load(&self, index: usize) -> Result<Study, Error> {
        let sample = &self.table.samples[index];
        if self.stored.is_empty() {
            return Study::load(self.table, sample, self.task);
        }
        let recipes = self.task.inputs();
        let views =
            sample.images.iter().zip(&self.stored).zip(recipes).map(|((image, stored), (_, recipe))| {
                let Some(image) = image else { return Ok::<_, Error>(None) };
                let load = || Slices::load(self.table, sample, image, recipe);
                Ok(Some(stored.get([Some(image), sample.mask.as_deref()], load)?.into()))
            });
        Ok(Study { views: views.collect::<Result<_, _>>()? })
    }

    /// The samples skipped so far, with the reason.
    pub fn skipped(&self) -> BTreeMap<usize, String> {
        lock(&self.skipped).clone()
    }

    /// The table that the indices refer to.
    pub fn table(&self) -> &'a Table {
        self.table
    }
}

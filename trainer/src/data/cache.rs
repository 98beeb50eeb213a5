use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use firmware_config::Recipe;

use super::{Slices, Stored, Table};
use crate::Error;

/// Prepared slices of a table's scans: kept in memory as long as they fit, the rest read from a folder where there is one, or
/// prepared anew each time.
pub struct Cache<'a> {
    table: &'a Table,
    recipe: &'a Recipe,
    limit: usize,
    stored: Option<Stored>,
    skips: bool,
    kept: Mutex<Kept>,
    skipped: Mutex<BTreeMap<usize, String>>,
}

#[derive(Default)]
struct Kept {
    bytes: usize,
    slices: HashMap<usize, Arc<Slices>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Cache<'a> {
    /// An empty cache of at most `limit` bytes.
    pub fn new(table: &'a Table, recipe: &'a Recipe, limit: usize) -> Self {
        let (kept, skipped) = (Mutex::default(), Mutex::default());
        Self { table, recipe, limit, stored: None, skips: false, kept, skipped }
    }

    /// Also keeps slices in a folder; see [`Stored`].
    pub fn stored_in(self, folder: Option<&Path>) -> Result<Self, Error> {
        let stored = folder.map(|folder| Stored::open(folder, self.recipe)).transpose()?;
        Ok(Self { stored, ..self })
    }

    /// Goes on without scans that cannot be read, where `skips`; else the first one is an error.
    #[must_use]
    pub fn skipping(self, skips: bool) -> Self {
        Self { skips, ..self }
    }

    /// The slices of the table's sample `index`; `None` where it is skipped.
    pub fn get(&self, index: usize) -> Result<Option<Arc<Slices>>, Error> {
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

    fn load(&self, index: usize) -> Result<Slices, Error> {
        let sample = &self.table.samples[index];
        let load = || Slices::load(self.table, sample, self.recipe);
        match &self.stored {
            Some(stored) => stored.get([Some(&sample.image), sample.mask.as_deref()], load),
            None => load(),
        }
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

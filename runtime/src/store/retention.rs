//! What is no longer kept.

use std::path::PathBuf;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use redb::{ReadableTable, WriteTransaction};

use super::index::{Fault, INSTANCES, NUMBER_BYTES, NUMBERS, QUARANTINE, RESULTS, SERIES, decode, row};
use super::rows::{QuarantineRow, ResultRow, SeriesRow};
use super::{Store, StoreError, locked};

/// What [`Store::sweep`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Series.
    pub series: u64,
    /// Their instances.
    pub instances: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Their results.
    pub results: u64,
}

impl SeriesRow {
    /// Whether all that came is part of a revision whose job has ended, and nothing happened for `keep_ms`.
    fn is_over(&self, now: i64, keep_ms: i64) -> bool {
        self.jobs == 0 && self.instances == self.closed && now.saturating_sub(self.last) >= keep_ms
    }
}

/// Whether a series that is there has a result too.
fn is_kept_for_others(
    series: &impl ReadableTable<&'static str, &'static [u8]>,
    results: &impl ReadableTable<&'static str, &'static [u8]>,
    id: &String,
) -> Result<bool, Fault> {
    let about = row::<_, ResultRow>(results, id)?.map_or_else(Vec::new, |result| result.series);
    for uid in about {
        if row::<_, SeriesRow>(series, &uid)?.is_some_and(|row| row.all_results.contains(id)) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Store {
    /// Removes the instances, results and quarantine entries of every series whose jobs have ended and to which nothing has happened for `keep_ms`.
    /// Messages that wait to be sent stay.
    pub fn sweep(&self, now: i64, keep_ms: i64) -> Result<Swept, StoreError> {
        let over = self.index.read(|txn| {
            let mut over = Vec::new();
            for entry in txn.open_table(SERIES)?.iter()? {
                let (uid, value) = entry?;
                if decode::<SeriesRow>(value.value())?.is_over(now, keep_ms) {
                    over.push(uid.value().to_owned());
                }
            }
            Ok(over)
        })?;
        let mut swept = Swept::default();
        for series_uid in over {
            // Nothing is put meanwhile: an instance that comes again must not lose its new file.
            let _files = self.files.write().unwrap_or_else(PoisonError::into_inner);
            let done = self.index.write(|txn| self.forget(txn, &series_uid, now, keep_ms))?;
            let Some((removed, files, used)) = done else { continue };
            self.budget.stored.store(used, Ordering::Relaxed);
            swept.series += removed.series;
            swept.instances += removed.instances;
            swept.bytes += removed.bytes;
            swept.results += removed.results;
            // After the rows: what a power cut leaves is files without rows, which the next opening removes.
            self.remove_files(&series_uid, &files);
        }
        Ok(swept)
    }

    /// The rows of one series; None if it is in use again.
    fn forget(
        &self,
        txn: &WriteTransaction,
        series_uid: &str,
        now: i64,
        keep_ms: i64,
    ) -> Result<Option<(Swept, Vec<PathBuf>, u64)>, Fault> {
        let mut series = txn.open_table(SERIES)?;
        let Some(of_series) =
            row::<_, SeriesRow>(&series, series_uid)?.filter(|row| row.is_over(now, keep_ms))
        else {
            return Ok(None);
        };
        series.remove(series_uid)?;
        let mut swept = Swept { series: 1, ..Swept::default() };
        let mut instances = txn.open_table(INSTANCES)?;
        let mut files = Vec::new();
        for instance in self.list(&instances, series_uid, u32::MAX)? {
            instances.remove((series_uid, instance.sop_uid.as_str()))?;
            swept.instances += 1;
            swept.bytes += instance.bytes;
            files.push(instance.path);
        }
        let mut results = txn.open_table(RESULTS)?;
        for id in &of_series.all_results {
            if !is_kept_for_others(&series, &results, id)? {
                swept.results += u64::from(results.remove(id.as_str())?.is_some());
            }
        }
        let mut quarantine = txn.open_table(QUARANTINE)?;
        let mut given_up = Vec::new();
        for entry in quarantine.iter()? {
            let (id, value) = entry?;
            if decode::<QuarantineRow>(value.value())?.series_uid == series_uid {
                given_up.push(id.value());
            }
        }
        for id in given_up {
            quarantine.remove(id)?;
        }
        let mut numbers = txn.open_table(NUMBERS)?;
        let used = numbers.get(NUMBER_BYTES)?.map_or(0, |n| n.value()).saturating_sub(swept.bytes);
        numbers.insert(NUMBER_BYTES, used)?;
        Ok(Some((swept, files, used)))
    }

    /// A file that stays behind is removed at the next opening, so a failure is no more than a warning.
    fn remove_files(&self, series_uid: &str, files: &[PathBuf]) {
        let mut folders = locked(&self.folders);
        let folder = self.place_of(series_uid, "").0;
        let removed = files.iter().try_for_each(|path| self.disk.remove(path));
        if let Err(error) = removed.and_then(|()| self.disk.remove_folder(&folder)) {
            tracing::warn!(folder = %folder.display(), %error, "files of a series that is no longer kept were left behind");
        }
        folders.remove(&folder);
    }
}

//! A part of the training volumes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::data::{Split, Table};
use crate::random::{Purpose, generator, permutation};

/// Which training rows make up the share `share`, in the table's order: of rows of one pattern of labels at least one and the nearest
/// whole number, drawn by `seed`. A smaller share is part of a larger one.
pub fn part(table: &Table, share: f64, seed: u64) -> Vec<usize> {
    let train = table.split(Split::Train);
    let mut patterns: BTreeMap<&[Option<bool>], Vec<usize>> = BTreeMap::new();
    for at in permutation(train.len(), &mut generator(seed, Purpose::Folds, 1, 0)) {
        patterns.entry(&table.samples[train[at]].targets).or_default().push(train[at]);
    }
    let taken = |rows: &Vec<usize>| (share * rows.len() as f64).round().max(1.0) as usize;
    let mut kept: Vec<usize> =
        patterns.values().flat_map(|rows| rows.iter().copied().take(taken(rows))).collect();
    kept.sort_unstable();
    kept
}

/// Writes `table` with only that share of its training rows, and paths that do not depend on its folder, into `folder`.
pub fn write(table: &Table, share: f64, seed: u64, folder: &Path, name: &str) -> Result<PathBuf, Error> {
    let kept: Vec<u64> = part(table, share, seed).into_iter().map(|i| table.samples[i].row).collect();
    let path = folder.join(format!("{name}+data={share}.csv"));
    let at = table.path.parent().unwrap_or(Path::new("."));
    let at = std::path::absolute(at).map_err(Error::io(at))?;
    let unreadable = |e: csv::Error| Error::Table { path: table.path.clone(), problem: e.to_string() };
    let mut reader =
        csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(&table.path).map_err(unreadable)?;
    let header = reader.headers().map_err(unreadable)?.clone();
    let is_path = |column: &str| column == "image" || column == "mask" || column.starts_with("image:");
    let mut writer = csv::Writer::from_writer(Vec::new());
    let failed = |e: csv::Error| Error::io("a table")(std::io::Error::other(e));
    writer.write_record(&header).map_err(failed)?;
    let mut rows = table.samples.iter();
    for record in reader.records() {
        let (record, sample) = (record.map_err(unreadable)?, rows.next());
        if sample.is_none_or(|s| s.split == Split::Train && !kept.contains(&s.row)) {
            continue;
        }
        let cell = |(column, value): (&str, &str)| {
            if is_path(column) && !value.is_empty() {
                at.join(value).to_string_lossy().into_owned()
            } else {
                value.to_owned()
            }
        };
        writer.write_record(header.iter().zip(&record).map(cell)).map_err(failed)?;
    }
    let bytes = writer.into_inner().map_err(|e| Error::io("a table")(e.into_error()))?;
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    runtime::files::write_atomically(&path, &bytes).map_err(Error::io(&path))?;
    Ok(path)
}

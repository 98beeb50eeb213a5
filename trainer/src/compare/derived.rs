//! Tables that are made of a task's: of a part of the training volumes, or of one view.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Change, Method};
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

/// Writes what `method` is fitted on of `table` into `folder`, with paths that do not depend on the table's folder: its share of the
/// training rows and, of a task of several views, its one view as the only image, without the rows that lack it.
pub fn write(table: &Table, method: &Method, seed: u64, folder: &Path, name: &str) -> Result<PathBuf, Error> {
    let kept = part(table, method.share(), seed);
    let changes = method.changes.iter().filter(|change| matches!(change, Change::Data(_) | Change::View(_)));
    let path = folder.join(format!("{name}{}.csv", changes.map(ToString::to_string).collect::<String>()));
    let at = table.path.parent().unwrap_or(Path::new("."));
    let at = std::path::absolute(at).map_err(Error::io(at))?;
    let unreadable = |e: csv::Error| Error::Table { path: table.path.clone(), problem: e.to_string() };
    let mut reader =
        csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(&table.path).map_err(unreadable)?;
    let header = reader.headers().map_err(unreadable)?.clone();
    let columns: Vec<Option<&str>> = header.iter().map(|column| renamed(column, method.view())).collect();
    let is_path = |column: &str| column == "image" || column == "mask" || column.starts_with("image:");
    let mut writer = csv::Writer::from_writer(Vec::new());
    let failed = |e: csv::Error| Error::io("a table")(std::io::Error::other(e));
    writer.write_record(columns.iter().flatten()).map_err(failed)?;
    let mut rows = table.samples.iter().enumerate();
    for record in reader.records() {
        let (record, sample) = (record.map_err(unreadable)?, rows.next());
        if sample.is_none_or(|(i, sample)| sample.split == Split::Train && kept.binary_search(&i).is_err()) {
            continue;
        }
        let cells = || columns.iter().zip(&record).filter_map(|(column, value)| Some(((*column)?, value)));
        if method.view().is_some() && cells().any(|(column, value)| column == "image" && value.is_empty()) {
            continue;
        }
        let cell = |(column, value): (&str, &str)| {
            if is_path(column) && !value.is_empty() {
                at.join(value).to_string_lossy().into_owned()
            } else {
                value.to_owned()
            }
        };
        writer.write_record(cells().map(cell)).map_err(failed)?;
    }
    let bytes = writer.into_inner().map_err(|e| Error::io("a table")(e.into_error()))?;
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    runtime::files::write_atomically(&path, &bytes).map_err(Error::io(&path))?;
    Ok(path)
}

/// A column's name where only `view` is left of several, `None` for one that goes.
fn renamed<'a>(column: &'a str, view: Option<&str>) -> Option<&'a str> {
    let Some(view) = view else { return Some(column) };
    match column.strip_prefix("image:") {
        Some(name) => (name == view).then_some("image"),
        // A mask lies on the scan of a task without views.
        None => (!["image", "mask"].contains(&column)).then_some(column),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Task;

    const TASK: &str = "name = 't'\nversion = '1.0.0'\nlabels = ['a']\nmissing_views = 'pool'\n\
         recipe = { plane = 'axial', size = [28, 28], intensity = { kind = 'z-score' } }\nviews = { ax = {}, sag = {} }\n";

    #[test]
    fn one_view_becomes_the_only_image() {
        let folder = tempfile::tempdir().unwrap();
        let scan = |name: &str| {
            std::fs::write(folder.path().join(name), "").unwrap();
            folder.path().join(name)
        };
        for name in ["1.nii", "2.nii", "3.nii"] {
            scan(name);
        }
        let path = folder.path().join("data.csv");
        let text =
            "id,split,image:ax,image:sag,a\n1,train,1.nii,,0\n2,train,2.nii,2.nii,1\n3,test,3.nii,3.nii,1\n";
        std::fs::write(&path, text).unwrap();
        let task: Task = toml::from_str(TASK).unwrap();
        let table = Table::read(&path, &task, false).unwrap();
        let method: Method = "mst+view=sag".parse().unwrap();
        let out = write(&table, &method, 0, &folder.path().join("data"), "t").unwrap();
        assert_eq!(out.file_name().unwrap(), "t+view=sag.csv");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let expected = format!("id,split,image,a\n2,train,{},1\n3,test,{},1\n", at("2.nii"), at("3.nii"));
        assert_eq!(std::fs::read_to_string(&out).unwrap(), expected);
    }
}

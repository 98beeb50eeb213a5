use std::collections::BTreeMap;
use std::path::Path;

use crate::Error;

/// The values of a column of the data table that is no label, such as `patient` or `scanner`, by the row's id; `None`
/// where the table has no such column.
pub fn column(path: &Path, name: &str) -> Result<Option<BTreeMap<String, String>>, Error> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let wrong = |problem: String| Error::Table { path: path.into(), problem };
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(bytes.as_slice());
    let header = reader.headers().map_err(|e| wrong(format!("its header is not CSV ({e})")))?.clone();
    let place = |name: &str| header.iter().position(|h| h.trim_start_matches('\u{feff}') == name);
    let found = || header.iter().collect::<Vec<_>>().join(", ");
    let id =
        place("id").ok_or_else(|| wrong(format!("it has no column `id`; its columns are {}", found())))?;
    let Some(wanted) = place(name) else { return Ok(None) };
    let value = |record: Result<csv::StringRecord, csv::Error>| {
        let record = record.map_err(|e| wrong(format!("it is not sound CSV ({e})")))?;
        Ok((record[id].to_owned(), record[wanted].to_owned()))
    };
    reader.records().map(value).collect::<Result<_, Error>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_found_by_name_and_its_absence_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.csv");
        std::fs::write(&path, "\u{feff}id,split,scanner\na, test, M1 \nb,test,\n").unwrap();
        let scanners = column(&path, "scanner").unwrap().unwrap();
        assert_eq!((scanners["a"].as_str(), scanners["b"].as_str()), ("M1", ""));
        assert_eq!(column(&path, "sex").unwrap(), None);
        std::fs::write(&path, "name,scanner\na,M1\n").unwrap();
        assert!(column(&path, "scanner").unwrap_err().to_string().contains("no column `id`"));
    }
}

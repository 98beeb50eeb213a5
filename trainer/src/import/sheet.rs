//! CSV tables of data sets.

use std::path::{Path, PathBuf};

use csv::StringRecord;

use super::wrong;
use crate::Error;

/// A table that was read.
pub(super) struct Sheet {
    path: PathBuf,
    header: StringRecord,
    records: Vec<StringRecord>,
}

/// A row of it.
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    sheet: &'a Sheet,
    record: &'a StringRecord,
}

impl Sheet {
    /// Reads the file `path`.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(bytes);
        let damaged = |e: csv::Error| wrong(path, format!("it is not sound CSV ({e}); get the file again"));
        let header = reader.headers().map_err(damaged)?.clone();
        let records = reader.records().collect::<Result<_, _>>().map_err(damaged)?;
        Ok(Self { path: path.into(), header, records })
    }

    /// The place of the column `name`.
    pub(super) fn column(&self, name: &str) -> Result<usize, Error> {
        self.header.iter().position(|found| found == name).ok_or_else(|| {
            let found = self.header.iter().collect::<Vec<_>>().join(", ");
            wrong(&self.path, format!("it has no column `{name}`, only {found}; get the file again"))
        })
    }

    /// The places of several columns.
    pub(super) fn columns<const N: usize>(&self, names: [&str; N]) -> Result<[usize; N], Error> {
        let mut places = [0; N];
        for (place, name) in places.iter_mut().zip(names) {
            *place = self.column(name)?;
        }
        Ok(places)
    }

    /// The rows.
    pub(super) fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.records.iter().map(|record| Line { sheet: self, record })
    }
}

impl<'a> Line<'a> {
    /// The text in a column.
    pub(super) fn text(self, column: usize) -> &'a str {
        self.record.get(column).unwrap_or_default()
    }

    /// 0 or 1 in a column, also as 0.0 and 1.0.
    pub(super) fn flag(self, column: usize) -> Result<bool, Error> {
        match self.text(column) {
            "0" | "0.0" => Ok(false),
            "1" | "1.0" => Ok(true),
            _ => Err(self.wrong(column, "0 or 1")),
        }
    }

    /// A finite number in a column.
    pub(super) fn number(self, column: usize) -> Result<f64, Error> {
        let number = self.text(column).parse().ok().filter(|x: &f64| x.is_finite());
        number.ok_or_else(|| self.wrong(column, "a number"))
    }

    /// That a column does not hold what is expected.
    pub(super) fn wrong(self, column: usize, expected: &str) -> Error {
        let row = self.record.position().map_or(0, csv::Position::line);
        let (name, found) = (self.sheet.header.get(column).unwrap_or_default(), self.text(column));
        let problem =
            format!("its `{name}` in line {row} is `{found}`, expected {expected}; get the file again");
        wrong(&self.sheet.path, problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_table_lacks_is_told_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.csv");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Sheet::read(&path)
        };
        let sheet = read("\u{feff}id, a\n1, 1.0\n2,x\n").unwrap();
        let a = sheet.column("a").unwrap();
        let lines: Vec<Line> = sheet.lines().collect();
        assert_eq!((lines[0].flag(a).unwrap(), lines[0].text(sheet.column("id").unwrap())), (true, "1"));
        let told = |error: Error, words: &str| {
            assert!(error.is_bad_input() && error.to_string().contains(words), "{error}");
        };
        told(lines[1].flag(a).unwrap_err(), "its `a` in line 3 is `x`, expected 0 or 1");
        told(lines[1].number(a).unwrap_err(), "expected a number");
        told(sheet.column("b").unwrap_err(), "it has no column `b`, only id, a");
        told(read("a,b\n1\n").err().unwrap(), "it is not sound CSV");
        told(Sheet::read(&folder.path().join("none.csv")).err().unwrap(), "none.csv");
    }
}

//! LIDC's XML: what each reader marked.
//!
//! Source: the collection's XML documentation. `LidcReadMessage` holds `ResponseHeader/SeriesInstanceUid` and a `readingSession` a reader;
//! in it an `unblindedReadNodule` a nodule, with `characteristics/malignancy` (1 to 5) for those of 3 mm and more, and a `roi` a slice:
//! `imageSOP_UID`, `inclusion`, and the outline as `edgeMap`s of `xCoord` (column) and `yCoord` (row), from 0.

use std::path::Path;

use roxmltree::{Document, Node};

use crate::Error;
use crate::import::wrong;

/// Nodules of 3 mm and more, of all readers.
pub(super) type Readings = Vec<Nodule>;

/// A nodule as one reader saw it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Nodule {
    /// The reader's number in the file.
    pub(super) reader: usize,
    /// 1, highly unlikely, to 5, highly suspicious.
    pub(super) malignancy: f64,
    pub(super) outline: Vec<Point>,
}

/// A point of an outline.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Point {
    /// Column.
    pub(super) x: f64,
    /// Row.
    pub(super) y: f64,
    /// The slice's SOP Instance UID.
    pub(super) slice: String,
}

/// Reads a file; `None` where it is not of a CT.
pub(super) fn read(path: &Path) -> Result<Option<(String, Readings)>, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let document = Document::parse(&text)
        .map_err(|e| wrong(path, format!("it is not sound XML ({e}); get the file again")))?;
    let root = document.root_element();
    if root.tag_name().name() != "LidcReadMessage" {
        return Ok(None);
    }
    let uid = child(root, "ResponseHeader").and_then(|header| text_of(header, "SeriesInstanceUid"));
    let uid = uid.ok_or_else(|| {
        wrong(path, "it has no ResponseHeader with a SeriesInstanceUid, expected a reading of LIDC-IDRI")
    })?;
    let mut readings = Vec::new();
    for (reader, session) in children(root, "readingSession").enumerate() {
        for nodule in children(session, "unblindedReadNodule") {
            readings.extend(one(path, reader, nodule)?);
        }
    }
    Ok(Some((uid.to_owned(), readings)))
}

/// A nodule, unless it is below 3 mm and so has no rating.
fn one(path: &Path, reader: usize, nodule: Node) -> Result<Option<Nodule>, Error> {
    let rating = child(nodule, "characteristics").and_then(|found| text_of(found, "malignancy"));
    let Some(rating) = rating else { return Ok(None) };
    let malignancy = number(path, "malignancy", Some(rating))?;
    // Some files have 0 where a reader gave none.
    if !(1.0..=5.0).contains(&malignancy) {
        return Ok(None);
    }
    let mut outline = Vec::new();
    for roi in children(nodule, "roi").filter(|roi| text_of(*roi, "inclusion") != Some("FALSE")) {
        let slice = text_of(roi, "imageSOP_UID").unwrap_or_default();
        for edge in children(roi, "edgeMap") {
            let at = |axis| number(path, axis, text_of(edge, axis));
            outline.push(Point { x: at("xCoord")?, y: at("yCoord")?, slice: slice.to_owned() });
        }
    }
    Ok(Some(Nodule { reader, malignancy, outline }))
}

fn number(path: &Path, name: &str, text: Option<&str>) -> Result<f64, Error> {
    let number = text.and_then(|text| text.parse().ok()).filter(|x: &f64| x.is_finite());
    number.ok_or_else(|| {
        let found = text.unwrap_or("missing");
        wrong(path, format!("a {name} in it is {found}, expected a number; get the file again"))
    })
}

fn children<'a, 'b>(node: Node<'a, 'b>, name: &'static str) -> impl Iterator<Item = Node<'a, 'b>> {
    node.children().filter(move |child| child.is_element() && child.tag_name().name() == name)
}

fn child<'a, 'b>(node: Node<'a, 'b>, name: &'static str) -> Option<Node<'a, 'b>> {
    children(node, name).next()
}

fn text_of<'a>(node: Node<'a, '_>, name: &'static str) -> Option<&'a str> {
    child(node, name).and_then(|child| child.text()).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_readings_are_told_or_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1.xml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(&path)
        };
        assert_eq!(read("<IdriReadMessage xmlns='http://www.nih.gov'/>").unwrap(), None);
        let told = |text: &str, words: &str| {
            let error = read(text).unwrap_err();
            assert!(error.is_bad_input() && error.to_string().contains(words), "{error}");
        };
        told("<LidcReadMessage>", "it is not sound XML");
        told("<LidcReadMessage/>", "it has no ResponseHeader with a SeriesInstanceUid");
        let with = |malignancy: &str, x: &str| {
            format!(
                "<LidcReadMessage xmlns='http://www.nih.gov'><ResponseHeader><SeriesInstanceUid>1.2</SeriesInstanceUid></ResponseHeader>\
                 <readingSession><unblindedReadNodule><characteristics><malignancy>{malignancy}</malignancy></characteristics>\
                 <roi><imageSOP_UID>1.2.3</imageSOP_UID><inclusion>TRUE</inclusion><edgeMap><xCoord>{x}</xCoord><yCoord>7</yCoord></edgeMap>\
                 </roi></unblindedReadNodule></readingSession></LidcReadMessage>"
            )
        };
        told(&with("four", "1"), "a malignancy in it is four");
        told(&with("4", ""), "a xCoord in it is missing");
        let (uid, readings) = read(&with("4", "5")).unwrap().unwrap();
        let outline = vec![Point { x: 5.0, y: 7.0, slice: "1.2.3".into() }];
        assert_eq!((uid.as_str(), readings), ("1.2", vec![Nodule { reader: 0, malignancy: 4.0, outline }]));
        assert_eq!(read(&with("0", "5")).unwrap().unwrap().1, []);
    }
}

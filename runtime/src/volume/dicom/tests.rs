#![allow(clippy::float_cmp, reason = "the numbers are exact by construction")]

use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::volume::{ReadOptions, read};

/// A data set in explicit little endian, written byte by byte.
#[derive(Clone)]
struct Elements(Vec<u8>);

impl Elements {
    fn header(&mut self, group: u16, element: u16, vr: [u8; 2], length: u32) -> &mut Self {
        self.0.extend([group.to_le_bytes(), element.to_le_bytes()].concat());
        self.0.extend(vr);
        if [*b"OB", *b"OW", *b"SQ", *b"UN", *b"UT"].contains(&vr) {
            self.0.extend([0, 0]);
            self.0.extend(length.to_le_bytes());
        } else {
            self.0.extend((length as u16).to_le_bytes());
        }
        self
    }

    fn put(&mut self, group: u16, element: u16, vr: [u8; 2], value: &[u8]) -> &mut Self {
        self.header(group, element, vr, value.len() as u32);
        self.0.extend(value);
        self
    }

    fn text(&mut self, group: u16, element: u16, vr: [u8; 2], value: &str) -> &mut Self {
        let mut value = value.as_bytes().to_vec();
        if value.len() % 2 == 1 {
            value.push(if vr == *b"UI" { 0 } else { b' ' });
        }
        self.put(group, element, vr, &value)
    }

    fn short(&mut self, group: u16, element: u16, value: u16) -> &mut Self {
        self.put(group, element, *b"US", &value.to_le_bytes())
    }

    fn item(&mut self, element: u16, length: u32) -> &mut Self {
        self.0.extend([0xFFFEu16.to_le_bytes(), element.to_le_bytes()].concat());
        self.0.extend(length.to_le_bytes());
        self
    }
}

/// A 2 × 3 CT slice, up to its pixel data.
fn slice() -> Elements {
    let mut e = Elements(Vec::new());
    e.text(0x0008, 0x0016, *b"UI", "1.2.840.10008.5.1.4.1.1.2")
        .text(0x0008, 0x0018, *b"UI", "1.2.3.4")
        .text(0x0010, 0x0010, *b"PN", "Doe^Jane")
        .text(0x0020, 0x000E, *b"UI", "1.2.3")
        .text(0x0020, 0x0032, *b"DS", "10\\20\\30")
        .text(0x0020, 0x0037, *b"DS", "1\\0\\0\\0\\1\\0")
        .short(0x0028, 0x0002, 1)
        .text(0x0028, 0x0004, *b"CS", "MONOCHROME2")
        .short(0x0028, 0x0010, 2)
        .short(0x0028, 0x0011, 3)
        .text(0x0028, 0x0030, *b"DS", "0.5\\0.25")
        .short(0x0028, 0x0100, 16)
        .short(0x0028, 0x0101, 12)
        .short(0x0028, 0x0102, 11)
        .short(0x0028, 0x0103, 0);
    e
}

fn with_pixels(mut e: Elements) -> Elements {
    let pixels: Vec<u8> = (1..=6u16).flat_map(u16::to_le_bytes).collect();
    e.put(0x7FE0, 0x0010, *b"OW", &pixels);
    e
}

fn file(data_set: &Elements) -> Vec<u8> {
    let mut meta = Elements(Vec::new());
    meta.text(0x0002, 0x0010, *b"UI", "1.2.840.10008.1.2.1");
    let mut out = Elements(vec![0; 128]);
    out.0.extend(b"DICM");
    out.put(0x0002, 0x0000, *b"UL", &(meta.0.len() as u32).to_le_bytes());
    [out.0, meta.0, data_set.0.clone()].concat()
}

fn read_bytes(bytes: &[u8]) -> Result<Volume, VolumeError> {
    let folder = TempDir::new().unwrap();
    let path: PathBuf = folder.path().join("slice.dcm");
    std::fs::write(&path, bytes).unwrap();
    read(&path, &ReadOptions::default()).map(|mut volumes| volumes.remove(0))
}

#[test]
fn a_slice_is_read_and_turned_to_ras() {
    let volume = read_bytes(&file(&with_pixels(slice()))).unwrap();
    assert_eq!(volume.dims, [3, 2, 1]);
    assert_eq!(volume.voxels, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let expected = [[-0.25, 0.0, 0.0, -10.0], [0.0, -0.5, 0.0, -20.0], [0.0, 0.0, 1.0, 30.0]];
    assert_eq!(volume.geometry.affine, expected);
    assert_eq!(volume.source.instances, ["1.2.3.4"]);
    assert_eq!(volume.source.series_uid.as_deref(), Some("1.2.3"));
    assert!(volume.warnings[0].contains("for want of SliceThickness"), "{:?}", volume.warnings);
    assert!(!format!("{volume:?}").contains("Doe"));
}

#[test]
fn sequences_are_passed_over_however_deep() {
    let mut e = Elements(Vec::new());
    e.header(0x0008, 0x1140, *b"SQ", u32::MAX);
    for _ in 0..50_000 {
        e.item(0xE000, u32::MAX).header(0x0008, 0x1140, *b"SQ", u32::MAX);
    }
    let deep = Elements([e.0, slice().0].concat());
    // The sequences never end: told, not a stack overflow.
    assert!(read_bytes(&file(&with_pixels(deep))).unwrap_err().is_bad_input());

    let mut e = Elements(Vec::new());
    e.header(0x0008, 0x1140, *b"SQ", u32::MAX).item(0xE000, u32::MAX);
    // Inside an item the same tags mean something else.
    e.short(0x0028, 0x0010, 77).header(0x0008, 0x1140, *b"SQ", u32::MAX).item(0xE0DD, 0);
    e.item(0xE00D, 0).item(0xE000, 0).item(0xE0DD, 0);
    let nested = Elements([e.0, slice().0].concat());
    assert_eq!(read_bytes(&file(&with_pixels(nested))).unwrap().dims, [3, 2, 1]);
}

#[test]
fn stray_delimiters_do_not_panic() {
    for element in [0xE00D, 0xE0DD, 0xE000] {
        let mut e = Elements(Vec::new());
        e.item(element, 0).item(0xE000, 0).item(element, u32::MAX);
        let strayed = Elements([e.0, slice().0].concat());
        if let Err(error) = read_bytes(&file(&with_pixels(strayed))) {
            assert!(error.is_bad_input(), "{error}");
        }
    }
}

#[test]
fn lengths_are_not_believed() {
    // An attribute that is read, of 4 GB, and one that is not.
    let mut e = Elements(slice().0);
    e.header(0x0028, 0x1050, *b"UT", 0xFFFF_FFF0);
    assert!(read_bytes(&file(&e)).unwrap_err().to_string().contains("lacks PixelData (7FE0,0010)"));
    let mut e = Elements(Vec::new());
    e.header(0x0008, 0x0018, *b"UT", 0xFFFF_FFF0);
    assert!(
        read_bytes(&file(&e))
            .unwrap_err()
            .to_string()
            .contains("SOPInstanceUID (0008,0018) is 4294967280 bytes")
    );
    let mut e = slice();
    e.header(0x7FE0, 0x0010, *b"OW", 0xFFFF_FFF0).0.extend([0; 12]);
    let volume = read_bytes(&file(&e)).unwrap();
    assert!(volume.warnings.iter().any(|w| w.contains("beyond Rows × Columns")), "{:?}", volume.warnings);
}

#[test]
fn every_cut_is_told() {
    let whole = file(&with_pixels(slice()));
    for length in 132..whole.len() {
        let error = read_bytes(&whole[..length]).unwrap_err();
        assert!(error.is_bad_input(), "{length}: {error}");
        assert!(error.to_string().contains("slice.dcm"), "{length}: {error}");
    }
}

#[test]
fn missing_attributes_are_named() {
    for (element, length, name) in [
        (b"\x20\0\x32\0", 8, "ImagePositionPatient (0020,0032)"),
        (b"\x20\0\x37\0", 12, "ImageOrientationPatient (0020,0037)"),
        (b"\x28\0\x30\0", 8, "PixelSpacing (0028,0030)"),
        (b"\x28\0\x11\0", 2, "Columns (0028,0011)"),
        (b"\x28\0\x03\x01", 2, "PixelRepresentation (0028,0103)"),
        (b"\x20\0\x0e\0", 6, "SeriesInstanceUID (0020,000E)"),
        (b"\x08\0\x18\0", 8, "SOPInstanceUID (0008,0018)"),
    ] {
        let mut bytes = file(&with_pixels(slice()));
        let at = bytes.windows(4).position(|four| four == element).unwrap();
        bytes.drain(at..at + 8 + length);
        let message = read_bytes(&bytes).unwrap_err().to_string();
        assert!(message.contains(&format!("lacks {name}")), "{message}");
    }
}

#[test]
fn bytes_after_the_pixel_data_are_told() {
    let mut bytes = file(&with_pixels(slice()));
    bytes.extend([0; 5000]);
    let volume = read_bytes(&bytes).unwrap();
    assert_eq!(volume.voxels[5], 6.0);
    assert!(volume.warnings.iter().any(|w| w == "bytes after the pixel data were ignored in slice.dcm"));
    // Padding by the standard is no such thing.
    let mut padded = with_pixels(slice());
    padded.put(0xFFFC, 0xFFFC, *b"OB", &[0; 64]);
    assert_eq!(read_bytes(&file(&padded)).unwrap().warnings.len(), 1);
}

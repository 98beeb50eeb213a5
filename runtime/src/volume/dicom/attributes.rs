//! Typed values of the attributes that were read.

use std::collections::BTreeMap;
use std::path::Path;

use dicom_core::dictionary::{DataDictionary, DataDictionaryEntry};
use dicom_core::{Tag, VR};
use dicom_dictionary_std::{StandardDataDictionary, tags};
use dicom_encoding::text::{SpecificCharacterSet, TextCodec};

use crate::volume::VolumeError;

/// Values as they are in the file, by tag.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Attributes {
    values: BTreeMap<Tag, Vec<u8>>,
    little: bool,
}

impl Attributes {
    pub(super) fn new(little: bool) -> Self {
        Self { values: BTreeMap::new(), little }
    }

    pub(super) fn insert(&mut self, tag: Tag, value: Vec<u8>) {
        self.values.insert(tag, value);
    }

    /// Text without padding; `None` where missing or empty.
    pub(super) fn text(&self, tag: Tag) -> Option<String> {
        let text = String::from_utf8_lossy(self.values.get(&tag)?);
        let text = text.trim_matches([' ', '\0']);
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// As [`Self::text`], free text in the file's own character set (PS3.5, 6.1).
    pub(super) fn free_text(&self, tag: Tag) -> Option<String> {
        let codes = self.text(tags::SPECIFIC_CHARACTER_SET).unwrap_or_default();
        let first = codes.split('\\').next().unwrap_or_default().trim();
        let charset = SpecificCharacterSet::from_code(first).unwrap_or_default();
        let text = charset.decode(self.values.get(&tag)?).ok()?;
        let text = text.trim_matches([' ', '\0']);
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// As [`Self::text`], an error where there is none.
    pub(super) fn required_text(&self, tag: Tag, path: &Path) -> Result<String, VolumeError> {
        self.text(tag).ok_or_else(|| missing(tag, path))
    }

    /// Decimal strings (VR DS or IS) separated by backslashes; exactly `N` finite numbers.
    pub(super) fn numbers<const N: usize>(
        &self,
        tag: Tag,
        path: &Path,
    ) -> Result<Option<[f64; N]>, VolumeError> {
        let Some(text) = self.text(tag) else { return Ok(None) };
        let numbers: Option<Vec<f64>> = text
            .split('\\')
            .map(|part| part.trim_matches([' ', '\0']).parse().ok().filter(|x: &f64| x.is_finite()))
            .collect();
        if let Some(numbers) = numbers.and_then(|n| n.try_into().ok()) {
            return Ok(Some(numbers));
        }
        let expected = if N == 1 { "one number".to_owned() } else { format!("{N} numbers") };
        Err(VolumeError::field(path, label(tag), format!("\"{}\"", text.escape_debug()), expected))
    }

    /// An unsigned 16-bit number (VR US).
    pub(super) fn short(&self, tag: Tag, path: &Path) -> Result<Option<u16>, VolumeError> {
        match self.values.get(&tag).map(Vec::as_slice) {
            None | Some([]) => Ok(None),
            Some(&[a, b]) if self.little => Ok(Some(u16::from_le_bytes([a, b]))),
            Some(&[a, b]) => Ok(Some(u16::from_be_bytes([a, b]))),
            Some(other) => {
                let found = format!("{} bytes long", other.len());
                Err(VolumeError::field(path, label(tag), found, "one 16-bit number"))
            }
        }
    }

    /// As [`Self::short`], an error where there is none.
    pub(super) fn required_short(&self, tag: Tag, path: &Path) -> Result<u16, VolumeError> {
        self.short(tag, path)?.ok_or_else(|| missing(tag, path))
    }

    /// The first number of a UL, US or FD, or text, as one would read it; `None` where missing or empty. For telling
    /// frames apart only.
    pub(super) fn shown(&self, tag: Tag) -> Option<String> {
        let bytes = self.values.get(&tag)?;
        let vr = StandardDataDictionary.by_tag(tag).map(|entry| entry.vr().relaxed());
        let number = |bytes: [u8; 4]| {
            if self.little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) }
        };
        match vr {
            Some(VR::UL) => bytes.first_chunk().map(|&bytes| number(bytes).to_string()),
            // To a thousandth, so that rounding makes no difference.
            Some(VR::FD) => bytes.first_chunk().map(|&bytes| {
                let value = if self.little { f64::from_le_bytes(bytes) } else { f64::from_be_bytes(bytes) };
                format!("{}", (value * 1e3).round() / 1e3)
            }),
            _ => self.text(tag).map(|text| text.escape_debug().to_string()),
        }
    }

    /// Whether the attribute is there at all, a sequence included.
    pub(super) fn has(&self, tag: Tag) -> bool {
        self.values.contains_key(&tag)
    }
}

/// The keyword of a tag in PS3.6.
fn keyword(tag: Tag) -> &'static str {
    StandardDataDictionary.by_tag(tag).map_or("an attribute", |entry| entry.alias())
}

/// Keyword and number.
pub(super) fn label(tag: Tag) -> String {
    format!("{} ({:04X},{:04X})", keyword(tag), tag.0, tag.1)
}

pub(super) fn missing(tag: Tag, path: &Path) -> VolumeError {
    VolumeError::Missing { path: path.to_owned(), keyword: keyword(tag), tag: (tag.0, tag.1) }
}

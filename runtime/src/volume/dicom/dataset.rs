//! Walking a file's data set: a few attributes, then the pixel data.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use dicom_core::dictionary::{DataDictionary, DataDictionaryEntry};
use dicom_core::header::{HasLength, Header, SequenceItemHeader};
use dicom_core::{Tag, VR};
use dicom_dictionary_std::{StandardDataDictionary, tags, uids};
use dicom_encoding::TransferSyntaxIndex;
use dicom_encoding::text::{SpecificCharacterSet, TextCodec};
use dicom_parser::{DynStatefulDecoder, StatefulDecode};
use dicom_transfer_syntax_registry::{TransferSyntaxRegistry, entries};
use flate2::bufread::DeflateDecoder;

use crate::volume::VolumeError;
use crate::volume::hashing::Hashing;

/// Explicit VR Big Endian, retired in 2006, still in archives.
pub(super) const EXPLICIT_BIG: &str = "1.2.840.10008.1.2.2";
/// JPIP Referenced Deflate: no pixel data, but a deflated data set.
const JPIP_DEFLATED: &str = "1.2.840.10008.1.2.4.95";
/// No attribute that is read is longer.
const MAX_VALUE: u32 = 4096;
/// The File Meta Information (PS3.10, 7.1) is refused beyond this.
const MAX_META: u32 = 1 << 16;

/// How the data set is encoded, whatever its pixel data (PS3.5, 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    ImplicitLittle,
    ExplicitLittle,
    ExplicitBig,
    Deflated,
}

impl Encoding {
    fn of(syntax: &str, path: &Path) -> Result<Self, VolumeError> {
        match syntax {
            uids::IMPLICIT_VR_LITTLE_ENDIAN => Ok(Self::ImplicitLittle),
            EXPLICIT_BIG => Ok(Self::ExplicitBig),
            uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN | JPIP_DEFLATED => Ok(Self::Deflated),
            // All others of the standard, encapsulated ones included.
            _ if TransferSyntaxRegistry.get(syntax).is_some() => Ok(Self::ExplicitLittle),
            _ => Err(unsupported_syntax(syntax, path)),
        }
    }
}

fn unsupported_syntax(uid: &str, path: &Path) -> VolumeError {
    let name = TransferSyntaxRegistry.get(uid).map_or("an unknown one", |syntax| syntax.name());
    VolumeError::Unsupported {
        path: path.to_owned(),
        found: format!("pixel data in the transfer syntax {name} ({})", uid.escape_debug()),
        instead: "convert it to explicit little endian or RLE lossless".to_owned(),
    }
}

/// How pixel data is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Syntax {
    ImplicitLittle,
    ExplicitLittle,
    ExplicitBig,
    Deflated,
    Rle,
}

impl Syntax {
    pub(super) fn from_uid(uid: &str, path: &Path) -> Result<Self, VolumeError> {
        match uid {
            uids::IMPLICIT_VR_LITTLE_ENDIAN => Ok(Self::ImplicitLittle),
            uids::EXPLICIT_VR_LITTLE_ENDIAN => Ok(Self::ExplicitLittle),
            EXPLICIT_BIG => Ok(Self::ExplicitBig),
            uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN => Ok(Self::Deflated),
            uids::RLE_LOSSLESS => Ok(Self::Rle),
            _ => Err(unsupported_syntax(uid, path)),
        }
    }

    pub(super) fn little(self) -> bool {
        self != Self::ExplicitBig
    }
}

/// Values as they are in the file, by tag.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Attributes {
    values: BTreeMap<Tag, Vec<u8>>,
    little: bool,
}

impl Attributes {
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
        let charset = SpecificCharacterSet::from_code(first)?;
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

/// What was found where the pixel data should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct PixelElement {
    pub(super) tag: Tag,
    pub(super) vr: VR,
    /// Bytes of native pixel data; `None` where it is encapsulated in fragments.
    pub(super) length: Option<u32>,
}

type Bytes<'a> = Box<dyn Read + 'a>;

/// A data set being walked, standing behind what was read last.
pub(super) struct Walk<'a> {
    path: &'a Path,
    decoder: DynStatefulDecoder<Bytes<'a>>,
    little: bool,
}

/// A file opened for walking; hashes what is read.
pub(super) type Source = BufReader<Hashing<File>>;

pub(super) fn open(path: &Path) -> Result<Source, VolumeError> {
    let file = File::open(path).map_err(|source| VolumeError::io(path, source))?;
    Ok(BufReader::with_capacity(1 << 16, Hashing::new(file)))
}

/// What the File Meta Information says (PS3.10, 7.1).
pub(super) struct Meta {
    /// Transfer Syntax UID (0002,0010).
    pub(super) syntax: String,
    /// Media Storage SOP Class UID (0002,0002).
    pub(super) class: Option<String>,
    /// Media Storage SOP Instance UID (0002,0003).
    pub(super) instance: Option<String>,
}

/// The File Meta Information, and a walk of the data set behind it.
pub(super) fn begin<'a>(path: &'a Path, source: &'a mut Source) -> Result<(Meta, Walk<'a>), VolumeError> {
    let damaged = |problem: &str| VolumeError::Damaged { path: path.to_owned(), problem: problem.to_owned() };
    // Preamble and prefix, then (0002,0000) FileMetaInformationGroupLength, which says where the data set starts.
    let mut head = [0; 144];
    source.read_exact(&mut head).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it ends within its File Meta Information"),
        _ => VolumeError::io(path, error),
    })?;
    if head[132..140] != *b"\x02\0\0\0UL\x04\0" {
        return Err(missing(tags::FILE_META_INFORMATION_GROUP_LENGTH, path));
    }
    let length = u32::from_le_bytes([head[140], head[141], head[142], head[143]]);
    if length > MAX_META {
        let field = label(tags::FILE_META_INFORMATION_GROUP_LENGTH);
        return Err(VolumeError::field(path, field, length, format!("at most {MAX_META} bytes")));
    }
    let mut meta =
        Walk::new(path, Box::new(source.by_ref().take(u64::from(length))), Encoding::ExplicitLittle)?;
    let (attributes, _) = meta.attributes(&[
        tags::TRANSFER_SYNTAX_UID,
        tags::MEDIA_STORAGE_SOP_CLASS_UID,
        tags::MEDIA_STORAGE_SOP_INSTANCE_UID,
    ])?;
    drop(meta);
    let meta = Meta {
        syntax: attributes.required_text(tags::TRANSFER_SYNTAX_UID, path)?,
        class: attributes.text(tags::MEDIA_STORAGE_SOP_CLASS_UID),
        instance: attributes.text(tags::MEDIA_STORAGE_SOP_INSTANCE_UID),
    };
    let encoding = Encoding::of(&meta.syntax, path)?;
    let bytes: Bytes = match encoding {
        Encoding::Deflated => Box::new(BufReader::new(DeflateDecoder::new(source))),
        _ => Box::new(source),
    };
    Ok((meta, Walk::new(path, bytes, encoding)?))
}

impl<'a> Walk<'a> {
    fn new(path: &'a Path, bytes: Bytes<'a>, encoding: Encoding) -> Result<Self, VolumeError> {
        let entry = match encoding {
            Encoding::ImplicitLittle => entries::IMPLICIT_VR_LITTLE_ENDIAN.erased(),
            Encoding::ExplicitBig => entries::EXPLICIT_VR_BIG_ENDIAN.erased(),
            Encoding::ExplicitLittle | Encoding::Deflated => entries::EXPLICIT_VR_LITTLE_ENDIAN.erased(),
        };
        let decoder = DynStatefulDecoder::new_with(bytes, &entry, SpecificCharacterSet::default(), 0);
        let decoder = decoder.map_err(|error| VolumeError::Damaged {
            path: path.to_owned(),
            problem: format!("its transfer syntax cannot be decoded ({error})"),
        })?;
        Ok(Self { path, decoder, little: encoding != Encoding::ExplicitBig })
    }

    /// Reads on to the pixel data or the end, keeping the `wanted` attributes of the top level.
    pub(super) fn attributes(
        &mut self,
        wanted: &[Tag],
    ) -> Result<(Attributes, Option<PixelElement>), VolumeError> {
        let mut values = BTreeMap::new();
        let mut pixel_data = None;
        loop {
            let header = match self.decoder.decode_header() {
                Ok(header) => header,
                Err(error) if kind(&error) == Some(io::ErrorKind::UnexpectedEof) => break,
                Err(error) => return Err(self.broken(&error)),
            };
            let (tag, length) = (header.tag(), header.length().get());
            if matches!(tag, tags::PIXEL_DATA | tags::FLOAT_PIXEL_DATA | tags::DOUBLE_FLOAT_PIXEL_DATA) {
                pixel_data = Some(PixelElement { tag, vr: header.vr(), length });
                break;
            }
            match length {
                Some(length) if wanted.contains(&tag) => {
                    if length > MAX_VALUE && header.vr() != VR::SQ {
                        let found = format!("{length} bytes long");
                        return Err(VolumeError::field(
                            self.path,
                            label(tag),
                            found,
                            format!("at most {MAX_VALUE} bytes"),
                        ));
                    }
                    let mut value = Vec::new();
                    if header.vr() == VR::SQ {
                        self.skip(length)?;
                    } else {
                        self.read(length, &mut value)?;
                    }
                    values.insert(tag, value);
                }
                Some(length) => self.skip(length)?,
                None => {
                    self.skip_sequence()?;
                    if wanted.contains(&tag) {
                        values.insert(tag, Vec::new());
                    }
                }
            }
        }
        Ok((Attributes { values, little: self.little }, pixel_data))
    }

    /// Appends `length` bytes to `out`, fewer where the file ends.
    pub(super) fn read(&mut self, length: u32, out: &mut Vec<u8>) -> Result<(), VolumeError> {
        self.decoder.read_to_vec(length, out).map_err(|error| self.broken(&error))
    }

    /// Passes over `length` bytes.
    pub(super) fn skip(&mut self, length: u32) -> Result<(), VolumeError> {
        self.decoder.skip_bytes(length).map_err(|error| self.broken(&error))
    }

    /// The next item of encapsulated pixel data: its length, or `None` at the end of the sequence.
    pub(super) fn fragment(&mut self) -> Result<Option<u32>, VolumeError> {
        match self.decoder.decode_item_header().map_err(|error| self.broken(&error))? {
            SequenceItemHeader::Item { len } if len.is_defined() => Ok(len.get()),
            SequenceItemHeader::SequenceDelimiter => Ok(None),
            _ => Err(self.damaged("its encapsulated pixel data is no sequence of fragments")),
        }
    }

    /// Whether something other than a further attribute follows (PS3.10, 7.2 allows padding in (FFFC,FFFC)).
    pub(super) fn trailing_bytes(&mut self) -> bool {
        match self.decoder.decode_header() {
            Ok(header) => header.tag() <= tags::PIXEL_DATA,
            Err(error) => kind(&error) != Some(io::ErrorKind::UnexpectedEof),
        }
    }

    /// Passes over a sequence of undefined length, without recursion: nesting is the file's to choose.
    fn skip_sequence(&mut self) -> Result<(), VolumeError> {
        const ITEM_DELIMITER: Tag = Tag(0xFFFE, 0xE00D);
        let mut in_item = vec![false];
        while let Some(&inside) = in_item.last() {
            if inside {
                let header = self.decoder.decode_header().map_err(|error| self.broken(&error))?;
                match header.length().get() {
                    _ if header.tag() == ITEM_DELIMITER => drop(in_item.pop()),
                    Some(length) => self.skip(length)?,
                    None => in_item.push(false),
                }
                continue;
            }
            match self.decoder.decode_item_header().map_err(|error| self.broken(&error))? {
                SequenceItemHeader::Item { len } => match len.get() {
                    Some(length) => self.skip(length)?,
                    None => in_item.push(true),
                },
                SequenceItemHeader::SequenceDelimiter => drop(in_item.pop()),
                SequenceItemHeader::ItemDelimiter => {
                    return Err(self.damaged("a sequence in it ends an item that did not begin"));
                }
            }
        }
        Ok(())
    }

    pub(super) fn damaged(&self, problem: &str) -> VolumeError {
        VolumeError::Damaged { path: self.path.to_owned(), problem: problem.to_owned() }
    }

    /// The decoder's own words may quote the data set, so only the place is told.
    fn broken(&self, error: &(dyn Error + 'static)) -> VolumeError {
        match kind(error) {
            Some(io::ErrorKind::UnexpectedEof) => self.damaged("it ends within an attribute"),
            Some(kind @ (io::ErrorKind::PermissionDenied | io::ErrorKind::Other)) => {
                VolumeError::io(self.path, kind.into())
            }
            _ => {
                let place = self.decoder.position();
                self.damaged(&format!(
                    "its data set cannot be decoded {place} bytes after its meta information"
                ))
            }
        }
    }
}

/// The kind of the I/O error at the root of a decoder's error.
fn kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    let mut error = Some(error);
    while let Some(this) = error {
        if let Some(io) = this.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        error = this.source();
    }
    None
}

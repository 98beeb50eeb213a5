//! Walking a file's data set: a few attributes, then the pixel data.

use std::error::Error;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use dicom_core::header::{DataElementHeader, HasLength, Header, SequenceItemHeader};
use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;
use dicom_encoding::text::SpecificCharacterSet;
use dicom_parser::{DynStatefulDecoder, StatefulDecode};
use dicom_transfer_syntax_registry::entries;
use flate2::bufread::DeflateDecoder;

use super::attributes::{Attributes, label, missing};
use super::codestream::Fault;
use super::groups::{self, Groups};
use super::syntax::Encoding;
use crate::volume::VolumeError;
use crate::volume::hashing::Hashing;

const ITEM_DELIMITER: Tag = Tag(0xFFFE, 0xE00D);
/// No attribute that is read is longer.
const MAX_VALUE: u32 = 4096;
/// The File Meta Information (PS3.10, 7.1) is refused beyond this.
const MAX_META: u32 = 1 << 16;

/// What was found where the pixel data should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct PixelElement {
    pub(super) tag: Tag,
    pub(super) vr: VR,
    /// Bytes of native pixel data; `None` where it is encapsulated in fragments.
    pub(super) length: Option<u32>,
}

/// A data set up to its pixel data: what was wanted of it.
pub(super) struct DataSet {
    /// Of the top level.
    pub(super) attributes: Attributes,
    /// What frames have in common and each for itself; empty unless the image is an enhanced one.
    pub(super) groups: Groups,
    /// `None` where the data set has no pixel data.
    pub(super) pixel_data: Option<PixelElement>,
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
    let DataSet { attributes, .. } = meta.data_set(&[
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

    /// Reads on to the pixel data or the end, keeping the `wanted` attributes of the top level, and of functional groups
    /// those that [`groups`] lists.
    pub(super) fn data_set(&mut self, wanted: &[Tag]) -> Result<DataSet, VolumeError> {
        let mut attributes = Attributes::new(self.little);
        let mut groups = Groups::default();
        loop {
            let header = match self.decoder.decode_header() {
                Ok(header) => header,
                Err(error) if kind(&error) == Some(io::ErrorKind::UnexpectedEof) => {
                    return Ok(DataSet { attributes, groups, pixel_data: None });
                }
                Err(error) => return Err(self.broken(&error)),
            };
            let (tag, length) = (header.tag(), header.length().get());
            match tag {
                tags::PIXEL_DATA | tags::FLOAT_PIXEL_DATA | tags::DOUBLE_FLOAT_PIXEL_DATA => {
                    let pixel_data = Some(PixelElement { tag, vr: header.vr(), length });
                    return Ok(DataSet { attributes, groups, pixel_data });
                }
                tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE if wanted.contains(&tag) => {
                    attributes.insert(tag, Vec::new());
                    groups.shared = groups::read(self, length)?;
                }
                tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE if wanted.contains(&tag) => {
                    attributes.insert(tag, Vec::new());
                    groups.frames = groups::read(self, length)?;
                }
                _ if wanted.contains(&tag) => {
                    let value = self.value(&header)?;
                    attributes.insert(tag, value);
                }
                _ => self.pass(&header)?,
            }
        }
    }

    /// No attributes yet, in this data set's byte order.
    pub(super) fn no_attributes(&self) -> Attributes {
        Attributes::new(self.little)
    }

    /// The value of the attribute whose header was read last; nothing for a sequence, which is passed over.
    pub(super) fn value(&mut self, header: &DataElementHeader) -> Result<Vec<u8>, VolumeError> {
        let mut value = Vec::new();
        match header.length().get() {
            Some(length) if header.vr() != VR::SQ => {
                if length > MAX_VALUE {
                    let (found, expected) =
                        (format!("{length} bytes long"), format!("at most {MAX_VALUE} bytes"));
                    return Err(VolumeError::field(self.path, label(header.tag()), found, expected));
                }
                self.read(length, &mut value)?;
            }
            _ => self.pass(header)?,
        }
        Ok(value)
    }

    /// Passes over the value of the attribute whose header was read last.
    pub(super) fn pass(&mut self, header: &DataElementHeader) -> Result<(), VolumeError> {
        match header.length().get() {
            Some(length) => self.skip(length),
            None => self.skip_sequence(),
        }
    }

    /// Walks the items of a sequence, `length` bytes of them or up to its delimiter; `each` is given an item's length
    /// and must read all of it.
    pub(super) fn items(
        &mut self,
        length: Option<u32>,
        mut each: impl FnMut(&mut Self, Option<u32>) -> Result<(), VolumeError>,
    ) -> Result<(), VolumeError> {
        let end = length.map(|length| self.decoder.position() + u64::from(length));
        while end.is_none_or(|end| self.decoder.position() < end) {
            match self.decoder.decode_item_header().map_err(|error| self.broken(&error))? {
                SequenceItemHeader::Item { len } => each(self, len.get())?,
                SequenceItemHeader::SequenceDelimiter if end.is_none() => return Ok(()),
                _ => return Err(self.damaged("a sequence in it ends before it is over")),
            }
        }
        self.stand_at(end)
    }

    /// Walks the attributes of an item, as [`Self::items`]; `each` must read their values.
    pub(super) fn elements(
        &mut self,
        length: Option<u32>,
        mut each: impl FnMut(&mut Self, &DataElementHeader) -> Result<(), VolumeError>,
    ) -> Result<(), VolumeError> {
        let end = length.map(|length| self.decoder.position() + u64::from(length));
        while end.is_none_or(|end| self.decoder.position() < end) {
            let header = self.decoder.decode_header().map_err(|error| self.broken(&error))?;
            if header.tag() == ITEM_DELIMITER && end.is_none() {
                return Ok(());
            }
            each(self, &header)?;
        }
        self.stand_at(end)
    }

    fn stand_at(&self, end: Option<u64>) -> Result<(), VolumeError> {
        match end {
            Some(end) if self.decoder.position() != end => {
                Err(self.damaged("a sequence in it is longer than its length says"))
            }
            _ => Ok(()),
        }
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

    /// What is wrong with a codestream of the family `name`.
    pub(super) fn fault(&self, name: &str, fault: Fault) -> VolumeError {
        match fault {
            Fault::Damaged(problem) => self.damaged(&format!("its {name} data {problem}")),
            Fault::Unsupported(what) => VolumeError::Unsupported {
                path: self.path.to_owned(),
                found: format!("{name} data that {what}"),
                instead: "convert it to explicit little endian or RLE lossless".to_owned(),
            },
        }
    }

    pub(super) fn truncated(&self, what: &'static str, found: u64, expected: u64) -> VolumeError {
        VolumeError::Truncated { path: self.path.to_owned(), what, found, expected }
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

//! NIfTI-1 and NIfTI-2, `.nii` and `.nii.gz`.
//!
//! The reader is our own because the `nifti` crate (0.18) refuses NIfTI-2, panics on complex and RGB data and
//! on a `bitpix` that contradicts the type, turns a NaN slope into NaN voxels, truncates scaled integers,
//! takes any `vox_offset` and reads one gzip member only. The crate is the tests' oracle on well-formed files.
//!
//! Everything the header says is checked against the file's size before anything is allocated, and a
//! compressed file is inflated block by block, hardly further than its header declares.
//!
//! Source: the NIfTI-1 and NIfTI-2 headers `nifti1.h` and `nifti2.h` of the NIfTI working group.

mod header;
mod placement;
mod voxels;
mod write;

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::hashing::Hashing;
use super::{ReadOptions, Source, SourceKind, Volume, VolumeError};
use header::Header;
pub use write::write_nifti;

const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Deflate cannot shrink data further than 1032 to 1.
const MAX_INFLATION: u64 = 1032;

/// Whether a file that starts like this is read as NIfTI: plain or gzip.
pub(super) fn is_nifti(start: &[u8]) -> bool {
    start.starts_with(&GZIP) || header::layout(start).is_some()
}

/// The error for a file that is neither NIfTI nor DICOM; old pairs are told by their names.
pub(super) fn unreadable(path: &Path, start: &[u8]) -> VolumeError {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let named = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    if named(&[".img", ".hdr", ".img.gz", ".hdr.gz"]) {
        return header::pair(path);
    }
    let found = match start {
        [] => "empty",
        _ if named(&[".nii", ".nii.gz"]) => "not NIfTI despite its name",
        _ if named(&[".dcm", ".ima"]) => "not DICOM despite its name",
        _ => "neither NIfTI nor DICOM",
    };
    VolumeError::Format { path: path.to_owned(), found: found.to_owned() }
}

/// Reads one volume.
pub(super) fn read(path: &Path, options: &ReadOptions) -> Result<Volume, VolumeError> {
    let io = |source| VolumeError::io(path, source);
    let file = File::open(path).map_err(io)?;
    let file_bytes = file.metadata().map_err(io)?.len();
    let mut stream = Stream::new(file).map_err(io)?;

    let header = read_header(path, &mut stream)?;
    let index = header.choose_volume(options.volume_index, path)?;
    check_size(path, &header, &stream, file_bytes)?;
    let (geometry, mut warnings) = placement::place(&header, options.assume_orientation, path)?;

    let voxel_bytes = header.kind.bytes() as u64;
    let volume_bytes = header.voxels() as u64 * voxel_bytes;
    let total = volume_bytes * header.volumes;
    let before = volume_bytes * index;
    let mut reader = voxels::Data { path, stream: &mut stream, expected: total, done: 0 };
    reader.skip_header(header.vox_offset - header.size())?;
    reader.skip(before)?;
    let voxels = reader.read(&header)?;
    reader.skip(total - before - volume_bytes)?;
    if reader.rest()? {
        warnings.push("bytes after the last voxel were ignored".to_owned());
    }
    let source = Source {
        kind: SourceKind::Nifti,
        path: PathBuf::from(path),
        digest: stream.finish().map_err(io)?,
        study_uid: None,
        series_uid: None,
        instances: Vec::new(),
        frames: Vec::new(),
        modality: None,
        body_part: None,
    };
    Ok(Volume { dims: header.dims, voxels, geometry, source, warnings })
}

fn read_header(path: &Path, stream: &mut Stream) -> Result<Header, VolumeError> {
    let mut bytes = Vec::with_capacity(header::SIZE_2);
    let mut fill = |bytes: &mut Vec<u8>, size: usize| {
        let missing = (size - bytes.len()) as u64;
        stream.by_ref().take(missing).read_to_end(bytes).map_err(|e| damaged(path, e))?;
        if bytes.len() == size {
            return Ok(());
        }
        let (found, expected) = (bytes.len() as u64, size as u64);
        Err(VolumeError::Truncated { path: path.to_owned(), what: "NIfTI header", found, expected })
    };
    fill(&mut bytes, 4)?;
    let Some(layout) = header::layout(&bytes) else {
        let found = "compressed, but not compressed NIfTI".to_owned();
        return Err(VolumeError::Format { path: path.to_owned(), found });
    };
    fill(&mut bytes, layout.size())?;
    Header::parse(layout, &bytes, path)
}

/// Compares what the header declares with what the file can hold.
fn check_size(path: &Path, header: &Header, stream: &Stream, file_bytes: u64) -> Result<(), VolumeError> {
    let declared = u128::from(header.vox_offset)
        + header.voxels() as u128 * header.kind.bytes() as u128 * u128::from(header.volumes);
    let most = match stream {
        Stream::Plain(_) => file_bytes,
        Stream::Gzip(_) => file_bytes.saturating_mul(MAX_INFLATION),
    };
    if declared <= u128::from(most) {
        return Ok(());
    }
    let expected = u64::try_from(declared).unwrap_or(u64::MAX);
    Err(VolumeError::Truncated { path: path.to_owned(), what: "data", found: most, expected })
}

/// An error of the inflater: a wrong file unless the device itself failed.
fn damaged(path: &Path, error: io::Error) -> VolumeError {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    match error.kind() {
        InvalidData | InvalidInput | UnexpectedEof => VolumeError::Damaged {
            path: path.to_owned(),
            problem: format!("its gzip stream is bad ({error})"),
        },
        _ => VolumeError::io(path, error),
    }
}

/// The file's bytes, inflated where it is compressed, and hashed as they are on disk.
enum Stream {
    Plain(BufReader<Hashing<File>>),
    Gzip(Box<MultiGzDecoder<BufReader<Hashing<File>>>>),
}

impl Stream {
    fn new(file: File) -> io::Result<Self> {
        use io::BufRead;
        let mut reader = BufReader::with_capacity(1 << 17, Hashing::new(file));
        let gzip = reader.fill_buf()?.starts_with(&GZIP);
        Ok(if gzip { Self::Gzip(Box::new(MultiGzDecoder::new(reader))) } else { Self::Plain(reader) })
    }

    /// SHA-256 of the whole file.
    fn finish(self) -> io::Result<String> {
        let reader = match self {
            Self::Plain(reader) => reader,
            Self::Gzip(decoder) => decoder.into_inner(),
        };
        reader.into_inner().finish()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests;

//! The voxels: decoded block by block to f32, scaled in f64.

use std::io::Read;
use std::path::Path;

use super::header::{Header, Kind};
use super::{Stream, damaged};
use crate::volume::VolumeError;

/// Bytes decoded at a time; a multiple of every voxel size.
const BLOCK: usize = 1 << 16;
/// Most bytes that may follow the last voxel.
const MAX_REST: u64 = 1 << 24;

/// The part of a file behind its header, and how much of the voxels' bytes was read.
pub(super) struct Data<'a> {
    pub(super) path: &'a Path,
    pub(super) stream: &'a mut Stream,
    /// Bytes of all voxels of all volumes.
    pub(super) expected: u64,
    pub(super) done: u64,
}

impl Data<'_> {
    /// Skips header extensions.
    pub(super) fn skip_header(&mut self, bytes: u64) -> Result<(), VolumeError> {
        let copied = std::io::copy(&mut self.stream.by_ref().take(bytes), &mut std::io::sink());
        let found = copied.map_err(|e| damaged(self.path, e))?;
        if found == bytes {
            return Ok(());
        }
        let path = self.path.to_owned();
        Err(VolumeError::Truncated { path, what: "header extension", found, expected: bytes })
    }

    /// Skips voxels.
    pub(super) fn skip(&mut self, bytes: u64) -> Result<(), VolumeError> {
        let copied = std::io::copy(&mut self.stream.by_ref().take(bytes), &mut std::io::sink());
        let found = copied.map_err(|e| self.broken(e))?;
        self.done += found;
        if found == bytes { Ok(()) } else { Err(self.truncated()) }
    }

    /// Reads one volume.
    pub(super) fn read(&mut self, header: &Header) -> Result<Vec<f32>, VolumeError> {
        let count = header.voxels();
        let mut voxels = Vec::new();
        voxels
            .try_reserve_exact(count)
            .map_err(|_| VolumeError::Memory { path: self.path.to_owned(), bytes: 4 * count })?;
        let mut block = vec![0; BLOCK];
        let mut left = count * header.kind.bytes();
        let mut bad = 0;
        let mut first_bad = 0;
        while left > 0 {
            let part = &mut block[..left.min(BLOCK)];
            self.fill(part)?;
            left -= part.len();
            let start = voxels.len();
            decode(header, part, &mut voxels);
            for (n, value) in voxels[start..].iter().enumerate() {
                if !value.is_finite() {
                    if bad == 0 {
                        first_bad = start + n;
                    }
                    bad += 1;
                }
            }
        }
        if bad == 0 {
            return Ok(voxels);
        }
        let [nx, ny, _] = header.dims;
        let first = [first_bad % nx, first_bad / nx % ny, first_bad / (nx * ny)];
        Err(VolumeError::NotFinite { path: self.path.to_owned(), count: bad, first })
    }

    /// Reads on to the end, which also checks the last gzip member's checksum; whether anything was there.
    pub(super) fn rest(&mut self) -> Result<bool, VolumeError> {
        let mut rest = self.stream.by_ref().take(MAX_REST + 1);
        let found = std::io::copy(&mut rest, &mut std::io::sink()).map_err(|e| damaged(self.path, e))?;
        if found > MAX_REST {
            let problem = format!("more than {MAX_REST} bytes follow its last voxel");
            return Err(VolumeError::Damaged { path: self.path.to_owned(), problem });
        }
        Ok(found > 0)
    }

    fn fill(&mut self, mut part: &mut [u8]) -> Result<(), VolumeError> {
        while !part.is_empty() {
            match self.stream.read(part) {
                Ok(0) => return Err(self.truncated()),
                Ok(n) => {
                    self.done += n as u64;
                    part = &mut part[n..];
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.broken(e)),
            }
        }
        Ok(())
    }

    fn truncated(&self) -> VolumeError {
        let path = self.path.to_owned();
        VolumeError::Truncated { path, what: "data", found: self.done, expected: self.expected }
    }

    /// A gzip stream that simply ends is truncated, anything else damaged.
    fn broken(&self, error: std::io::Error) -> VolumeError {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            self.truncated()
        } else {
            damaged(self.path, error)
        }
    }
}

fn decode(header: &Header, bytes: &[u8], out: &mut Vec<f32>) {
    let (slope, inter) = header.scale;
    let little = header.layout.little;
    macro_rules! append {
        ($kind:ty) => {{
            let chunks = bytes.as_chunks::<{ size_of::<$kind>() }>().0.iter();
            let scaled = |value: $kind| (value as f64 * slope + inter) as f32;
            if little {
                out.extend(chunks.map(|raw| scaled(<$kind>::from_le_bytes(*raw))));
            } else {
                out.extend(chunks.map(|raw| scaled(<$kind>::from_be_bytes(*raw))));
            }
        }};
    }
    match header.kind {
        Kind::U8 => append!(u8),
        Kind::I8 => append!(i8),
        Kind::U16 => append!(u16),
        Kind::I16 => append!(i16),
        Kind::U32 => append!(u32),
        Kind::I32 => append!(i32),
        Kind::U64 => append!(u64),
        Kind::I64 => append!(i64),
        Kind::F32 => append!(f32),
        Kind::F64 => append!(f64),
    }
}

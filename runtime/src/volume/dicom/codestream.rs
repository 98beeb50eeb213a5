//! What a codestream says of itself, read before any decoder sees it.
//!
//! The decoders believe a codestream's own size: two of them panic where the data set has another one, the third
//! returns as many bytes as it likes. JPEG 2000's fills what was cut off with zeros. So size, number of components,
//! coding process and the mark of the end are checked here, at the price of reading a few bytes.

use super::syntax::Coding;

/// What a codestream holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Codestream {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Bits of a sample, 1 to 16.
    pub(super) bits: u16,
    /// Whether it says that samples are signed; only JPEG 2000 can.
    pub(super) signed: bool,
}

/// Why a codestream is not decoded; each to follow "its … data".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is broken or belongs to another image.
    Damaged(String),
    /// It is sound, but of a kind that is not read.
    Unsupported(String),
}

impl Codestream {
    /// Reads the headers of one frame's codestream.
    pub(super) fn inspect(data: &[u8], coding: Coding) -> Result<Self, Fault> {
        let found = match coding {
            Coding::Jpeg2000 | Coding::Jpeg2000Lossless => jpeg2000(data)?,
            Coding::JpegLsLossless | Coding::JpegLsNearLossless => jpeg(data, &[JPEG_LS_FRAME])?,
            Coding::JpegBaseline => jpeg(data, &[BASELINE_FRAME, EXTENDED_FRAME])?,
            Coding::JpegLossless | Coding::JpegLosslessSv1 => jpeg(data, &[LOSSLESS_FRAME])?,
        };
        if !(1..=16).contains(&found.bits) {
            return Err(Fault::Unsupported(format!(
                "has {} bits a pixel, more than the 16 that are read",
                found.bits
            )));
        }
        if coding == Coding::JpegBaseline && found.bits != 8 {
            return Err(Fault::Unsupported(format!(
                "has {} bits a pixel where JPEG baseline has 8",
                found.bits
            )));
        }
        Ok(found)
    }
}

/// Whether a fragment is the first of a frame: all codestreams here begin with a marker of their own.
pub(super) fn begins(fragment: &[u8], coding: Coding) -> bool {
    fragment.starts_with(match coding {
        Coding::Jpeg2000 | Coding::Jpeg2000Lossless => &[0xFF, 0x4F, 0xFF, 0x51],
        _ => &[0xFF, 0xD8, 0xFF],
    })
}

/// End of image, and of a JPEG 2000 codestream. Coded data cannot contain it: all three kinds stuff a bit or a byte behind FF.
pub(super) const END: [u8; 2] = [0xFF, 0xD9];
/// Start of frame of each coding process (ITU-T T.81, Table B.1; T.87, C.1.1).
const BASELINE_FRAME: u8 = 0xC0;
const EXTENDED_FRAME: u8 = 0xC1;
const LOSSLESS_FRAME: u8 = 0xC3;
const JPEG_LS_FRAME: u8 = 0xF7;
/// Define restart interval, start of scan.
const RESTART_INTERVAL: u8 = 0xDD;
const SCAN: u8 = 0xDA;

fn damaged(problem: &str) -> Fault {
    Fault::Damaged(problem.to_owned())
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])))
}

fn long(bytes: &[u8], at: usize) -> Option<usize> {
    Some(word(bytes, at)? << 16 | word(bytes, at + 2)?)
}

/// The marker segments up to the first scan (ITU-T T.81, Annex B).
fn jpeg(data: &[u8], processes: &[u8]) -> Result<Codestream, Fault> {
    let ends = || damaged("ends within its header");
    let mut rest =
        data.strip_prefix(&[0xFF, 0xD8]).ok_or_else(|| damaged("does not begin with a start of image"))?;
    let mut frame = None;
    let mut restarts = false;
    loop {
        let [0xFF, marker, after @ ..] = rest else {
            return Err(if rest.len() < 2 {
                ends()
            } else {
                damaged("has something else where a marker should be")
            });
        };
        if *marker == 0xFF {
            // A marker may be preceded by fill bytes.
            rest = &rest[1..];
            continue;
        }
        let length = word(after, 0).ok_or_else(ends)?;
        let segment = after.get(2..length).ok_or_else(ends)?;
        match *marker {
            SCAN => {
                let (process, found) = frame.ok_or_else(|| damaged("has a scan before its frame"))?;
                if process == LOSSLESS_FRAME {
                    check_lossless_scan(segment, restarts)?;
                }
                // Behind it is padding: one byte to make the length even, by some encoders more, of any value.
                let whole = after[length..].windows(2).any(|pair| pair == END);
                return if whole { Ok(found) } else { Err(damaged("ends without its end marker")) };
            }
            RESTART_INTERVAL => restarts = word(segment, 0).ok_or_else(ends)? > 0,
            // Start of frame, of whatever process; between them are DHT, JPG and DAC.
            0xC0..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF | JPEG_LS_FRAME => {
                if !processes.contains(marker) {
                    return Err(Fault::Damaged(format!(
                        "is of another coding process (start of frame FF{marker:02X}) than its transfer syntax"
                    )));
                }
                if frame.is_some() {
                    return Err(damaged("has two frames in one codestream"));
                }
                let [bits, _, _, _, _, components, ..] = *segment else { return Err(ends()) };
                check_components(usize::from(components))?;
                let (rows, columns) =
                    (word(segment, 1).ok_or_else(ends)?, word(segment, 3).ok_or_else(ends)?);
                frame = Some((*marker, Codestream { rows, columns, bits: u16::from(bits), signed: false }));
            }
            _ => {}
        }
        rest = &after[length..];
    }
}

/// What the lossless decoder would get wrong without a word: it ignores restarts, and shifts predictions together with
/// samples. Neither occurs in what scanners write, since DICOM's lossless images have no point transform.
fn check_lossless_scan(segment: &[u8], restarts: bool) -> Result<(), Fault> {
    if restarts {
        return Err(Fault::Unsupported("is lossless with restart intervals".to_owned()));
    }
    let &[.., predictor, _, approximation] = segment else { return Err(damaged("ends within its header")) };
    if !(1..=7).contains(&predictor) {
        return Err(Fault::Damaged(format!("uses predictor {predictor}, expected 1 to 7")));
    }
    if approximation != 0 {
        return Err(Fault::Unsupported("is lossless with a point transform".to_owned()));
    }
    Ok(())
}

fn check_components(components: usize) -> Result<(), Fault> {
    if components == 1 {
        return Ok(());
    }
    Err(Fault::Damaged(format!("has {components} components a pixel where SamplesPerPixel (0028,0002) is 1")))
}

/// The image and tile size segment (ITU-T T.800, A.5.1), which comes first.
fn jpeg2000(data: &[u8]) -> Result<Codestream, Fault> {
    if !data.starts_with(&[0xFF, 0x4F, 0xFF, 0x51]) {
        return Err(damaged("does not begin with a codestream"));
    }
    let ends = || damaged("ends within its header");
    let at = |n: usize| long(data, n).ok_or_else(ends);
    let [right, bottom, left, top] = [at(8)?, at(12)?, at(16)?, at(20)?];
    let [tile_width, tile_height] = [at(24)?, at(28)?];
    check_components(word(data, 40).ok_or_else(ends)?)?;
    let &[depth, across, down] = data.get(42..45).ok_or_else(ends)? else { return Err(ends()) };
    if (across, down) != (1, 1) {
        return Err(Fault::Damaged(format!("has a sample for {across} × {down} pixels, expected 1 × 1")));
    }
    let [columns, rows] = [right.saturating_sub(left), bottom.saturating_sub(top)];
    // The decoder allocates for every tile before it sees any of them.
    let tiles = (columns / tile_width.max(1) + 1) * (rows / tile_height.max(1) + 1);
    if tile_width == 0 || tile_height == 0 || tiles > 64 + columns * rows / 256 {
        return Err(Fault::Damaged(format!("has tiles of {tile_width} × {tile_height} pixels")));
    }
    check_tile_parts(data)?;
    Ok(Codestream { rows, columns, bits: u16::from(depth & 0x7F) + 1, signed: depth & 0x80 != 0 })
}

/// Tile parts say how long they are (ITU-T T.800, A.4.2): one after the other they must lead to the end of the codestream.
/// The decoder takes what is not there for zeros.
fn check_tile_parts(data: &[u8]) -> Result<(), Fault> {
    const TILE_PART: usize = 0xFF90;
    let ends = || damaged("ends within its header");
    let mut at = 2;
    while word(data, at).ok_or_else(ends)? != TILE_PART {
        at += 2 + word(data, at + 2).ok_or_else(ends)?;
    }
    loop {
        match word(data, at) {
            Some(TILE_PART) => match long(data, at + 6).ok_or_else(|| damaged("ends within a tile part"))? {
                // The last one, up to the end.
                0 if data[at..].windows(2).any(|pair| pair == END) => return Ok(()),
                0 => return Err(damaged("ends without its end marker")),
                length @ 14.. => at += length,
                length => return Err(Fault::Damaged(format!("has a tile part of {length} bytes"))),
            },
            Some(0xFFD9) => return Ok(()),
            Some(_) => return Err(damaged("has a tile part that is not as long as it says")),
            None => return Err(damaged("ends within a tile part")),
        }
    }
}

#[cfg(test)]
mod tests;

//! Event files that TensorBoard shows: one in each run folder.
//!
//! A file is a sequence of TFRecords (length and payload, each with a masked CRC-32C) of `Event` messages
//! (tensorflow/core/util/event.proto), of which only the scalar form is written. Point TensorBoard at a run folder, or at a
//! folder of many.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::Error;

/// Name of the event file in a run folder; TensorBoard takes any with `tfevents` in it.
pub const FILE: &str = "events.out.tfevents.scanside";

/// What the first record says.
const VERSION: &[u8] = b"brain.Event:2";

/// An event file that is being written.
pub struct Events {
    file: File,
    path: PathBuf,
}

impl Events {
    /// Opens the event file in `folder`, or begins it. Events of steps after `step` are dropped, and so is a record that was
    /// not written to its end: a resumed fit takes those steps again. The file stays the same one, so that a TensorBoard
    /// that reads it goes on.
    pub fn open(folder: &Path, step: u64, now: f64) -> Result<Self, Error> {
        let path = folder.join(FILE);
        let io = |e| Error::io(&path)(e);
        let there = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(io(e)),
        };
        let mut kept = 0;
        while let Some((end, payload)) = record_at(&there, kept) {
            if step_of(payload).is_none_or(|at| at > step) {
                break;
            }
            kept = end;
        }
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(io)?;
        file.set_len(kept as u64).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        let mut events = Self { file, path };
        if kept == 0 {
            let mut event = header(now, 0);
            bytes_field(3, VERSION, &mut event);
            events.append(&event)?;
        }
        Ok(events)
    }

    /// Adds named values at a step; `now` in seconds since 1970.
    pub fn scalars(&mut self, now: f64, step: u64, values: &[(&str, f64)]) -> Result<(), Error> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut one = Vec::new();
            bytes_field(1, tag.as_bytes(), &mut one);
            // Field 2, four bytes.
            one.push(2 << 3 | 5);
            one.extend((*value as f32).to_le_bytes());
            bytes_field(1, &one, &mut summary);
        }
        let mut event = header(now, step);
        bytes_field(5, &summary, &mut event);
        self.append(&event)
    }

    fn append(&mut self, payload: &[u8]) -> Result<(), Error> {
        // One write, so that a reader hardly ever meets half a record.
        self.file.write_all(&record(payload)).map_err(Error::io(&self.path))
    }
}

/// The fields of every event: wall time (1, eight bytes) and step (2, varint).
fn header(now: f64, step: u64) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend(now.to_le_bytes());
    event.push(2 << 3);
    varint(step, &mut event);
    event
}

/// The step of an event that [`header`] begins.
fn step_of(event: &[u8]) -> Option<u64> {
    let mut step = 0;
    for (i, &byte) in event.get(10..)?.iter().take(10).enumerate() {
        step |= u64::from(byte & 0x7f).checked_shl(7 * i as u32)?;
        if byte & 0x80 == 0 {
            return (event[0] == 0x09 && event[9] == 0x10).then_some(step);
        }
    }
    None
}

/// A length-delimited protobuf field.
fn bytes_field(number: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    varint(bytes.len() as u64, out);
    out.extend(bytes);
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A TFRecord.
fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(payload);
    record.extend(masked_crc(payload).to_le_bytes());
    record
}

/// End and payload of the sound record that begins at `start`.
fn record_at(bytes: &[u8], start: usize) -> Option<(usize, &[u8])> {
    let rest = &bytes[start..];
    let length: [u8; 8] = rest.get(..8)?.try_into().ok()?;
    let size = usize::try_from(u64::from_le_bytes(length)).ok()?;
    let payload = rest.get(12..size.checked_add(12)?)?;
    let sound = rest[8..12] == masked_crc(&length).to_le_bytes()
        && *rest.get(12 + size..size.checked_add(16)?)? == masked_crc(payload).to_le_bytes();
    sound.then_some((start + size + 16, payload))
}

/// CRC-32C, rotated by 15 bits and moved, as TFRecords have it, since a CRC of what contains CRCs is weak.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4), bit by bit: events are short.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

/// Step, tag and value of all scalars in the event file of `folder`.
#[cfg(test)]
pub(crate) fn scalars_in(folder: &Path) -> Vec<(u64, String, f32)> {
    /// Fields of a message whose values are all length-delimited or of four bytes, and whose sizes are below 128 or of two
    /// bytes.
    fn fields(mut rest: &[u8]) -> Vec<(u8, &[u8])> {
        let mut found = Vec::new();
        while let [key, tail @ ..] = rest {
            let (size, skip) = match (key & 7, tail) {
                (5, _) => (4, 0),
                (2, [low, high, ..]) if low & 0x80 != 0 => {
                    (usize::from(low & 0x7f) + 128 * usize::from(*high), 2)
                }
                (2, [size, ..]) => (usize::from(*size), 1),
                _ => panic!("{rest:?}"),
            };
            found.push((key >> 3, &tail[skip..skip + size]));
            rest = &tail[skip + size..];
        }
        found
    }
    let bytes = std::fs::read(folder.join(FILE)).unwrap();
    let (mut at, mut scalars) = (0, Vec::new());
    while let Some((end, event)) = record_at(&bytes, at) {
        let step = step_of(event).unwrap();
        let varint = event[10..].iter().position(|byte| byte & 0x80 == 0).unwrap() + 11;
        for (_, summary) in fields(&event[varint..]).into_iter().filter(|(number, _)| *number == 5) {
            for (_, value) in fields(summary) {
                let parts = fields(value);
                let tag = String::from_utf8(parts[0].1.to_vec()).unwrap();
                scalars.push((step, tag, f32::from_le_bytes(parts[1].1.try_into().unwrap())));
            }
        }
        at = end;
    }
    assert_eq!(at, bytes.len());
    scalars
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4, and the check value of the catalogue of CRCs.
    #[test]
    fn the_standards_vectors() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&rising), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// Bytes as protobuf's specification has them: `val/auroc` = 0.75 at step 300, an hour and a half after 1970.
    #[test]
    fn an_event_byte_by_byte() {
        let folder = tempfile::tempdir().unwrap();
        Events::open(folder.path(), 0, 0.0).unwrap().scalars(5400.0, 300, &[("val/auroc", 0.75)]).unwrap();
        let bytes = std::fs::read(folder.path().join(FILE)).unwrap();
        let (end, first) = record_at(&bytes, 0).unwrap();
        assert_eq!(first, b"\x09\0\0\0\0\0\0\0\0\x10\0\x1a\x0dbrain.Event:2");
        let (end, second) = record_at(&bytes, end).unwrap();
        // 5400 = 1.318359375 · 2^12: 0x40b5180000000000; 300 = 0b10 0101100; 0.75f32 = 0x3f400000.
        let expected =
            b"\x09\0\0\0\0\0\x18\xb5\x40\x10\xac\x02\x2a\x12\x0a\x10\x0a\x09val/auroc\x15\0\0\x40\x3f";
        assert_eq!((second, end), (&expected[..], bytes.len()));
    }

    #[test]
    fn what_lies_beyond_the_checkpoint_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let mut events = Events::open(folder.path(), 0, 1.0).unwrap();
        for step in 1..=4 {
            events.scalars(1.0, step, &[("a", step as f64)]).unwrap();
        }
        let whole = std::fs::read(&path).unwrap();
        // A write that a power cut has ended half way.
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        let mut again = Events::open(folder.path(), 2, 9.0).unwrap();
        for step in 3..=4 {
            again.scalars(1.0, step, &[("a", step as f64)]).unwrap();
        }
        assert!(std::fs::read(&path).unwrap() == whole);
        // A flipped bit ends what is kept.
        let mut broken = whole.clone();
        broken[45] ^= 1;
        std::fs::write(&path, &broken).unwrap();
        Events::open(folder.path(), 4, 1.0).unwrap();
        let kept = std::fs::read(&path).unwrap();
        assert!(kept.len() < whole.len() && whole.starts_with(&kept) && !kept.is_empty());
    }
}

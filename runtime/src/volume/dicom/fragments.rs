//! Encapsulated pixel data: fragments joined into frames (PS3.5, A.4).

use super::codestream::begins;
use super::dataset::Walk;
use super::syntax::Syntax;
use crate::volume::VolumeError;

/// The frames of a file's encapsulated pixel data, one after the other.
///
/// A frame of RLE is one fragment. A codestream may be spread over several, and the next frame's is told by the marker that
/// all codestreams begin with; the offset tables, which files often fill wrongly, are not asked.
pub(super) struct Fragments {
    syntax: Syntax,
    /// Most bytes of one frame.
    limit: u64,
    frames: usize,
    /// Frames already given.
    given: usize,
    /// The first fragment of the next frame, where it was read to see the end of the last one.
    next: Vec<u8>,
    over: bool,
}

impl Fragments {
    /// Stands behind the header of the pixel data; `frame` is the size of a decoded frame in bytes.
    pub(super) fn begin(
        walk: &mut Walk,
        syntax: Syntax,
        frames: usize,
        frame: usize,
    ) -> Result<Self, VolumeError> {
        let table = walk.fragment()?.ok_or_else(|| walk.damaged("its pixel data has no fragment"))?;
        walk.skip(table)?;
        let limit = match syntax {
            // PackBits never needs more than one byte more for 128, and each segment may be padded.
            Syntax::Rle => 64 + 2 * frame as u64 + 64,
            // Noise grows a little; a codestream may carry comments.
            _ => 2 * frame as u64 + (1 << 20),
        };
        Ok(Self { syntax, limit, frames, given: 0, next: Vec::new(), over: false })
    }

    /// Puts the next frame into `out`.
    pub(super) fn read(&mut self, walk: &mut Walk, out: &mut Vec<u8>) -> Result<(), VolumeError> {
        out.clear();
        std::mem::swap(out, &mut self.next);
        if out.is_empty() && !self.over {
            self.fragment(walk, out)?;
        }
        if out.is_empty() {
            let problem = format!("its pixel data has {} of {} frames", self.given, self.frames);
            return Err(walk.damaged(&problem));
        }
        self.given += 1;
        while !self.over {
            let start = out.len();
            self.fragment(walk, out)?;
            let more = &out[start..];
            let another = match self.syntax {
                Syntax::Coded(coding) => begins(more, coding),
                _ => !more.is_empty(),
            };
            if another {
                self.next = out.split_off(start);
                break;
            }
        }
        if self.given == self.frames && !self.next.is_empty() {
            return Err(walk.damaged(&format!(
                "its pixel data has more frames than the {} that it should",
                self.frames
            )));
        }
        Ok(())
    }

    /// Appends one fragment, or notes that there is none.
    fn fragment(&mut self, walk: &mut Walk, out: &mut Vec<u8>) -> Result<(), VolumeError> {
        let length = match walk.fragment() {
            Ok(Some(length)) => length,
            Ok(None) => {
                self.over = true;
                return Ok(());
            }
            // The frames are whole, even where the mark of the end was cut off.
            Err(_) if self.given == self.frames => {
                self.over = true;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let name = self.syntax.name();
        if out.len() as u64 + u64::from(length) > self.limit {
            let (limit, all) = (self.limit, out.len() as u64 + u64::from(length));
            let problem =
                format!("its {name} data declares {all} bytes a frame where {limit} would be too many");
            return Err(walk.damaged(&problem));
        }
        let start = out.len();
        walk.read(length, out)?;
        if out.len() - start < length as usize {
            let (found, expected) = ((out.len() - start) as u64, u64::from(length));
            return Err(walk.truncated("fragment of pixel data", found, expected));
        }
        Ok(())
    }
}

//! Decoders of the JPEG family behind a guard.
//!
//! `dicom-transfer-syntax-registry` brings them: `jpeg-decoder` and `openjp2` in Rust, CharLS in C++. A frame goes in only
//! if its codestream has the size of the image ([`Codestream`]), a panic is caught, and what comes out must be as long
//! as the image.

use std::any::Any;
use std::borrow::Cow;
use std::cell::Cell;
use std::error::Error;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use dicom_encoding::TransferSyntaxIndex;
use dicom_encoding::adapters::{PixelDataObject, RawPixelData};
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;

use super::codestream::{Codestream, END, Fault};
use super::pixels::Format;
use super::syntax::Coding;

#[cfg(panic = "abort")]
compile_error!("a panic of a decoder must be caught: build with panic = \"unwind\"");

/// Decodes one frame into `out`, little-endian; returns how its pixels are then stored.
///
/// The fault follows "its … data".
pub(super) fn decode(
    data: &[u8],
    coding: Coding,
    [rows, columns]: [usize; 2],
    format: Format,
    out: &mut Vec<u8>,
) -> Result<Format, Fault> {
    let codestream = Codestream::inspect(data, coding)?;
    let format = decoded_format(codestream, coding, format)?;
    if (codestream.rows, codestream.columns) != (rows, columns) {
        let Codestream { rows: high, columns: wide, .. } = codestream;
        return Err(Fault::Damaged(format!(
            "is {high} × {wide} pixels where Rows × Columns is {rows} × {columns}"
        )));
    }
    let expected = rows * columns * usize::from(format.bits_allocated / 8);
    let frame = Frame { data, coding, rows, columns, bits_allocated: format.bits_allocated };
    let mut done = guarded(&frame, out);
    if let (Err(_), Some(mended)) = (&done, without_padding(data, coding)) {
        done = guarded(&Frame { data: &mended, ..frame }, out);
    }
    done.map_err(|why| Fault::Damaged(format!("cannot be decoded ({why})")))?;
    if out.len() != expected {
        return Err(Fault::Damaged(format!("gives {} bytes where {expected} were expected", out.len())));
    }
    Ok(format)
}

/// How the decoded pixels are stored, or why codestream and data set contradict each other.
fn decoded_format(codestream: Codestream, coding: Coding, format: Format) -> Result<Format, Fault> {
    let bits = codestream.bits;
    if bits > format.bits_allocated {
        let allocated = format.bits_allocated;
        let problem = format!("has {bits} bits a pixel where BitsAllocated (0028,0100) is {allocated}");
        return Err(Fault::Damaged(problem));
    }
    if codestream.signed && !format.signed {
        return Err(Fault::Damaged("is signed where PixelRepresentation (0028,0103) is 0".to_owned()));
    }
    let bytes = match coding {
        Coding::JpegBaseline => 1,
        // Its decoder gives bytes for 8 bits only, not for fewer.
        Coding::JpegLossless | Coding::JpegLosslessSv1 => 1 + u16::from(bits != 8),
        Coding::JpegLsLossless | Coding::JpegLsNearLossless => 1 + u16::from(bits > 8),
        Coding::Jpeg2000Lossless | Coding::Jpeg2000 => 2,
    };
    // A codestream of fewer bits than are stored has its sign in the highest that it has. That also settles JPEG 2000
    // that calls itself unsigned although the image is signed: its samples are the image's bits.
    let bits_stored = format.bits_stored.min(bits);
    let high_bit = format.high_bit.clamp(bits_stored - 1, bits - 1);
    Ok(Format { bits_allocated: 8 * bytes, bits_stored, high_bit, ..format })
}

/// Some encoders write a byte 00 before the end of image to make a JPEG-LS codestream's length even; CharLS refuses it.
fn without_padding(data: &[u8], coding: Coding) -> Option<Vec<u8>> {
    if !matches!(coding, Coding::JpegLsLossless | Coding::JpegLsNearLossless) {
        return None;
    }
    let end = data.windows(2).rposition(|pair| pair == END)?;
    Some([data[..end].strip_suffix(&[0])?, &END].concat())
}

/// One frame as the decoders want to see it.
struct Frame<'a> {
    data: &'a [u8],
    coding: Coding,
    rows: usize,
    columns: usize,
    bits_allocated: u16,
}

impl PixelDataObject for Frame<'_> {
    fn transfer_syntax_uid(&self) -> &str {
        self.coding.uid()
    }

    fn rows(&self) -> Option<u16> {
        self.rows.try_into().ok()
    }

    fn cols(&self) -> Option<u16> {
        self.columns.try_into().ok()
    }

    fn samples_per_pixel(&self) -> Option<u16> {
        Some(1)
    }

    fn bits_allocated(&self) -> Option<u16> {
        Some(self.bits_allocated)
    }

    fn bits_stored(&self) -> Option<u16> {
        Some(self.bits_allocated)
    }

    fn photometric_interpretation(&self) -> Option<&str> {
        Some("MONOCHROME2")
    }

    fn number_of_frames(&self) -> Option<u32> {
        Some(1)
    }

    fn number_of_fragments(&self) -> Option<u32> {
        Some(1)
    }

    fn fragment(&self, fragment: usize) -> Option<Cow<'_, [u8]>> {
        (fragment == 0).then_some(Cow::Borrowed(self.data))
    }

    fn offset_table(&self) -> Option<Cow<'_, [u32]>> {
        Some(Cow::Borrowed(&[]))
    }

    fn raw_pixel_data(&self) -> Option<RawPixelData> {
        Some(RawPixelData { fragments: vec![self.data.to_vec()].into(), offset_table: Vec::new().into() })
    }
}

/// Calls the decoder; its error or its panic in words.
fn guarded(frame: &Frame, out: &mut Vec<u8>) -> Result<(), String> {
    out.clear();
    let reader = TransferSyntaxRegistry.get(frame.coding.uid()).and_then(|syntax| syntax.pixel_data_reader());
    let reader = reader.ok_or_else(|| "no decoder was built in".to_owned())?;
    // The decoder keeps nothing, and `out` is cleared before it is looked at again.
    match quietly(AssertUnwindSafe(|| reader.decode_frame(frame, 0, out))) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(root_cause(&error)),
        Err(panic) => Err(format!("its decoder gave up: {}", message(&*panic))),
    }
}

/// Catches a panic without a word on standard error.
///
/// What is printed is the business of the process's one panic hook, so on first use a hook is put before the present one
/// that passes on all panics but those of a thread in here. It stays: swapping hooks around each call would race with
/// other threads' panics. A program that sets a hook of its own later merely sees these panics printed.
fn quietly<T>(work: impl FnOnce() -> T + panic::UnwindSafe) -> Result<T, Box<dyn Any + Send>> {
    thread_local! { static QUIET: Cell<bool> = const { Cell::new(false) }; }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.try_with(Cell::get).unwrap_or(false) {
                before(info);
            }
        }));
    });
    QUIET.set(true);
    let result = panic::catch_unwind(work);
    QUIET.set(false);
    result
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    one_line(text.unwrap_or("without a reason"))
}

fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    one_line(&cause.to_string())
}

/// A message belongs into one sentence, whatever a library writes.
fn one_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default().trim_end_matches('.');
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests;

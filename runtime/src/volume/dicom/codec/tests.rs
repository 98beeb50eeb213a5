use super::*;
use crate::volume::dicom::syntax::Syntax;

fn format(bits_allocated: u16, bits_stored: u16, signed: bool) -> Format {
    let syntax = Syntax::Coded(Coding::Jpeg2000Lossless);
    Format { syntax, bits_allocated, bits_stored, high_bit: bits_stored - 1, signed, inverted: false }
}

fn codestream(bits: u16, signed: bool) -> Codestream {
    Codestream { rows: 2, columns: 2, bits, signed }
}

#[test]
fn decoded_pixels_have_the_bits_of_the_codestream() {
    let of = |bits, coding, format| decoded_format(codestream(bits, false), coding, format).unwrap();
    let shape = |f: Format| (f.bits_allocated, f.bits_stored, f.high_bit);
    // Eight bits in a data set of sixteen.
    assert_eq!(shape(of(8, Coding::JpegBaseline, format(16, 8, false))), (8, 8, 7));
    assert_eq!(shape(of(8, Coding::JpegLsLossless, format(16, 8, false))), (8, 8, 7));
    assert_eq!(shape(of(8, Coding::Jpeg2000, format(16, 8, false))), (16, 8, 7));
    assert_eq!(shape(of(7, Coding::JpegLossless, format(8, 7, false))), (16, 7, 6));
    // Fewer bits than the data set says: the sign is the highest of them.
    assert_eq!(shape(of(13, Coding::Jpeg2000, format(16, 16, true))), (16, 13, 12));
    // More: the upper ones are old overlays.
    assert_eq!(shape(of(16, Coding::JpegLossless, format(16, 12, true))), (16, 12, 11));
    let high = Format { high_bit: 15, ..format(16, 12, true) };
    assert_eq!(shape(of(16, Coding::JpegLossless, high)), (16, 12, 15));
    assert_eq!(shape(of(12, Coding::JpegLossless, high)), (16, 12, 11));
}

#[test]
fn contradictions_with_the_data_set_are_told() {
    let refused = |codestream, format| match decoded_format(codestream, Coding::Jpeg2000, format) {
        Err(Fault::Damaged(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(
        refused(codestream(12, false), format(8, 8, false)).contains("12 bits a pixel where BitsAllocated")
    );
    assert!(
        refused(codestream(12, true), format(16, 12, false)).contains("is signed where PixelRepresentation")
    );
}

#[test]
fn padding_before_the_end_is_taken_out_of_jpeg_ls_only() {
    let padded = [0xFF, 0xD8, 1, 2, 0, 0xFF, 0xD9, 0];
    assert_eq!(without_padding(&padded, Coding::JpegLsLossless).unwrap(), [0xFF, 0xD8, 1, 2, 0xFF, 0xD9]);
    assert_eq!(without_padding(&padded, Coding::JpegLossless), None);
    assert_eq!(without_padding(&[0xFF, 0xD8, 1, 2, 0xFF, 0xD9], Coding::JpegLsLossless), None);
    assert_eq!(without_padding(&[0, 0], Coding::JpegLsLossless), None);
}

#[test]
fn a_panic_is_caught_and_the_hook_of_others_stays() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    const OUTSIDE: &str = "outside of any decoder";
    // Whoever came first keeps seeing panics of his own.
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        SEEN.fetch_add(usize::from(info.payload_as_str() == Some(OUTSIDE)), Ordering::Relaxed);
        before(info);
    }));
    let caught = quietly(|| -> u8 { panic!("index {} out of range\nand more", 7) }).unwrap_err();
    assert_eq!(message(&*caught), "index 7 out of range");
    assert_eq!(quietly(|| 5).unwrap(), 5);
    let outside = panic::catch_unwind(|| panic!("{}", OUTSIDE)).unwrap_err();
    assert_eq!(message(&*outside), OUTSIDE);
    assert_eq!(SEEN.load(Ordering::Relaxed), 1);
}

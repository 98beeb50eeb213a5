use super::*;

fn segment(marker: u8, body: &[u8]) -> Vec<u8> {
    [&[0xFF, marker][..], &(body.len() as u16 + 2).to_be_bytes(), body].concat()
}

/// Start of frame of one component.
fn frame(marker: u8, bits: u8, rows: u16, columns: u16) -> Vec<u8> {
    let size = [rows.to_be_bytes(), columns.to_be_bytes()].concat();
    segment(marker, &[&[bits][..], &size, &[1, 1, 0x11, 0]].concat())
}

/// Start of scan with a predictor and a point transform.
fn scan(predictor: u8, approximation: u8) -> Vec<u8> {
    segment(SCAN, &[1, 1, 0, predictor, 0, approximation])
}

fn image(segments: &[Vec<u8>]) -> Vec<u8> {
    [&[0xFF, 0xD8][..], &segments.concat(), &[1, 2, 3, 0xFF, 0xD9]].concat()
}

fn size_segment(columns: u32, rows: u32, tile: u32, components: u16, depth: u8) -> Vec<u8> {
    let mut body = vec![0, 0];
    for long in [columns, rows, 0, 0, tile, tile, 0, 0] {
        body.extend(long.to_be_bytes());
    }
    body.extend(components.to_be_bytes());
    body.extend([depth, 1, 1]);
    [&[0xFF, 0x4F][..], &segment(0x51, &body), &tile_part(15), &[0xFF, 0xD9]].concat()
}

/// A tile part of one byte of data, said to be of `length` bytes.
fn tile_part(length: u32) -> Vec<u8> {
    let body = [&[0, 0][..], &length.to_be_bytes(), &[0, 1]].concat();
    [&segment(0x90, &body)[..], &[0xFF, 0x93, 9]].concat()
}

fn refusal(data: &[u8], coding: Coding) -> String {
    match Codestream::inspect(data, coding).unwrap_err() {
        Fault::Damaged(why) | Fault::Unsupported(why) => why,
    }
}

#[test]
fn sizes_are_found_behind_other_segments() {
    let expected = Codestream { rows: 3, columns: 500, bits: 8, signed: false };
    let tables = segment(0xC4, &[0; 40]);
    let fill = [&[0xFF, 0xFF][..], &frame(BASELINE_FRAME, 8, 3, 500)].concat();
    let baseline = image(&[segment(0xE0, b"JFIF"), tables.clone(), fill, tables, scan(0, 0)]);
    assert_eq!(Codestream::inspect(&baseline, Coding::JpegBaseline), Ok(expected));
    // Padding behind the end, by one byte or more.
    let padded = [&baseline[..], &[0xFF, 7, 0, 0x99, 0xFA]].concat();
    assert_eq!(Codestream::inspect(&padded, Coding::JpegBaseline), Ok(expected));
    let lossless = image(&[frame(LOSSLESS_FRAME, 12, 3, 500), scan(6, 0)]);
    let expected = Codestream { bits: 12, ..expected };
    assert_eq!(Codestream::inspect(&lossless, Coding::JpegLossless), Ok(expected));
    let ls = image(&[frame(JPEG_LS_FRAME, 12, 3, 500), scan(2, 0)]);
    assert_eq!(Codestream::inspect(&ls, Coding::JpegLsNearLossless), Ok(expected));
    let signed = Codestream { signed: true, ..expected };
    assert_eq!(Codestream::inspect(&size_segment(500, 3, 500, 1, 0x8B), Coding::Jpeg2000), Ok(signed));
}

#[test]
fn another_kind_than_the_transfer_syntax_is_told() {
    let baseline = image(&[frame(BASELINE_FRAME, 8, 3, 5), scan(0, 0)]);
    let lossless = image(&[frame(LOSSLESS_FRAME, 12, 3, 5), scan(1, 0)]);
    assert!(refusal(&baseline, Coding::JpegLossless).contains("start of frame FFC0"));
    assert!(refusal(&lossless, Coding::JpegBaseline).contains("start of frame FFC3"));
    assert!(refusal(&lossless, Coding::JpegLsLossless).contains("start of frame FFC3"));
    assert!(refusal(&lossless, Coding::Jpeg2000).contains("does not begin with a codestream"));
    let progressive = image(&[frame(0xC2, 8, 3, 5), scan(0, 0)]);
    assert!(refusal(&progressive, Coding::JpegBaseline).contains("start of frame FFC2"));
    let twelve = image(&[frame(EXTENDED_FRAME, 12, 3, 5), scan(0, 0)]);
    assert!(refusal(&twelve, Coding::JpegBaseline).contains("12 bits a pixel"));
    assert!(refusal(&size_segment(5, 3, 5, 3, 7), Coding::Jpeg2000).contains("3 components"));
    assert!(refusal(&size_segment(5, 3, 5, 1, 23), Coding::Jpeg2000).contains("24 bits a pixel"));
}

#[test]
fn what_the_decoders_get_wrong_is_refused() {
    let restarts = segment(RESTART_INTERVAL, &[0, 8]);
    let lossless = frame(LOSSLESS_FRAME, 12, 3, 5);
    let refused = |segments: &[Vec<u8>]| refusal(&image(segments), Coding::JpegLossless);
    assert!(refused(&[restarts.clone(), lossless.clone(), scan(1, 0)]).contains("restart intervals"));
    assert!(refused(&[lossless.clone(), scan(1, 2)]).contains("point transform"));
    assert!(refused(&[lossless.clone(), scan(0, 0)]).contains("predictor 0"));
    assert!(refused(&[lossless.clone(), lossless.clone(), scan(1, 0)]).contains("two frames"));
    assert!(refused(&[scan(1, 0)]).contains("scan before its frame"));
    // Restarts are all right elsewhere, and none at all is what an interval of 0 means.
    let none = segment(RESTART_INTERVAL, &[0, 0]);
    assert!(Codestream::inspect(&image(&[none, lossless, scan(1, 0)]), Coding::JpegLossless).is_ok());
    let baseline = image(&[restarts, frame(BASELINE_FRAME, 8, 3, 5), scan(0, 0)]);
    assert!(Codestream::inspect(&baseline, Coding::JpegBaseline).is_ok());
    // A tile for each pixel of a large image.
    assert!(refusal(&size_segment(4096, 4096, 1, 1, 7), Coding::Jpeg2000).contains("tiles of 1 × 1"));
    assert!(refusal(&size_segment(4096, 4096, 0, 1, 7), Coding::Jpeg2000).contains("tiles of 0 × 0"));
    assert!(Codestream::inspect(&size_segment(4096, 4096, 64, 1, 7), Coding::Jpeg2000).is_ok());
}

#[test]
fn tile_parts_lead_to_the_end() {
    let of = |parts: &[Vec<u8>]| {
        let whole = size_segment(5, 3, 5, 1, 7);
        let header = &whole[..whole.len() - 17];
        [header, &parts.concat(), &[0xFF, 0xD9]].concat()
    };
    for parts in [&[tile_part(15)][..], &[tile_part(15), tile_part(15)], &[tile_part(15), tile_part(0)]] {
        assert!(Codestream::inspect(&of(parts), Coding::Jpeg2000).is_ok());
    }
    let refused = |parts: &[Vec<u8>]| refusal(&of(parts), Coding::Jpeg2000);
    assert!(refused(&[tile_part(500)]).contains("ends within a tile part"));
    assert!(refused(&[tile_part(14), tile_part(15)]).contains("not as long as it says"));
    assert!(refused(&[tile_part(2)]).contains("a tile part of 2 bytes"));
}

#[test]
fn every_cut_is_told() {
    let codings = [
        (image(&[frame(BASELINE_FRAME, 8, 3, 5), scan(0, 0)]), Coding::JpegBaseline),
        (image(&[frame(LOSSLESS_FRAME, 12, 3, 5), scan(1, 0)]), Coding::JpegLosslessSv1),
        (image(&[frame(JPEG_LS_FRAME, 12, 3, 5), scan(0, 0)]), Coding::JpegLsLossless),
        (size_segment(5, 3, 5, 1, 7), Coding::Jpeg2000Lossless),
    ];
    for (whole, coding) in codings {
        assert!(begins(&whole, coding));
        for length in 0..whole.len() {
            let why = refusal(&whole[..length], coding);
            assert!(why.contains("end") || why.contains("begin"), "{coding:?} {length}: {why}");
        }
    }
}

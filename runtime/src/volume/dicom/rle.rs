//! RLE lossless (PS3.5, Annex G): a frame's bytes by significance, each part run-length coded as by PackBits.
//!
//! Our own, since the decoder of `dicom-transfer-syntax-registry` panics on truncated segments.

/// Decodes one grayscale frame to little-endian pixels.
///
/// `fragment` is the frame's one fragment; `bytes` the size of a pixel. `out` receives `pixels * bytes` bytes.
/// The error says what is wrong, to follow "its RLE data …".
pub(super) fn decode(fragment: &[u8], pixels: usize, bytes: usize, out: &mut Vec<u8>) -> Result<(), String> {
    let word = |n: usize| {
        let raw = fragment.get(4 * n..4 * n + 4)?;
        Some(u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]) as usize)
    };
    let (Some(count), true) = (word(0), fragment.len() >= 64) else {
        return Err(format!("has {} bytes, less than its header of 64", fragment.len()));
    };
    if count != bytes {
        return Err(format!("has {count} segments where pixels of {bytes} bytes need as many"));
    }
    out.clear();
    out.resize(pixels * bytes, 0);
    for n in 0..count {
        let start = word(n + 1).unwrap_or(0);
        let end = if n + 1 < count { word(n + 2).unwrap_or(0) } else { fragment.len() };
        let segment = fragment.get(start..end).filter(|_| start >= 64);
        let segment =
            segment.ok_or_else(|| format!("places segment {n} at bytes {start} to {end}, outside itself"))?;
        // The most significant bytes come first.
        let place = bytes - 1 - n;
        let decoded = unpack(segment, pixels, |index, byte| out[index * bytes + place] = byte);
        if decoded < pixels {
            return Err(format!("ends after {decoded} of {pixels} pixels of segment {n}"));
        }
    }
    Ok(())
}

/// Undoes PackBits (G.3.2) up to `limit` bytes; how many there were. What goes beyond `limit` is padding.
fn unpack(mut segment: &[u8], limit: usize, mut put: impl FnMut(usize, u8)) -> usize {
    let mut done = 0;
    while done < limit {
        let [code, rest @ ..] = segment else { break };
        segment = rest;
        match *code {
            128 => {}
            literal @ 0..128 => {
                let length = (usize::from(literal) + 1).min(segment.len());
                for &byte in segment[..length].iter().take(limit - done) {
                    put(done, byte);
                    done += 1;
                }
                segment = &segment[length..];
            }
            repeat => {
                let [byte, rest @ ..] = segment else { break };
                segment = rest;
                for _ in 0..(257 - usize::from(repeat)).min(limit - done) {
                    put(done, *byte);
                    done += 1;
                }
            }
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(packed: &[u8], limit: usize) -> Vec<u8> {
        let mut out = Vec::new();
        assert_eq!(unpack(packed, limit, |_, byte| out.push(byte)), out.len());
        out
    }

    #[test]
    fn packbits_example() {
        // Apple Technical Note TN1023.
        let packed = b"\xFE\xAA\x02\x80\x00\x2A\xFD\xAA\x03\x80\x00\x2A\x22\xF7\xAA";
        let plain = b"\xAA\xAA\xAA\x80\x00\x2A\xAA\xAA\xAA\xAA\x80\x00\x2A\x22\xAA\xAA\xAA\xAA\xAA\xAA\xAA\xAA\xAA\xAA";
        assert_eq!(unpacked(packed, 24), plain);
        assert_eq!(unpacked(packed, 5), plain[..5]);
        assert_eq!(unpacked(b"\x80\x00\x07", 9), [7]);
    }

    fn frame(segments: &[&[u8]]) -> Vec<u8> {
        let mut out = vec![0; 64];
        out[..4].copy_from_slice(&(segments.len() as u32).to_le_bytes());
        for (n, segment) in segments.iter().enumerate() {
            let start = out.len() as u32;
            out[4 * n + 4..4 * n + 8].copy_from_slice(&start.to_le_bytes());
            out.extend(*segment);
        }
        out
    }

    #[test]
    fn segments_are_the_bytes_of_a_pixel_highest_first() {
        let mut out = vec![9; 3];
        decode(&frame(&[b"\xFD\x01", b"\x03abcd"]), 4, 2, &mut out).unwrap();
        assert_eq!(out, b"a\x01b\x01c\x01d\x01");
    }

    #[test]
    fn every_cut_is_told() {
        let whole = frame(&[b"\xFD\x01", b"\x03abcd"]);
        for length in 0..whole.len() {
            let error = decode(&whole[..length], 4, 2, &mut Vec::new()).unwrap_err();
            assert!(
                error.contains("less than") || error.contains("ends after") || error.contains("outside"),
                "{error}"
            );
        }
        assert!(decode(&whole, 4, 1, &mut Vec::new()).unwrap_err().contains("2 segments"));
        let mut astray = whole.clone();
        astray[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(decode(&astray, 4, 2, &mut Vec::new()).unwrap_err().contains("outside itself"));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            failure_persistence: None,
            rng_seed: proptest::test_runner::RngSeed::Fixed(1),
            ..proptest::prelude::ProptestConfig::with_cases(500)
        })]
        #[test]
        fn no_bytes_make_it_panic(
            head in proptest::collection::vec(0u32..200, 16),
            tail in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..100),
            bytes in 1usize..5,
        ) {
            let mut fragment: Vec<u8> = head.iter().flat_map(|word| word.to_le_bytes()).collect();
            fragment[..4].copy_from_slice(&(bytes as u32).to_le_bytes());
            fragment.extend(tail);
            let _ = decode(&fragment, 40, bytes, &mut Vec::new());
        }
    }
}

use super::Slices;

/// The three slices through the middle of a volume, each of the slices' size: one of its own, then one along the columns and one
/// along the rows of its slices (of axial slices: the coronal and the sagittal one). In the last two a row is what one slice shows of
/// the plane; they are stretched (bilinear, between the centres of pixels) to the size, whatever the distance of the slices. A mask
/// does not go with them. What is changed at random should be the volume, before: a flip of these slices would only reorder them.
pub fn three_planes(slices: &Slices) -> Slices {
    let Slices { count, size: [height, width], .. } = *slices;
    let at = |s: usize, c: usize, y: usize, x: usize| slices.values[((s * 3 + c) * height + y) * width + x];
    let mut values = Vec::with_capacity(9 * height * width);
    values.extend_from_slice(&slices.values[count / 2 * 3 * height * width..][..3 * height * width]);
    for c in 0..3 {
        stretch(&mut values, [count, width], [height, width], |s, x| at(s, c, height / 2, x));
    }
    for c in 0..3 {
        stretch(&mut values, [count, height], [height, width], |s, y| at(s, c, y, width / 2));
    }
    Slices { count: 3, size: slices.size, values, mask: None }
}

/// Appends a plane of size `from`, read by `at`, in the size `to`.
fn stretch(out: &mut Vec<f32>, from: [usize; 2], to: [usize; 2], at: impl Fn(usize, usize) -> f32) {
    let columns: Vec<_> = (0..to[1]).map(|x| between(x, to[1], from[1])).collect();
    for y in 0..to[0] {
        let ([above, below], down) = between(y, to[0], from[0]);
        for &([left, right], across) in &columns {
            let row = |y: usize| at(y, left) * (1.0 - across) + at(y, right) * across;
            out.push(row(above) * (1.0 - down) + row(below) * down);
        }
    }
}

/// The two of `from` pixels between whose centres the centre of pixel `at` of `to` lies, and the share of the second.
fn between(at: usize, to: usize, from: usize) -> ([usize; 2], f32) {
    let place = (at as f32 + 0.5) * from as f32 / to as f32 - 0.5;
    let place = place.clamp(0.0, (from - 1) as f32);
    let first = place as usize;
    ([first, (first + 1).min(from - 1)], place - first as f32)
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "the numbers are exact by construction")]
mod tests {
    use super::*;

    /// Values that say where they come from.
    fn volume(count: usize, [height, width]: [usize; 2]) -> Slices {
        let mut values = Vec::new();
        for s in 0..count {
            for c in 0..3 {
                for y in 0..height {
                    values.extend((0..width).map(|x| (1000 * s + 100 * c + 10 * y + x) as f32));
                }
            }
        }
        let mask = Some(vec![1; count * height * width]);
        Slices { count, size: [height, width], values, mask }
    }

    #[test]
    fn three_planes_go_through_the_middle() {
        // As many slices as rows and columns: nothing is stretched.
        let found = three_planes(&volume(4, [4, 4]));
        assert_eq!((found.count, found.size, found.mask), (3, [4, 4], None));
        assert_eq!(found.values.len(), 9 * 16);
        for c in 0..3 {
            for y in 0..4 {
                for x in 0..4 {
                    let of = |plane: usize| found.values[((plane * 3 + c) * 4 + y) * 4 + x];
                    let expected = |s: usize, y: usize, x: usize| (1000 * s + 100 * c + 10 * y + x) as f32;
                    assert_eq!(
                        [of(0), of(1), of(2)],
                        [expected(2, y, x), expected(y, 2, x), expected(y, x, 2)]
                    );
                }
            }
        }
    }

    #[test]
    fn few_slices_are_stretched_between_their_centres() {
        let found = three_planes(&volume(2, [4, 6]));
        // Two slices to four rows, at the column 5 of the row 2: 0, a quarter, three quarters and all of the way.
        let second: Vec<f32> = (0..4).map(|y| found.values[72 + 6 * y + 5]).collect();
        assert_eq!(second, [25.0, 275.0, 775.0, 1025.0]);
        // Four rows to six columns, in the first slice: the first and the last stay.
        let third = &found.values[144..150];
        assert_eq!((third[0], third[5]), (3.0, 33.0));
        assert!(third.is_sorted());
        // One slice fills its planes alone.
        let one = three_planes(&volume(1, [2, 2]));
        assert_eq!(one.values[12..16], [10.0, 11.0, 10.0, 11.0]);
    }
}

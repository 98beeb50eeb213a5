//! Where tissue is in a scan that comes without maps.

use super::suite::Tissue;
use super::template::Sampled;

/// 1 in tissue, 0 elsewhere: the largest 6-connected piece of values in the range, opened by `erode_mm`.
///
/// The values are smoothed over 3×3×3 voxels first, since noise would riddle it with holes; the erosion cuts the bridges
/// to other tissue of the same values (a brain's to the scalp), the dilation gives the rim back.
pub(super) fn connected(image: &Sampled, tissue: &Tissue) -> Sampled {
    let [low, high] = tissue.intensity.map(|x| x as f32);
    let dims = image.dims;
    let mut smooth = image.voxels.clone();
    for axis in 0..3 {
        smooth = along(&smooth, dims, axis, |a, b, c| (a + b + c) / 3.0);
    }
    let mut open: Vec<bool> = smooth.iter().map(|v| (low..=high).contains(v)).collect();
    let reach: [usize; 3] = std::array::from_fn(|axis| {
        let step = image.affine.map(|row| row[axis] * row[axis]).iter().sum::<f64>().sqrt();
        (tissue.erode_mm / step).round() as usize
    });
    let steps = || (0..3).flat_map(|axis| std::iter::repeat_n(axis, reach[axis]));
    for axis in steps() {
        open = along(&open, dims, axis, |a, b, c| a && b && c);
    }
    let mut kept = largest_piece(&open, dims);
    for axis in steps() {
        kept = along(&kept, dims, axis, |a, b, c| a || b || c);
    }
    image.with_voxels(kept.into_iter().map(|k| if k { 1.0 } else { 0.0 }).collect())
}

/// Each voxel from the one before, itself and the one after along an axis; at the ends itself stands in.
fn along<T: Copy>(from: &[T], dims: [usize; 3], axis: usize, of: impl Fn(T, T, T) -> T) -> Vec<T> {
    let stride: usize = dims[..axis].iter().product();
    let one = |i: usize| {
        let at = i / stride % dims[axis];
        let before = if at > 0 { i - stride } else { i };
        let after = if at + 1 < dims[axis] { i + stride } else { i };
        of(from[before], from[i], from[after])
    };
    (0..from.len()).map(one).collect()
}

fn largest_piece(open: &[bool], dims: [usize; 3]) -> Vec<bool> {
    let strides = [1, dims[0], dims[0] * dims[1]];
    // The piece that a voxel belongs to, from 1; 0 before it is seen.
    let mut piece = vec![0_u32; open.len()];
    let (mut best, mut best_size, mut pieces) = (0, 0, 0);
    let mut stack = Vec::new();
    for start in 0..open.len() {
        if !open[start] || piece[start] != 0 {
            continue;
        }
        pieces += 1;
        let mut size = 0;
        piece[start] = pieces;
        stack.push(start);
        while let Some(i) = stack.pop() {
            size += 1;
            for axis in 0..3 {
                let at = i / strides[axis] % dims[axis];
                let before = (at > 0).then(|| i - strides[axis]);
                let after = (at + 1 < dims[axis]).then(|| i + strides[axis]);
                for next in [before, after].into_iter().flatten() {
                    if open[next] && piece[next] == 0 {
                        piece[next] = pieces;
                        stack.push(next);
                    }
                }
            }
        }
        if size > best_size {
            (best, best_size) = (pieces, size);
        }
    }
    piece.into_iter().map(|p| p != 0 && p == best).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_piece_is_kept_alone() {
        // Pieces of 1, 4 and 2 voxels in a 5×4×1 plane; diagonal neighbours do not touch.
        let plane = ["x....", ".xx..", ".xx..", "...xx"].concat();
        let open: Vec<bool> = plane.chars().map(|c| c == 'x').collect();
        let kept: String =
            largest_piece(&open, [5, 4, 1]).into_iter().map(|k| if k { 'x' } else { '.' }).collect();
        assert_eq!(kept, [".....", ".xx..", ".xx..", "....."].concat());
        assert!(largest_piece(&[false; 8], [2, 2, 2]).iter().all(|k| !k));
    }

    #[test]
    fn neighbours_are_taken_along_the_axis() {
        let sum = |axis| along(&[1, 2, 3, 4, 5, 6], [3, 2, 1], axis, |a, b, c| a * 100 + b * 10 + c);
        assert_eq!(sum(0), [112, 123, 233, 445, 456, 566]);
        assert_eq!(sum(1), [114, 225, 336, 144, 255, 366]);
    }
}

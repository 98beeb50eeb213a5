//! Which marks of several readers are of one nodule.

/// There are four readers.
const MOST: usize = 4;

/// Groups outlines, points in mm, whose nearest points are within `tolerance_mm` of each other, directly or by way of others. Where a
/// group is larger than the number of readers, neighbours have run together, and the tolerance is lowered until they part: what `pylidc`
/// does by default (`Scan.cluster_annotations`), with the distance between slices as the tolerance to begin with.
pub(super) fn group(outlines: &[Vec<[f64; 3]>], tolerance_mm: f64) -> Vec<Vec<usize>> {
    let distance = |a: usize, b: usize| {
        let pairs = outlines[a].iter().flat_map(|p| outlines[b].iter().map(move |q| apart(p, q)));
        pairs.fold(f64::INFINITY, f64::min)
    };
    let n = outlines.len();
    let distances: Vec<Vec<f64>> = (0..n).map(|a| (0..a).map(|b| distance(a, b)).collect()).collect();
    let mut tolerance = tolerance_mm;
    loop {
        let groups = linked(&distances, tolerance);
        if tolerance < 0.1 || groups.iter().all(|group| group.len() <= MOST) {
            return groups;
        }
        tolerance *= 0.9;
    }
}

fn apart(a: &[f64; 3], b: &[f64; 3]) -> f64 {
    (0..3).map(|axis| (a[axis] - b[axis]).powi(2)).sum::<f64>().sqrt()
}

/// Connected parts, each in order and ordered by its first.
fn linked(distances: &[Vec<f64>], tolerance: f64) -> Vec<Vec<usize>> {
    let mut part: Vec<usize> = (0..distances.len()).collect();
    for (a, row) in distances.iter().enumerate() {
        for (b, &distance) in row.iter().enumerate() {
            if distance <= tolerance {
                let (from, to) = (part[a].max(part[b]), part[a].min(part[b]));
                part.iter_mut().filter(|p| **p == from).for_each(|p| *p = to);
            }
        }
    }
    let of = |first| (0..part.len()).filter(|&i| part[i] == first).collect::<Vec<_>>();
    (0..part.len()).map(of).filter(|group| !group.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_join_by_way_of_others_and_part_where_there_are_too_many() {
        let at = |x: f64| vec![[x, 0.0, 0.0]];
        assert_eq!(group(&[at(0.0), at(5.0), at(0.8), at(1.6)], 1.0), [vec![0, 2, 3], vec![1]]);
        // Six in a row of two nodules, 0.9 mm apart: one group at 1 mm, two of three below 0.9 mm.
        let six = [at(0.0), at(0.2), at(0.4), at(1.3), at(1.5), at(1.7)];
        assert_eq!(group(&six, 1.0), [vec![0, 1, 2], vec![3, 4, 5]]);
        assert_eq!(group(&[], 1.0), Vec::<Vec<usize>>::new());
    }
}

//! Cubes cut out of scans.

use runtime::volume::{Geometry, Volume};

/// What stands beyond the scan's edge, in HU: air.
const AIR_HU: f32 = -1000.0;

/// A part of a scan, on the scan's own voxels.
pub(super) struct Crop {
    pub(super) dims: [usize; 3],
    pub(super) voxels: Vec<f32>,
    pub(super) geometry: Geometry,
}

/// The voxels of a cube of `side_mm` around the voxel index `centre`, which may be fractional; beyond the scan's edge there is air, so that
/// the place asked for stays in the middle.
pub(super) fn cube(volume: &Volume, centre: [f64; 3], side_mm: f64) -> Crop {
    let spacing = volume.spacing();
    let dims: [usize; 3] = std::array::from_fn(|axis| (side_mm / spacing[axis]).round().max(1.0) as usize);
    let start: [i64; 3] =
        std::array::from_fn(|axis| (centre[axis] - (dims[axis] as f64 - 1.0) / 2.0).round() as i64);
    let mut voxels = vec![AIR_HU; dims.iter().product()];
    let inside = |axis: usize, i: usize| {
        usize::try_from(start[axis] + i as i64).ok().filter(|&at| at < volume.dims[axis])
    };
    for k in 0..dims[2] {
        for j in 0..dims[1] {
            let (Some(z), Some(y)) = (inside(2, k), inside(1, j)) else { continue };
            let row = volume.dims[0] * (y + volume.dims[1] * z);
            let to = dims[0] * (j + dims[1] * k);
            for i in 0..dims[0] {
                if let Some(x) = inside(0, i) {
                    voxels[to + i] = volume.voxels[row + x];
                }
            }
        }
    }
    let steps = [0, 1, 2].map(|axis| volume.geometry.step(axis));
    let geometry = Geometry::from_columns(steps, volume.geometry.position(start.map(|i| i as f64)));
    Crop { dims, voxels, geometry }
}

/// The voxel index, fractional, of a place in mm in RAS+. The scan's axes are taken to be at right angles, as the readers check.
pub(super) fn index_of(geometry: &Geometry, place: [f64; 3]) -> [f64; 3] {
    let origin = geometry.position([0.0; 3]);
    std::array::from_fn(|axis| {
        let step = geometry.step(axis);
        let along: f64 = (0..3).map(|r| (place[r] - origin[r]) * step[r]).sum();
        along / step.iter().map(|x| x * x).sum::<f64>()
    })
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "the numbers are exact by construction")]
mod tests {
    use super::*;

    fn volume() -> Volume {
        let geometry =
            Geometry::from_columns([[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 2.0]], [10.0, 20.0, -5.0]);
        Volume::from_parts([4, 3, 2], (0..24).map(|i| i as f32).collect(), geometry)
    }

    #[test]
    fn a_cube_has_its_place_in_the_middle_and_air_beyond_the_edge() {
        let volume = volume();
        let place = volume.geometry.position([1.0, 1.0, 0.0]);
        let centre = index_of(&volume.geometry, place);
        assert_eq!(centre, [1.0, 1.0, 0.0]);
        let crop = cube(&volume, centre, 3.0);
        assert_eq!(crop.dims, [3, 3, 2], "3 mm are one and a half slices, rounded");
        let at = |i, j, k| crop.voxels[i + 3 * (j + 3 * k)];
        // The slices 0 and 1, or -1 and 0: the middle of two lies between them.
        let first = crop.geometry.position([1.0, 1.0, 0.0])[2];
        assert!(first == place[2] || first == place[2] - 2.0, "{first}");
        let k = usize::from(first != place[2]);
        assert_eq!([at(0, 0, k), at(1, 1, k), at(2, 2, k)], [0.0, 5.0, 10.0]);
        let corner = cube(&volume, [0.0, 0.0, 0.0], 3.0);
        assert_eq!((corner.voxels[0], corner.geometry.position([1.0, 1.0, 0.0])[0]), (-1000.0, 10.0));
    }
}

#![allow(clippy::float_cmp, reason = "the numbers are exact by construction")]

use proptest::prelude::*;

use super::*;

fn rotated(degrees: f64) -> Geometry {
    let (sin, cos) = degrees.to_radians().sin_cos();
    Geometry::from_columns([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]], [0.0; 3])
}

/// The same voxels stored with other axes: stored axis `n` is old axis `order[n]`, turned round if `flip[n]`.
fn restored(g: &Geometry, dims: [usize; 3], order: [usize; 3], flip: [bool; 3]) -> (Geometry, [usize; 3]) {
    let mut origin = g.position([0.0; 3]);
    let steps = std::array::from_fn(|n| {
        let step = g.step(order[n]);
        if flip[n] {
            origin = std::array::from_fn(|r| origin[r] + step[r] * (dims[order[n]] - 1) as f64);
            step.map(|x| -x)
        } else {
            step
        }
    });
    (Geometry::from_columns(steps, origin), order.map(|axis| dims[axis]))
}

#[test]
fn codes_are_parsed_shown_and_refused() {
    for text in ["RAS", "LPS", "PIR", "ASL"] {
        assert_eq!(text.parse::<AxisCodes>().unwrap().to_string(), text);
    }
    assert_eq!("las".parse::<AxisCodes>().unwrap().to_string(), "LAS");
    for text in ["", "RA", "RASS", "RAX", "RLS", "RAP", "Ⓡ"] {
        let error = text.parse::<AxisCodes>().unwrap_err().to_string();
        assert!(error.contains("such as RAS or LPS"), "{text}: {error}");
    }
}

#[test]
fn centred_codes_put_zero_in_the_middle() {
    let codes: AxisCodes = "PIR".parse().unwrap();
    let geometry = codes.centred([2.0, 3.0, 4.0], [11, 21, 31]);
    assert_eq!(geometry.axis_codes(), codes);
    assert_eq!(geometry.spacing(), [2.0, 3.0, 4.0]);
    assert_eq!(geometry.position([5.0, 10.0, 15.0]), [0.0; 3]);
    assert!(geometry.position([0.0; 3])[1] > 0.0, "P: the first voxel lies in front");
}

#[test]
fn oblique_volumes_take_the_nearest_axes() {
    assert_eq!(rotated(40.0).axis_codes().to_string(), "RAS");
    assert_eq!(rotated(50.0).axis_codes().to_string(), "ALS");
    assert_eq!(rotated(-50.0).axis_codes().to_string(), "PRS");
    assert_eq!(rotated(180.0).axis_codes().to_string(), "LPS");
}

#[test]
fn at_45_degrees_storage_order_does_not_decide() {
    let geometry = rotated(45.0);
    let dims = [5, 6, 7];
    let there = geometry.reorientation().stored_index([1, 2, 3], dims);
    let place = geometry.position(there.map(|i| i as f64));
    for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0]] {
        for flip in [[false; 3], [true, false, false], [true, true, false]] {
            let (other, other_dims) = restored(&geometry, dims, order, flip);
            let found = other.reorientation().stored_index([1, 2, 3], other_dims);
            let found = other.position(found.map(|i| i as f64));
            assert!(
                (0..3).all(|r| (found[r] - place[r]).abs() < 1e-9),
                "{order:?} {flip:?}: {found:?} {place:?}"
            );
        }
    }
}

#[test]
fn ras_dims_follow_the_axes() {
    let codes: AxisCodes = "SRP".parse().unwrap();
    let r = codes.centred([1.0; 3], [3, 4, 5]).reorientation();
    assert_eq!(r.ras_dims([3, 4, 5]), [4, 5, 3]);
    assert_eq!(r.stored_index([0, 0, 0], [3, 4, 5]), [0, 0, 4]);
    assert_eq!(r.codes(), codes);
}

fn order() -> impl Strategy<Value = [usize; 3]> {
    prop::sample::select(vec![[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(1),
        ..ProptestConfig::with_cases(256)
    })]

    #[test]
    fn storage_does_not_change_what_is_found_where(
        angles in prop::array::uniform3(-180.0..180.0f64),
        spacing in prop::array::uniform3(0.3..7.0f64),
        dims in prop::array::uniform3(1usize..9),
        order in order(),
        flip in prop::array::uniform3(any::<bool>()),
        pick in prop::array::uniform3(0.0..1.0f64),
    ) {
        let mut steps = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        for (axis, angle) in angles.iter().enumerate() {
            let (sin, cos) = angle.to_radians().sin_cos();
            let (a, b) = ((axis + 1) % 3, (axis + 2) % 3);
            for step in &mut steps {
                (step[a], step[b]) = (cos * step[a] - sin * step[b], sin * step[a] + cos * step[b]);
            }
        }
        let steps = std::array::from_fn(|n| steps[n].map(|x| x * spacing[n]));
        let geometry = Geometry::from_columns(steps, [3.0, -7.0, 11.0]);
        let (other, other_dims) = restored(&geometry, dims, order, flip);
        let (r, s) = (geometry.reorientation(), other.reorientation());
        prop_assert_eq!(r.ras_dims(dims), s.ras_dims(other_dims));
        let ras: [usize; 3] = std::array::from_fn(|n| (pick[n] * r.ras_dims(dims)[n] as f64) as usize);
        let here = r.stored_index(ras, dims);
        prop_assert_eq!(r.ras_index(here, dims), ras);
        let here = geometry.position(here.map(|i| i as f64));
        let there = other.position(s.stored_index(ras, other_dims).map(|i| i as f64));
        prop_assert!((0..3).all(|n| (here[n] - there[n]).abs() < 1e-6));
        // A further step along R, A or S leads right, forward or up.
        for n in 0..3 {
            let step = geometry.affine[n][r.axis[n]];
            prop_assert_eq!(step < 0.0, r.flip[n]);
        }
    }
}

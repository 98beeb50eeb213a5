use super::draw::Drawn;

/// Where each pixel of a slice takes its value from, the same for all slices of a volume.
pub(super) struct Grid {
    points: Vec<Point>,
}

/// A place between four pixels.
#[derive(Debug, Clone, Copy)]
struct Point {
    /// Index of the upper left one.
    at: u32,
    /// Steps to its neighbours; 0 at the last column and row.
    right: u32,
    down: u32,
    /// Distance from the upper left one along the row and down the column, 0 to below 1.
    x: f32,
    y: f32,
}

impl Grid {
    /// One affine map about the slice's middle: the content is mirrored, enlarged, turned and then moved. Beyond the edge its
    /// pixels are repeated.
    pub fn new([height, width]: [usize; 2], drawn: &Drawn) -> Self {
        let (sin, cos) = drawn.rotate.unwrap_or(0.0).to_radians().sin_cos();
        let zoom = drawn.zoom.unwrap_or(1.0);
        let [down, right] = drawn.shift.unwrap_or([0.0; 2]);
        let middle = |length: usize| (length as f64 - 1.0) / 2.0;
        let [cy, cx] = [middle(height), middle(width)];
        let mirror = |flip: bool| if flip { -1.0 } else { 1.0 };
        let [my, mx] = [mirror(drawn.flip_rows), mirror(drawn.flip_columns)];
        let mut points = Vec::with_capacity(height * width);
        for row in 0..height {
            for column in 0..width {
                let [y, x] = [row as f64 - cy - down, column as f64 - cx - right];
                // Rows run downwards, so that counter-clockwise to the eye is clockwise in (x, y).
                let [y, x] = [(cos * y + sin * x) / zoom, (cos * x - sin * y) / zoom];
                let [y, x] = [my * y + cy, mx * x + cx];
                points.push(Point::new(y, x, [height, width]));
            }
        }
        Self { points }
    }

    /// The plane's values, bilinearly.
    pub fn bilinear(&self, plane: &[f32], out: &mut [f32]) {
        for (out, &Point { at, right, down, x, y }) in out.iter_mut().zip(&self.points) {
            let value = |step: u32| plane[(at + step) as usize];
            let upper = (1.0 - x) * value(0) + x * value(right);
            let lower = (1.0 - x) * value(down) + x * value(down + right);
            *out = (1.0 - y) * upper + y * lower;
        }
    }

    /// The plane's values, each the nearest.
    pub fn nearest<T: Copy>(&self, plane: &[T], out: &mut [T]) {
        for (out, &Point { at, right, down, x, y }) in out.iter_mut().zip(&self.points) {
            let step = |share: f32, step: u32| if share < 0.5 { 0 } else { step };
            *out = plane[(at + step(x, right) + step(y, down)) as usize];
        }
    }
}

impl Point {
    fn new(y: f64, x: f64, [height, width]: [usize; 2]) -> Self {
        let split = |at: f64, length: usize| {
            let at = at.clamp(0.0, length as f64 - 1.0);
            let whole = at.floor();
            (whole as u32, (at - whole) as f32, u32::from(whole as usize + 1 < length))
        };
        let ((row, y, down), (column, x, right)) = (split(y, height), split(x, width));
        Self { at: row * width as u32 + column, right, down: down * width as u32, x, y }
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "the numbers are exact by construction")]
mod tests {
    use tch::Tensor;

    use super::*;

    fn bilinear(size: [usize; 2], drawn: Drawn, plane: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; plane.len()];
        Grid::new(size, &drawn).bilinear(plane, &mut out);
        out
    }

    /// Values that no two pixels share.
    fn plane(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i * 37 % 101) as f32 + 0.25 * i as f32).collect()
    }

    #[test]
    fn a_quarter_turn_is_a_permutation() {
        let n = 5;
        let plane = plane(n * n);
        for (degrees, source) in [
            // Counter-clockwise: the right edge becomes the upper one.
            (90.0, (|r, c| (c, 4 - r)) as fn(usize, usize) -> (usize, usize)),
            (-90.0, |r, c| (4 - c, r)),
            (180.0, |r, c| (4 - r, 4 - c)),
        ] {
            let drawn = Drawn { rotate: Some(degrees), ..Drawn::default() };
            let turned = bilinear([n, n], drawn, &plane);
            let mut nearest = vec![0.0; n * n];
            Grid::new([n, n], &drawn).nearest(&plane, &mut nearest);
            for (r, c) in (0..n).flat_map(|r| (0..n).map(move |c| (r, c))) {
                let (sr, sc) = source(r, c);
                assert!((turned[r * n + c] - plane[sr * n + sc]).abs() < 1e-4, "{degrees} {r} {c}");
                assert!(nearest[r * n + c] == plane[sr * n + sc]);
            }
        }
    }

    #[test]
    fn without_a_turn_values_come_through_unchanged() {
        let plane = plane(12);
        let drawn = Drawn { rotate: Some(0.0), zoom: Some(1.0), shift: Some([0.0; 2]), ..Drawn::default() };
        assert_eq!(bilinear([3, 4], drawn, &plane), plane);
        let drawn = Drawn { shift: Some([1.0, -2.0]), flip_columns: true, ..Drawn::default() };
        let moved = bilinear([3, 4], drawn, &plane);
        for (i, value) in moved.iter().enumerate() {
            let (row, column) = ((i / 4).saturating_sub(1), (i % 4 + 2).min(3));
            assert_eq!(*value, plane[row * 4 + 3 - column], "{i}");
        }
    }

    #[test]
    fn all_together_is_what_libtorchs_grid_sampler_gives() {
        let [h, w] = [7, 9];
        let plane = plane(h * w);
        let (degrees, zoom, [down, right]) = (25.0f64, 1.3, [2.0, -1.0]);
        let drawn = Drawn {
            rotate: Some(degrees),
            zoom: Some(zoom),
            shift: Some([down, right]),
            flip_rows: true,
            ..Drawn::default()
        };
        let found = bilinear([h, w], drawn, &plane);
        // The map from the output's to the input's coordinates, which libtorch wants in units of half a side.
        let (sin, cos) = degrees.to_radians().sin_cos();
        let (half_h, half_w) = (h as f64 / 2.0, w as f64 / 2.0);
        let rows = [
            [cos / zoom, -sin / zoom * half_h / half_w, (-cos * right + sin * down) / zoom / half_w],
            [-sin / zoom * half_w / half_h, -cos / zoom, (sin * right + cos * down) / zoom / half_h],
        ];
        let theta = Tensor::from_slice(&rows.concat()).view([1, 2, 3]).to_kind(tch::Kind::Float);
        let grid = Tensor::affine_grid_generator(&theta, [1, 1, h as i64, w as i64], false);
        let input = Tensor::from_slice(&plane).view([1, 1, h as i64, w as i64]);
        // Bilinear, with the edge repeated.
        let expected = Vec::<f32>::try_from(input.grid_sampler(&grid, 0, 1, false).flatten(0, -1)).unwrap();
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!((found - expected).abs() < 2e-3, "{i}: {found} {expected}");
        }
    }
}

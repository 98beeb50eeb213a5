use firmware_config::{Crop, Fit, Intensity, Normalize, Recipe, SliceSelection};

use super::super::font::glyph;
use super::*;
use crate::volume::{Geometry, Volume};

const DIMS: [usize; 3] = [40, 40, 8];

/// Grey tissue with a bright spot on the patient's left, in front, in slice 5; stored LAS.
fn volume() -> Volume {
    let mut voxels = vec![200.0; DIMS.iter().product()];
    for (r, a) in (4..10).flat_map(|r| (28..34).map(move |a| (r, a))) {
        voxels[(39 - r) + 40 * (a + 40 * 5)] = 1000.0;
    }
    let affine = [[-1.0, 0.0, 0.0, 39.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]];
    Volume::from_parts(DIMS, voxels, Geometry { affine })
}

fn recipe(plane: Plane) -> Recipe {
    Recipe {
        plane,
        size: [40, 40],
        fit: Fit::Stretch,
        crop: Crop::None,
        slices: SliceSelection::All,
        intensity: Intensity::Window { windows: vec![[0.0, 1000.0]] },
        normalize: Normalize::Imagenet,
    }
}

/// The picture read back from its file, and where its slices lie.
fn picture(plane: Plane, weight_of: usize) -> (RgbImage, Layout) {
    let (volume, recipe) = (volume(), recipe(plane));
    let prepared = Prepared::new(&volume, &recipe).unwrap();
    let mut slice_weights = vec![0.0; prepared.slices()];
    slice_weights[weight_of] = 1.0;
    let heatmap = vec![0.0; prepared.slices() * 4];
    let labels = [("bleeding", 0.931), ("fracture", 0.004)];
    let what = Picture {
        task: "head",
        version: "1.0.0",
        labels: &labels,
        prepared: &prepared,
        slice_weights: &slice_weights,
        heatmap: &heatmap,
        grid: [2, 2],
    };
    let folder = tempfile::tempdir().unwrap();
    let [path, again] = ["a.png", "b.png"].map(|name| folder.path().join(name));
    write(&path, &what).unwrap();
    write(&again, &what).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes, std::fs::read(&again).unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing temporary is left");
    let labels = ["bleeding 93.1%", "fracture 0.4%"].map(String::from);
    let layout = Layout::new(MOST_SLICES, [40, 40], "head 1.0.0", &labels, NOTE);
    (image::load_from_memory(&bytes).unwrap().to_rgb8(), layout)
}

/// Whether the mark with its top left corner at `[x, y]` is `letter`.
fn is_mark(image: &RgbImage, [x, y]: [usize; 2], letter: char) -> bool {
    glyph(letter).iter().enumerate().all(|(row, bits)| {
        (0..GLYPH[0]).all(|column| {
            let at = |n: usize, dot: usize| (n + dot * LARGE + 1) as u32;
            let drawn = image.get_pixel(at(x, column), at(y, row)).0 == TEXT;
            drawn == (bits >> (GLYPH[0] - 1 - column) & 1 == 1)
        })
    })
}

fn check(plane: Plane, weight_of: usize, tile: usize, marks: [char; 2], bright_on_right: bool) {
    let (image, layout) = picture(plane, weight_of);
    assert_eq!([image.width(), image.height()].map(|n| n as usize), layout.size);
    let [x, y] = layout.corner(tile);
    let [width, height] = layout.tile;
    let middle = y + (height - GLYPH[1] * LARGE) / 2;
    assert!(is_mark(&image, [x + GAP / 2, middle], marks[0]), "{plane:?}: left is {}", marks[0]);
    let right = x + width - GLYPH[0] * LARGE - GAP / 2;
    assert!(is_mark(&image, [right, middle], marks[1]), "{plane:?}: right is {}", marks[1]);
    // The spot, looked for away from the marks, which are as bright.
    let bright = |from: usize| {
        let at = |row: usize, column: usize| image.get_pixel((from + column) as u32, (y + row) as u32).0;
        (0..height)
            .flat_map(|row| (30..width / 2 - 30).map(move |column| (row, column)))
            .filter(|&(row, column)| at(row, column)[0] > 200)
            .count()
    };
    let sides = [bright(x), bright(x + width / 2)];
    assert!(sides[usize::from(bright_on_right)] > 500, "{plane:?} {sides:?}");
    assert_eq!(sides[usize::from(!bright_on_right)], 0, "{plane:?}");
}

#[test]
fn the_patients_left_is_on_the_side_marked_l() {
    // Without heat the six slices are the lowest of equal weight and the one that weighs: the spot's is the last.
    check(Plane::Axial, 5, 5, ['R', 'L'], true);
    check(Plane::Coronal, 30, 5, ['R', 'L'], true);
    check(Plane::Sagittal, 7, 5, ['A', 'P'], false);
}

#[test]
fn heat_is_drawn_where_it_is() {
    let (volume, recipe) = (volume(), recipe(Plane::Axial));
    let prepared = Prepared::new(&volume, &recipe).unwrap();
    let mut heatmap = vec![0.0; 8 * 16];
    // Slice 5, first row, last column: in front, on the patient's left.
    heatmap[5 * 16 + 3] = 0.02;
    let image = draw(&Picture {
        task: "t",
        version: "1",
        labels: &[],
        prepared: &prepared,
        slice_weights: &[0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0],
        heatmap: &heatmap,
        grid: [4, 4],
    });
    let layout = Layout::new(6, [40, 40], "t 1", &[], NOTE);
    let [x, y] = layout.corner(5);
    let coloured = |row: usize, column: usize| {
        let [r, g, b] = image.get_pixel((x + column) as u32, (y + row) as u32).0;
        r != g || g != b
    };
    let n = layout.tile[0];
    assert!(coloured(n / 8, n - n / 8), "hot at the patient's left, in front");
    assert!(!coloured(n / 8, n / 8) && !coloured(n - n / 8, n - n / 8) && !coloured(n - n / 8, n / 8));
    let elsewhere = layout.corner(0);
    let cold = image.get_pixel((elsewhere[0] + n - n / 8) as u32, (elsewhere[1] + n / 8) as u32).0;
    assert!(cold[0] == cold[1] && cold[1] == cold[2]);
}

#[test]
fn key_slices_are_the_heaviest_in_order_of_position() {
    assert_eq!(key_slices(&[0.1, 0.4, 0.1, 0.3, 0.1], 3), [0, 1, 3]);
    assert_eq!(key_slices(&[0.5, 0.5], 6), [0, 1]);
}

#[test]
fn a_missing_folder_is_the_users_fault() {
    let (volume, recipe) = (volume(), recipe(Plane::Axial));
    let prepared = Prepared::new(&volume, &recipe).unwrap();
    let heatmap = vec![0.0; 8];
    let what = Picture {
        task: "t",
        version: "1",
        labels: &[],
        prepared: &prepared,
        slice_weights: &[0.125; 8],
        heatmap: &heatmap,
        grid: [1, 1],
    };
    let folder = tempfile::tempdir().unwrap();
    let error = write(&folder.path().join("none/picture.png"), &what).unwrap_err();
    assert!(error.is_bad_input() && error.to_string().contains("none/picture.png"));
}

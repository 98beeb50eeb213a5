//! A montage of the key slices with the heat map over them.

use std::path::Path;

use firmware_config::Plane;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, RgbImage};

use super::ReportError;
use super::canvas::{Canvas, Colour, text_width};
use super::colour::{colour, over};
use super::font::GLYPH;
use super::layout::{GAP, LARGE, Layout, SMALL, line};
use crate::files::write_atomically;
use crate::recipe::{Between, Prepared};

/// Most slices that a picture shows.
pub const MOST_SLICES: usize = 6;

/// What a picture shows.
#[derive(Debug, Clone, Copy)]
pub struct Picture<'a> {
    /// The task's name.
    pub task: &'a str,
    /// The plugin's version.
    pub version: &'a str,
    /// Name and probability (0 to 1) of each label.
    pub labels: &'a [(&'a str, f64)],
    /// The volume as the network saw it.
    pub prepared: &'a Prepared<'a>,
    /// Weight of each of the S slices.
    pub slice_weights: &'a [f32],
    /// Heat map `[S, gh, gw]`, C order.
    pub heatmap: &'a [f32],
    /// `[gh, gw]`.
    pub grid: [usize; 2],
}

/// The slices of greatest weight, at most `most`, ascending in position; of equal ones the lower.
pub fn key_slices(weights: &[f32], most: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    order.truncate(most);
    order.sort_unstable();
    order
}

/// Writes the picture as PNG; the same input gives the same bytes.
///
/// The grey is the first channel of the slices as the network sees them, on one scale for all; the heat is
/// relative to the greatest in the volume. The patient's side is marked on the left and right of each slice.
///
/// # Panics
/// If `slice_weights` or `heatmap` do not fit the prepared slices and `grid`.
pub fn write(path: &Path, picture: &Picture) -> Result<(), ReportError> {
    let image = draw(picture);
    let mut png = Vec::new();
    PngEncoder::new_with_quality(&mut png, CompressionType::Default, FilterType::Adaptive)
        .write_image(image.as_raw(), image.width(), image.height(), ExtendedColorType::Rgb8)
        .map_err(|source| ReportError::Encode { path: path.into(), source })?;
    write_atomically(path, &png).map_err(|source| ReportError::Io { path: path.into(), source })
}

const GROUND: Colour = [16, 18, 22];
const BORDER: Colour = [84, 92, 104];
const TEXT: Colour = [232, 236, 240];
const DIM: Colour = [164, 172, 182];
const NOTICE: Colour = [255, 196, 84];

const NOTE: &str = "research use only - no diagnosis";

fn draw(picture: &Picture) -> RgbImage {
    let prepared = picture.prepared;
    let patches = picture.grid[0] * picture.grid[1];
    assert_eq!(picture.slice_weights.len(), prepared.slices(), "a weight a slice");
    assert_eq!(picture.heatmap.len(), prepared.slices() * patches, "a heat map of S x gh x gw values");

    let key = key_slices(picture.slice_weights, MOST_SLICES);
    let title = format!("{} {}", picture.task, picture.version);
    let labels: Vec<String> =
        picture.labels.iter().map(|(name, p)| format!("{name} {:.1}%", 100.0 * p)).collect();
    let layout = Layout::new(key.len(), prepared.size(), &title, &labels, NOTE);
    let mut canvas = Canvas::new(layout.size, GROUND);
    draw_lines(&mut canvas, GAP, &layout.title, LARGE, TEXT);
    draw_lines(&mut canvas, layout.labels_top(), &layout.labels, SMALL, TEXT);

    let greys = greys(prepared, &key);
    let hottest = picture.heatmap.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    for (i, (&s, grey)) in key.iter().zip(&greys).enumerate() {
        let heat: Vec<f32> = picture.heatmap[s * patches..][..patches].iter().map(|x| x / hottest).collect();
        let (grey, heat) =
            (Image { values: grey, size: prepared.size() }, Image { values: &heat, size: picture.grid });
        let corner = layout.corner(i);
        draw_slice(&mut canvas, corner, layout.tile, &grey, &heat);
        draw_marks(&mut canvas, corner, layout.tile, prepared.edges());
        draw_caption(&mut canvas, corner, layout.tile, picture, s);
    }
    draw_colour_scale(&mut canvas, layout.foot());
    draw_lines(&mut canvas, layout.foot() + line(SMALL), &layout.note, SMALL, NOTICE);
    canvas.0
}

fn draw_lines(canvas: &mut Canvas, top: usize, lines: &[String], scale: usize, colour: Colour) {
    for (i, text) in lines.iter().enumerate() {
        canvas.text([GAP, top + i * line(scale)], text, scale, colour);
    }
}

/// First channel of the slices, as grey 0 to 255 from the least value shown to the 99.9th percentile.
fn greys(prepared: &Prepared, slices: &[usize]) -> Vec<Vec<f32>> {
    let [height, width] = prepared.size();
    let mut slice = vec![0.0; 3 * height * width];
    let mut greys: Vec<Vec<f32>> = Vec::new();
    for &s in slices {
        prepared.write_slice(s, &mut slice);
        greys.push(slice[..height * width].to_vec());
    }
    let mut sorted = greys.concat();
    sorted.sort_unstable_by(f32::total_cmp);
    let [low, high] = [0, (sorted.len() - 1) * 999 / 1000].map(|rank| sorted[rank]);
    let range = if high > low { high - low } else { 1.0 };
    greys.iter_mut().flatten().for_each(|x| *x = 255.0 * ((*x - low) / range).clamp(0.0, 1.0));
    greys
}

/// Values of `[height, width]`, C order.
struct Image<'a> {
    values: &'a [f32],
    size: [usize; 2],
}

impl Image<'_> {
    /// The image enlarged to `size` (width, height), bilinear.
    fn enlarged(&self, size: [usize; 2]) -> impl Fn(usize, usize) -> f32 {
        let along = |pixels: usize, samples: usize| -> Vec<Between> {
            let scale = samples as f64 / pixels as f64;
            (0..pixels).map(|i| Between::new((i as f64 + 0.5) * scale - 0.5, samples)).collect()
        };
        let (rows, columns) = (along(size[1], self.size[0]), along(size[0], self.size[1]));
        move |row, column| rows[row].of(|r| columns[column].of(|c| self.values[r * self.size[1] + c]))
    }
}

/// Draws a slice of `size`, with heat over it and a border around it.
fn draw_slice(canvas: &mut Canvas, [x, y]: [usize; 2], size: [usize; 2], grey: &Image, heat: &Image) {
    canvas.fill([x - 1, y - 1], [size[0] + 2, size[1] + 2], BORDER);
    let (grey, heat) = (grey.enlarged(size), heat.enlarged(size));
    for row in 0..size[1] {
        for column in 0..size[0] {
            canvas.set(x + column, y + row, over(grey(row, column), heat(row, column)));
        }
    }
}

/// Marks the patient's sides at half height.
fn draw_marks(canvas: &mut Canvas, [x, y]: [usize; 2], [width, height]: [usize; 2], edges: [char; 2]) {
    let [glyph_width, glyph_height] = GLYPH.map(|dots| dots * LARGE);
    let middle = y + height.saturating_sub(glyph_height) / 2;
    let right = x + width.saturating_sub(glyph_width + GAP / 2);
    for (left, mark) in [(x + GAP / 2, edges[0]), (right, edges[1])] {
        canvas.rimmed_text([left, middle], &mark.to_string(), LARGE, TEXT);
    }
}

/// Plane, index and weight of a slice, under it.
fn draw_caption(canvas: &mut Canvas, [x, y]: [usize; 2], tile: [usize; 2], picture: &Picture, s: usize) {
    let plane = match picture.prepared.plane() {
        Plane::Sagittal => "sagittal",
        Plane::Coronal => "coronal",
        Plane::Axial | Plane::Acquisition => "axial",
    };
    let position = format!("{plane} {}", picture.prepared.slice_index(s));
    let weight = format!("weight {:.3}", picture.slice_weights[s]);
    let fits = text_width(&position, SMALL) + GAP + text_width(&weight, SMALL) <= tile[0];
    let scale = if fits { SMALL } else { 1 };
    let top = y + tile[1] + GAP / 2;
    canvas.text([x, top], &position, scale, TEXT);
    canvas.text([x + tile[0].saturating_sub(text_width(&weight, scale)), top], &weight, scale, DIM);
}

fn draw_colour_scale(canvas: &mut Canvas, top: usize) {
    const LENGTH: usize = 160;
    canvas.text([GAP, top], "heat 0", SMALL, DIM);
    let left = GAP + text_width("heat 0 ", SMALL);
    for i in 0..LENGTH {
        let shade = colour(i as f32 / (LENGTH - 1) as f32).map(|c| (c + 0.5) as u8);
        canvas.fill([left + i, top], [1, GLYPH[1] * SMALL], shade);
    }
    canvas.text([left + LENGTH + GAP, top], "most", SMALL, DIM);
}

#[cfg(test)]
mod tests;

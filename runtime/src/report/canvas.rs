//! Drawing on an RGB image.

use image::{Rgb, RgbImage};

use super::font::{GLYPH, glyph};

/// A colour.
pub(super) type Colour = [u8; 3];

/// An image that clips what is drawn outside it.
pub(super) struct Canvas(pub RgbImage);

impl Canvas {
    pub fn new([width, height]: [usize; 2], colour: Colour) -> Self {
        Self(RgbImage::from_pixel(width as u32, height as u32, Rgb(colour)))
    }

    pub fn set(&mut self, x: usize, y: usize, colour: Colour) {
        if let Some(pixel) = self.0.get_pixel_mut_checked(x as u32, y as u32) {
            *pixel = Rgb(colour);
        }
    }

    pub fn fill(&mut self, [x, y]: [usize; 2], [width, height]: [usize; 2], colour: Colour) {
        for row in y..y + height {
            (x..x + width).for_each(|column| self.set(column, row, colour));
        }
    }

    /// Draws one line of text with its top left corner at `[x, y]`; a dot is `scale` pixels wide.
    pub fn text(&mut self, [x, y]: [usize; 2], text: &str, scale: usize, colour: Colour) {
        for (i, character) in text.chars().enumerate() {
            let left = x + i * advance(scale);
            for (row, bits) in glyph(character).into_iter().enumerate() {
                for column in (0..GLYPH[0]).filter(|column| bits >> (GLYPH[0] - 1 - column) & 1 == 1) {
                    self.fill([left + column * scale, y + row * scale], [scale; 2], colour);
                }
            }
        }
    }

    /// Text that reads on any ground: `colour` with a black rim one dot wide, inside which `[x, y]` lies.
    pub fn rimmed_text(&mut self, [x, y]: [usize; 2], text: &str, scale: usize, colour: Colour) {
        for (dx, dy) in (0..9).map(|i| (i % 3, i / 3)) {
            self.text([x + dx * scale - scale, y + dy * scale - scale], text, scale, [0, 0, 0]);
        }
        self.text([x, y], text, scale, colour);
    }
}

/// Distance from one character to the next.
fn advance(scale: usize) -> usize {
    (GLYPH[0] + 1) * scale
}

/// Width of a line of text.
pub(super) fn text_width(text: &str, scale: usize) -> usize {
    text.chars().count() * advance(scale)
}

/// Breaks `items` into lines of at most `width` pixels; an item that is wider stands alone.
pub(super) fn wrap(items: &[String], gap: &str, scale: usize, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for item in items {
        match lines.last_mut() {
            Some(line) if text_width(&format!("{line}{gap}{item}"), scale) <= width => {
                line.push_str(gap);
                line.push_str(item);
            }
            _ => lines.push(item.clone()),
        }
    }
    lines
}

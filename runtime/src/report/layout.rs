//! Where the parts of a picture go, in pixels.

use super::canvas::wrap;
use super::font::GLYPH;

/// Between things.
pub(super) const GAP: usize = 12;
/// Pixels a dot of a glyph: of ordinary text, and of the title and the marks.
pub(super) const SMALL: usize = 2;
/// See [`SMALL`].
pub(super) const LARGE: usize = 3;
/// A slice's longer side is enlarged to at least this.
const LEAST_SIDE: usize = 400;
/// Slices in a row.
const COLUMNS: usize = 3;

/// A line of text and the space under it.
pub(super) const fn line(scale: usize) -> usize {
    GLYPH[1] * scale + GAP
}

/// From the top: title, labels, rows of slices with a caption each, colour scale, note.
pub(super) struct Layout {
    /// Width and height of an enlarged slice.
    pub tile: [usize; 2],
    /// Width and height of the picture.
    pub size: [usize; 2],
    pub title: Vec<String>,
    pub labels: Vec<String>,
    pub note: Vec<String>,
    columns: usize,
}

impl Layout {
    /// For `slices` slices of `[height, width]`, a title and a note (broken at spaces) and labels.
    pub fn new(slices: usize, size: [usize; 2], title: &str, labels: &[String], note: &str) -> Self {
        let [height, width] = size;
        let zoom = LEAST_SIDE.div_ceil(height.max(width));
        let tile = [width * zoom, height * zoom];
        let columns = slices.clamp(1, COLUMNS);
        let content = (columns * (tile[0] + GAP) - GAP).max(LEAST_SIDE);
        let words = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
        let mut layout = Self {
            tile,
            size: [content + 2 * GAP, 0],
            title: wrap(&words(title), " ", LARGE, content),
            labels: wrap(labels, "   ", SMALL, content),
            note: wrap(&words(note), " ", SMALL, content),
            columns,
        };
        let rows = slices.div_ceil(columns);
        layout.size[1] = layout.corner(rows * columns)[1] + (1 + layout.note.len()) * line(SMALL);
        layout
    }

    /// Top of the labels.
    pub fn labels_top(&self) -> usize {
        GAP + self.title.len() * line(LARGE)
    }

    /// Top left corner of slice `i`.
    pub fn corner(&self, i: usize) -> [usize; 2] {
        let [x, y] = [i % self.columns, i / self.columns];
        let top = self.labels_top() + self.labels.len() * line(SMALL);
        [GAP + x * (self.tile[0] + GAP), top + y * (self.tile[1] + GAP / 2 + line(SMALL))]
    }

    /// Top of the colour scale, with the note under it.
    pub fn foot(&self) -> usize {
        self.size[1] - (1 + self.note.len()) * line(SMALL)
    }
}

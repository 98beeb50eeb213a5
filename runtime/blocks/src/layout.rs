//! Where the values of tokens lie.

use std::ops::Range;

use super::kernel::{Kernel, Kernels};
use super::{Crew, Isa};

/// How tokens lie in panels: as many as go into the main kernel's, the rest in one of the other kernel's.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub(super) tokens: usize,
    pub(super) kernels: Kernels,
}

/// Features of a panel's tokens, to be written.
pub(super) struct Part<'a> {
    pub(super) panel: usize,
    /// Number of the first of them.
    pub(super) first: usize,
    pub(super) values: &'a mut [f32],
}

impl Layout {
    /// Of so many tokens, for kernels of these instructions.
    pub fn new(isa: Isa, tokens: usize) -> Self {
        Self { tokens, kernels: Kernels::new(isa, tokens) }
    }

    /// What every layer's number of outputs must be a multiple of.
    pub fn columns(self) -> usize {
        self.kernels.main.columns
    }

    /// Rows `[T, features]` in panels.
    pub fn panels_of(self, rows: &[f32], features: usize) -> Vec<f32> {
        let mut panels = vec![0.0; self.lanes() * features];
        self.fill(rows, features, &mut panels);
        panels
    }

    /// How many of `features` go into a part, so that none of the threads waits long for another one's last.
    pub(super) fn share(self, features: usize, crew: &Crew) -> usize {
        const PARTS: usize = 16;
        let split = if crew.threads() == 1 { 1 } else { (PARTS * crew.threads()).div_ceil(self.panels()) };
        features.div_ceil(split).next_multiple_of(self.columns())
    }

    pub(super) fn panels(self) -> usize {
        self.tokens.div_ceil(self.kernels.main.lanes)
    }

    /// Lanes of all panels.
    pub(super) fn lanes(self) -> usize {
        (0..self.panels()).map(|panel| self.kernel(panel).lanes).sum()
    }

    pub(super) fn kernel(self, panel: usize) -> Kernel {
        let Kernels { main, rest } = self.kernels;
        if (panel + 1) * main.lanes <= self.tokens { main } else { rest }
    }

    /// Where a panel begins among panels of that many features.
    pub(super) fn start(self, panel: usize, features: usize) -> usize {
        panel * self.kernels.main.lanes * features
    }

    /// Those of panels of `features` that are in `range`, in parts of `chunk`, panel after panel.
    pub(super) fn parts(
        self,
        mut values: &mut [f32],
        features: usize,
        range: Range<usize>,
        chunk: usize,
    ) -> Vec<Part<'_>> {
        let mut parts = Vec::with_capacity(self.panels() * range.len().div_ceil(chunk));
        for panel in 0..self.panels() {
            let lanes = self.kernel(panel).lanes;
            let (here, after) = values.split_at_mut(lanes * features);
            values = after;
            let chunks = here[lanes * range.start..lanes * range.end].chunks_mut(lanes * chunk).enumerate();
            parts.extend(chunks.map(|(n, values)| Part { panel, first: range.start + n * chunk, values }));
        }
        parts
    }

    /// Writes `[T, features]` into panels.
    pub(super) fn fill(self, rows: &[f32], features: usize, panels: &mut [f32]) {
        for part in self.parts(panels, features, 0..features, features) {
            let lanes = self.kernel(part.panel).lanes;
            let rows = rows[self.start(part.panel, features)..].chunks_exact(features).take(lanes);
            for (lane, row) in rows.enumerate() {
                for (out, x) in part.values[lane..].iter_mut().step_by(lanes).zip(row) {
                    *out = *x;
                }
            }
        }
    }

    /// The first `count` of the tokens in `panels`, `[count, features]`.
    pub(super) fn rows(self, panels: &[f32], features: usize, count: usize) -> Vec<f32> {
        let mut rows = Vec::with_capacity(count * features);
        for token in 0..count {
            let panel = token / self.kernels.main.lanes;
            let (lanes, lane) = (self.kernel(panel).lanes, token % self.kernels.main.lanes);
            let panel = &panels[self.start(panel, features)..][..lanes * features];
            rows.extend(panel[lane..].iter().step_by(lanes));
        }
        rows
    }

    /// Packs a weight `[in, out]` as right operand.
    pub(super) fn pack(self, weight: &[f32], inputs: usize, packed: &mut [f32]) {
        let columns = self.columns();
        let outputs = weight.len() / inputs;
        for (n, tile) in packed.chunks_exact_mut(inputs * columns).enumerate() {
            for (row, out) in weight.chunks_exact(outputs).zip(tile.chunks_exact_mut(columns)) {
                out.copy_from_slice(&row[n * columns..][..columns]);
            }
        }
    }

    /// Takes keys and values of a head out of the panels of queries, keys and values, of `d` features each: as right operands
    /// `[T / columns, width, columns]` and `[width / columns, T, columns]`.
    pub(super) fn right_operands(
        self,
        qkv: &[f32],
        d: usize,
        head: usize,
        width: usize,
        keys: &mut [f32],
        values: &mut [f32],
    ) {
        match self.columns() {
            4 => self.right_operands_of::<4>(qkv, d, head, width, keys, values),
            8 => self.right_operands_of::<8>(qkv, d, head, width, keys, values),
            columns => unreachable!("no kernel has {columns} columns"),
        }
    }

    fn right_operands_of<const COLUMNS: usize>(
        self,
        qkv: &[f32],
        d: usize,
        head: usize,
        width: usize,
        keys: &mut [f32],
        values: &mut [f32],
    ) {
        /// Every kernel's lanes and columns are a multiple.
        const STEP: usize = 4;
        let (values, _) = values.as_chunks_mut::<COLUMNS>();
        for panel in 0..self.panels() {
            let lanes = self.kernel(panel).lanes;
            let first = panel * self.kernels.main.lanes;
            let tokens = lanes.min(self.tokens - first);
            let panel = &qkv[self.start(panel, 3 * d)..][..lanes * 3 * d];
            let of = |part: usize, e: usize| &panel[(part * d + head * width + e) * lanes..][..tokens];
            for e in 0..width {
                for (x, token) in of(1, e).chunks(STEP).zip((first..).step_by(STEP)) {
                    let start = (token / COLUMNS * width + e) * COLUMNS + token % COLUMNS;
                    keys[start..start + x.len()].copy_from_slice(x);
                }
            }
            for e in (0..width).step_by(COLUMNS) {
                let rows: [&[f32]; COLUMNS] = std::array::from_fn(|n| of(2, e + n));
                let out = &mut values[e / COLUMNS * self.tokens + first..][..tokens];
                let (squares, rest) = out.as_chunks_mut::<COLUMNS>();
                for (n, out) in squares.iter_mut().enumerate() {
                    let square = rows.map(|row| row.as_chunks::<COLUMNS>().0[n]);
                    *out = std::array::from_fn(|token| square.map(|row| row[token]));
                }
                for (token, out) in (tokens - rest.len()..tokens).zip(rest) {
                    *out = rows.map(|row| row[token]);
                }
            }
        }
    }
}

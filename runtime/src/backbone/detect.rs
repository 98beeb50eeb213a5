//! Which layout a file is in, told by its names alone: the one that it lacks least of, so that a partial or foreign file
//! has a nearest one to speak of.

use std::collections::{BTreeMap, BTreeSet};

use super::Tensors;
use super::layout::{ALL, Layout, Part, is_tensor};

/// A layout as a file has it.
pub(super) struct Found {
    pub layout: &'static Layout,
    /// What stands before every name of the backbone, such as `vision_model.`.
    pub prefix: String,
    /// The parts of each kind of block, alternatives decided.
    pub blocks: Vec<Vec<Part>>,
    /// How many kinds of tensor that the layout knows are there.
    pub there: usize,
    /// The names of the kinds that are not, though they should be.
    pub absent: Vec<String>,
}

/// The nearest layout; `None` where no name is of any.
pub(super) fn nearest(tensors: &Tensors) -> Option<Found> {
    let names: BTreeSet<String> = tensors.keys().map(|name| numbers_out(name)).collect();
    let candidates = ALL.into_iter().filter_map(|layout| {
        let prefix = prefix(layout, &names)?;
        Some(fit(layout, prefix, &names))
    });
    // Of equal ones the one that explains more.
    candidates.min_by_key(|found| (found.absent.len(), std::cmp::Reverse(found.there)))
}

/// A name with every part that is a number replaced by `N`.
fn numbers_out(name: &str) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = name.split('.').map(|part| if is_number(part) { "N" } else { part }).collect();
    parts.join(".")
}

/// The name by which a part is recognised.
fn pattern(at: &str, (canonical, theirs): Part) -> String {
    let dot = if at.is_empty() { "" } else { "." };
    let end = if is_tensor(canonical) { "" } else { ".weight" };
    format!("{at}{dot}{theirs}{end}")
}

/// What most of the layout's names stand behind.
fn prefix(layout: &Layout, names: &BTreeSet<String>) -> Option<String> {
    let blocks = layout.blocks.iter().flat_map(|block| {
        let parts = block.parts.iter().chain(block.attention[0]).chain(block.mlp[0]);
        parts.map(|&part| pattern(block.at, part))
    });
    let patterns: Vec<String> = layout.root.iter().map(|&part| pattern("", part)).chain(blocks).collect();
    let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
    for name in names {
        for pattern in &patterns {
            let is_prefix = |before: &&str| {
                before.is_empty() || (before.ends_with('.') && before.split('.').all(|part| part != "N"))
            };
            if let Some(before) = name.strip_suffix(pattern.as_str()).filter(is_prefix) {
                *votes.entry(before).or_default() += 1;
            }
        }
    }
    let most = votes.values().copied().max()?;
    votes.into_iter().find(|(_, n)| *n == most).map(|(prefix, _)| prefix.to_owned())
}

fn fit(layout: &'static Layout, prefix: String, names: &BTreeSet<String>) -> Found {
    let absent = |at: &str, parts: &[Part]| -> Vec<String> {
        let all = parts.iter().map(|&part| format!("{prefix}{}", pattern(at, part)));
        all.filter(|name| !names.contains(name)).collect()
    };
    let choose = |at: &str, ways: &'static [&'static [Part]]| -> &'static [Part] {
        // Of equally complete ways the longer: a gated MLP has every name of the plain one in some namings.
        let key = |way: &&[Part]| (absent(at, way).len(), std::cmp::Reverse(way.len()));
        ways.iter().copied().min_by_key(key).unwrap_or(&[])
    };
    let mut kinds = layout.root.len() + layout.optional.len() - absent("", layout.optional).len();
    let mut missing = absent("", layout.root);
    let mut blocks = Vec::new();
    for block in layout.blocks {
        let parts = [block.parts, choose(block.at, block.attention), choose(block.at, block.mlp)].concat();
        kinds += parts.len();
        missing.extend(absent(block.at, &parts));
        blocks.push(parts);
    }
    Found { layout, prefix, blocks, there: kinds - missing.len(), absent: missing }
}

//! The suites and scans that are built in.

use serde::Deserialize;

use super::suite::Template;

/// The suites, as `(name, TOML)`.
pub(super) const SUITES: [(&str, &str); 14] = [
    ("demo", include_str!("../../suites/demo.toml")),
    ("ct-bleed", include_str!("../../suites/ct-bleed.toml")),
    ("t01-bowel", include_str!("../../suites/t01-bowel.toml")),
    ("t02-liver", include_str!("../../suites/t02-liver.toml")),
    ("t03-kidney", include_str!("../../suites/t03-kidney.toml")),
    ("t04-spleen", include_str!("../../suites/t04-spleen.toml")),
    ("t05-pancreas", include_str!("../../suites/t05-pancreas.toml")),
    ("t06-nodule", include_str!("../../suites/t06-nodule.toml")),
    ("t07-spiculation", include_str!("../../suites/t07-spiculation.toml")),
    ("t08-subsolid", include_str!("../../suites/t08-subsolid.toml")),
    ("t09-shoulder-planes", include_str!("../../suites/t09-shoulder-planes.toml")),
    ("t10-shoulder-contrasts", include_str!("../../suites/t10-shoulder-contrasts.toml")),
    ("t11-chest", include_str!("../../suites/t11-chest.toml")),
    ("t12-head", include_str!("../../suites/t12-head.toml")),
];

/// Scans that several suites are made from, as `(name, TOML)`.
pub(super) const ANATOMIES: [(&str, &str); 2] = [
    ("brain", include_str!("../../suites/anatomy/brain.toml")),
    ("head-ct", include_str!("../../suites/anatomy/head-ct.toml")),
];

/// A file of scans.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scans {
    #[serde(rename = "template")]
    pub(super) templates: Vec<Template>,
}

//! Signed updates: what an operator wants on this device, from signed metadata to a plugin in its slot.
//!
//! ```text
//! desired (MQTT) ─→ follow: verified, newer than what was seen ─→ plan: what is to be done ─→ slots
//!                     ↑                                            │
//!                  trust: TUF metadata, kept across power cuts     └→ fetch: a target's bytes, resumed
//!                     ↑                                                  ↑
//!                     └──────────── source: https, folder, MQTT ─────────┘
//! ```
//!
//! Nothing that a source or a broker says is believed: metadata is signed by keys that the trusted root leads to (The Update
//! Framework, <https://theupdateframework.github.io/specification/latest/>), files have the length and digest that signed
//! metadata gives them, and the desired state is signed by the keys of the role that the repository delegates the site to.

mod backbone;
mod device;
mod error;
mod fetch;
mod folder;
mod https;
mod mqtt;
mod plan;
#[cfg(test)]
mod power_cuts;
mod source;
mod state;
mod trust;
#[cfg(test)]
mod whole_update;

pub use backbone::{fetch_backbone, lacking_backbone};
pub use device::{After, Place, Updates};
pub use error::{Attack, UpdateError};
pub use fetch::{Downloads, Progress};
pub use folder::Folder;
pub use https::Https;
pub use mqtt::Mqtt;
pub use plan::{Action, Standing, plan};
pub use source::{Source, SourceError, Take, TargetFile, open as open_source};
pub use trust::{Repository, Trust, read_root};

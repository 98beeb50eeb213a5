//! From a scanner's network to whole series: what listens, when a series is complete, and which task gets it.
//!
//! [`assembly`] and [`rules`] are pure: time and headers are arguments. `listener` is the only module with sockets.

pub mod assembly;
#[cfg(feature = "service")]
pub mod listener;
pub mod rules;

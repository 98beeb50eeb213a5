//! From a scanner's network to whole series: when a series is complete, and which task gets it.
//!
//! [`assembly`] and [`rules`] are pure: time and headers are arguments.

pub mod assembly;
pub mod rules;

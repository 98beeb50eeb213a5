//! Support for the integration tests and the demo.
pub mod programs;
pub mod reference;

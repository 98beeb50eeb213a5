//! Support for the integration tests and the demo.
pub mod reference;

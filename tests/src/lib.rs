//! Support for the integration tests and the demo.

pub mod dicom;
pub mod programs;
pub mod reference;

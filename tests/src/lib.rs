//! Support for the integration tests and the demo.

pub mod broker;
pub mod desk;
pub mod dicom;
pub mod fixture;
pub mod golden;
pub mod mosquitto;
pub mod programs;
pub mod reference;
pub mod repository;
pub mod scanner;
pub mod service;
pub mod subscriber;

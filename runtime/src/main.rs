//! The scanner-side command line.
fn main() {}

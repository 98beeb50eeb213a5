//! What a box runs for years: everything around inference that keeps it watched.

pub mod http;
pub mod machine;
pub mod notify;

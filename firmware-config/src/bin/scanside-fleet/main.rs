//! `scanside-fleet`: the operator's tool. Keys, a signed repository, desired states and rollouts; a broker and a static file server
//! are all it needs.

mod cli;
mod desired;
mod envelope;
mod error;
mod files;
mod fleet;
mod keys;
mod mirror;
mod mqtt;
mod plugin;
mod repository;
mod rollout;
mod table;

fn main() -> std::process::ExitCode {
    cli::run()
}

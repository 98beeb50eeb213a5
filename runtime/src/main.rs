//! `scanside`: the command line of a box beside the scanner.

mod cli;

fn main() -> std::process::ExitCode {
    cli::run()
}

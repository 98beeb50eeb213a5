//! Printing that neither panics nor minds a reader who has gone.

use std::io::{self, Write};

use super::Fault;

/// Prints a line on stdout. A closed pipe (`scanside … | head -1`) ends the printing, not the work.
pub fn line(text: &str) -> Result<(), Fault> {
    let mut out = io::stdout().lock();
    match out.write_all(format!("{text}\n").as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Fault::Stdout(error)),
        _ => Ok(()),
    }
}

/// Prints names and values in two columns.
pub fn table(rows: &[(&str, String)]) -> Result<(), Fault> {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().try_for_each(|(name, value)| line(&format!("{name:<width$}  {value}")))
}

/// Tells something on stderr.
pub fn message(text: &str) {
    // Where stderr is closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "{text}");
}

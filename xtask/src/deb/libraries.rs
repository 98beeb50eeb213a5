//! What is linked into the program, each with its licence: those who install it may have to tell it to others.

use anyhow::{Result, ensure};

use crate::workspace::{cargo, output};

/// One library a line, in the order of their names.
pub fn list(target: &str) -> Result<String> {
    let tree = output(cargo().args([
        "tree",
        "--package",
        "runtime",
        "--edges",
        "normal",
        "--target",
        target,
        "--prefix",
        "none",
        "--format",
        "{p}\t{l}\t{r}",
    ]))?;
    let all = parse(&tree);
    ensure!(all.len() > 50, "`cargo tree` told of only {} libraries of runtime", all.len());
    let title =
        "The libraries that /usr/bin/scanside contains: name, version, licence, where it comes from.\n\n";
    Ok(title.to_owned() + &all.join("\n") + "\n")
}

/// Without the workspace's own crates, which stand with their folder; and each once.
fn parse(tree: &str) -> Vec<String> {
    let mut lines: Vec<String> = tree
        .lines()
        .filter(|line| !line.contains(" (/"))
        .map(|line| {
            let mut fields = line.trim_end_matches(" (*)").split('\t');
            let package = fields.next().unwrap_or_default().trim_end_matches(" (proc-macro)");
            let (name, version) = package.split_once(" v").unwrap_or((package, ""));
            let rest = |text: Option<&str>| text.unwrap_or_default().trim().to_owned();
            format!("{name} {version}, {}, {}", rest(fields.next()), rest(fields.next()))
        })
        .filter(|line| !line.starts_with(' '))
        .collect();
    lines.sort();
    lines.dedup();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_library_stands_there_once_and_without_folders() {
        let tree = "runtime v0.1.0 (/home/x/scanside/runtime)\tApache-2.0\t\n\
                    bytes v1.10.1\tMIT\thttps://example.org/bytes\n\
                    serde_derive v1.0.0 (proc-macro)\tMIT OR Apache-2.0\thttps://example.org/serde\n\
                    bytes v1.10.1\tMIT\thttps://example.org/bytes (*)\n\
                    adler v2.0.0\t0BSD\t\n";
        assert_eq!(
            parse(tree),
            [
                "adler 2.0.0, 0BSD, ",
                "bytes 1.10.1, MIT, https://example.org/bytes",
                "serde_derive 1.0.0, MIT OR Apache-2.0, https://example.org/serde",
            ]
        );
    }
}

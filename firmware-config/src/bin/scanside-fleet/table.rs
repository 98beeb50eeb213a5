//! Columns of text.

/// Rows under a head, each column as wide as its widest cell; the last one is as wide as it likes.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let head: Vec<String> = head.iter().map(|&name| name.to_owned()).collect();
    std::iter::once(line(&head)).chain(rows.iter().map(|row| line(row))).collect()
}

/// What a device sent, without what a terminal would obey.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_each_other_and_obey_nobody() {
        let rows = [["ct-1", "lesion"], ["Größe-1", "x"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&["DEVICE", "TASK"], &rows), "DEVICE   TASK\nct-1     lesion\nGröße-1  x\n");
        assert_eq!(plain("a\x1b[2Jb\nc"), "a [2Jb c");
    }
}

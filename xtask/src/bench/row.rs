//! What was found, as a table and as JSON.

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// One line of the table, one entry of the JSON.
pub struct Row {
    pub name: String,
    pub unit: String,
    pub threads: usize,
    /// Median.
    pub scanside: f64,
    pub peers: Vec<Peer>,
}

/// What scanside is compared with.
pub struct Peer {
    /// Another program; `limit`, what was promised; or `weights`, the size of the graph.
    pub name: String,
    /// Which graph the program ran; empty where there is no program.
    pub graph: &'static str,
    /// Median.
    pub value: f64,
    /// scanside's value to this one: the median of the turns.
    pub ratio: f64,
    /// Smallest and largest ratio of a turn, where there were several.
    pub spread: Option<(f64, f64)>,
}

impl Peer {
    /// One number that no turns stand behind.
    pub fn plain(name: &str, ours: f64, value: f64) -> Self {
        Self { name: name.into(), graph: "", value, ratio: ours / value, spread: None }
    }

    /// From what both did turn by turn.
    pub fn compare(name: &str, graph: &'static str, ours: &[f64], theirs: &[f64]) -> Self {
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        let least = ratios.iter().copied().fold(f64::MAX, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        let spread = (ratios.len() > 1).then_some((least, most));
        Self { name: name.into(), graph, value: median(theirs), ratio: median(&ratios), spread }
    }
}

impl Row {
    /// From a line of the service's bench.
    pub fn parse(line: &str) -> Result<Self> {
        let row: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let number = |value: &Value| value.as_f64().with_context(|| line.to_owned());
        let text = |value: &Value| value.as_str().map(str::to_owned).with_context(|| line.to_owned());
        let (scanside, limit) = (number(&row["scanside"])?, number(&row["peers"]["limit"])?);
        Ok(Self {
            name: text(&row["name"])?,
            unit: text(&row["unit"])?,
            threads: number(&row["threads"])? as usize,
            scanside,
            peers: vec![Peer::plain("limit", scanside, limit)],
        })
    }
}

/// # Panics
/// Where there are no values.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

/// A line for each row, with a cell for each peer and graph: value, ratio, least to greatest ratio of a turn.
pub fn table(rows: &[Row]) -> String {
    let mut columns: Vec<(&str, &str)> = Vec::new();
    for peer in rows.iter().flat_map(|row| &row.peers) {
        if !columns.contains(&(&*peer.name, peer.graph)) {
            columns.push((&peer.name, peer.graph));
        }
    }
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let mut text = format!("{:width$} threads   scanside    ", "");
    for (name, graph) in &columns {
        let title = if graph.is_empty() { (*name).to_owned() } else { format!("{name}, {graph} graph") };
        text += &format!("  {title:<27}");
    }
    for row in rows {
        let line = format!("{:width$} {:>7} {:>10.1} {:<3}", row.name, row.threads, row.scanside, row.unit);
        text = text.trim_end().to_owned() + "\n" + &line;
        for column in &columns {
            let peer = row.peers.iter().find(|peer| (&*peer.name, peer.graph) == *column);
            text += &format!("  {:<27}", peer.map(cell).unwrap_or_default());
        }
    }
    text.trim_end().to_owned()
}

fn cell(peer: &Peer) -> String {
    let spread = peer.spread.map(|(least, most)| format!(" ({least:.2}–{most:.2})")).unwrap_or_default();
    format!("{:>9.1} {:>5.2}{spread}", peer.value, peer.ratio)
}

/// `machine` and `rows`.
pub fn json(machine: &Value, rows: &[Row]) -> Result<String> {
    let peer = |peer: &Peer| {
        let mut entry = json!({ "name": peer.name, "value": peer.value, "ratio": peer.ratio });
        if !peer.graph.is_empty() {
            entry["graph"] = peer.graph.into();
        }
        if let Some((least, most)) = peer.spread {
            entry["ratio_min"] = least.into();
            entry["ratio_max"] = most.into();
        }
        entry
    };
    let row = |row: &Row| {
        json!({
            "name": row.name,
            "unit": row.unit,
            "threads": row.threads,
            "scanside": row.scanside,
            "peers": row.peers.iter().map(peer).collect::<Vec<_>>(),
        })
    };
    let all = json!({ "machine": machine, "rows": rows.iter().map(row).collect::<Vec<_>>() });
    Ok(serde_json::to_string_pretty(&all)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-12);
    }

    #[test]
    fn table_and_json_say_the_same() {
        let turns = [[3.0, 2.0], [5.0, 2.0], [4.0, 2.0]];
        let (ours, theirs) = (turns.map(|t| t[0]), turns.map(|t| t[1]));
        let row = Row {
            name: "one".into(),
            unit: "ms".into(),
            threads: 2,
            scanside: median(&ours),
            peers: vec![
                Peer::compare("onnxruntime", "full", &ours, &theirs),
                Peer::compare("openvino", "full", &ours[..1], &[6.0]),
            ],
        };
        let promised = r#"{"name":"two","unit":"MB","scanside":1,"peers":{"limit":4},"threads":1}"#;
        let rows = [row, Row::parse(promised).unwrap()];
        let table = table(&rows);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].contains("onnxruntime, full graph") && lines[0].ends_with("limit"), "{table}");
        assert!(lines[1].contains("2.0  2.00 (1.50–2.50)") && lines[1].ends_with("6.0  0.50"), "{table}");
        assert!(lines[2].ends_with("4.0  0.25"), "{table}");

        let all: Value = serde_json::from_str(&json(&json!({ "cores": 2 }), &rows).unwrap()).unwrap();
        assert_eq!(all["machine"]["cores"], 2);
        let row = &all["rows"][0];
        assert_eq!((&row["scanside"], &row["threads"]), (&json!(4.0), &json!(2)));
        let peer = &row["peers"][0];
        assert_eq!((&peer["name"], &peer["graph"]), (&json!("onnxruntime"), &json!("full")));
        assert_eq!((&peer["ratio"], &peer["ratio_max"]), (&json!(2.0), &json!(2.5)));
        assert!(
            row["peers"][1].get("ratio_min").is_none() && all["rows"][1]["peers"][0].get("graph").is_none()
        );
    }
}

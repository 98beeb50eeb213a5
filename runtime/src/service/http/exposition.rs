//! Prometheus' text format, version 0.0.4 (prometheus.io, "Exposition formats"); names after its "Metric and label
//! naming": base units, `_total` for counters, timestamps in seconds since 1970.

use std::fmt::Write as _;

use super::Snapshot;
use crate::store::Counts;

pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The page `/metrics`.
pub fn render(snapshot: &Snapshot) -> String {
    let mut page = Page(String::new());
    let s = snapshot;
    page.one("scanside_build_info", GAUGE, "The program's version.", [("version", s.version.as_str())], 1.0);
    let healthy = f64::from(u8::from(s.trouble.is_none()));
    page.plain("scanside_healthy", GAUGE, "Whether /healthz says ok.", healthy);
    page.plain("scanside_uptime_seconds", GAUGE, "Time since the service started.", s.uptime.as_secs_f64());
    if let Some(counts) = &s.store {
        store(&mut page, counts);
    }
    let mqtt = &s.session;
    for (name, kind, help, value) in [
        ("connected", GAUGE, "Whether the connection to the broker stands.", u64::from(mqtt.connected)),
        ("connections_total", COUNTER, "Connections to the broker that stood.", mqtt.connections),
        ("delivered_total", COUNTER, "Messages that the broker acknowledged.", mqtt.delivered),
        ("unheard_total", COUNTER, "Messages that it had nobody to give to.", mqtt.unheard),
        ("refused_messages", GAUGE, "Messages that the broker does not take at present.", mqtt.refused),
    ] {
        page.plain(&format!("scanside_mqtt_{name}"), kind, help, value as f64);
    }
    for (name, kind, help, value) in [
        ("dicom_associations", GAUGE, "DICOM associations at present.", s.associations),
        ("dicom_instances_received_total", COUNTER, "Instances acknowledged.", s.instances_received),
        ("dicom_instances_refused_total", COUNTER, "Instances answered with a failure.", s.instances_refused),
        ("slices_encoded_total", COUNTER, "Slices encoded.", s.slices_encoded),
    ] {
        page.plain(&format!("scanside_{name}"), kind, help, value as f64);
    }
    let jobs = s.jobs_finished.iter().map(|(kind, &count)| ([("kind", kind.as_str())], count as f64));
    page.family("scanside_jobs_finished_total", COUNTER, "Jobs finished, by kind of result.", jobs);
    inference(&mut page, s);
    if let Some(at) = s.last_result {
        page.plain(
            "scanside_last_result_timestamp_seconds",
            GAUGE,
            "When the last result was made.",
            seconds(at),
        );
    }
    if let Some(bytes) = s.resident_memory {
        let help = "Memory of the process.";
        page.plain("scanside_resident_memory_bytes", GAUGE, help, bytes as f64);
    }
    let zones = s.temperatures.iter().map(|t| ([("zone", t.zone.as_str())], t.celsius));
    page.family("scanside_temperature_celsius", GAUGE, "What the machine's thermometers say.", zones);
    page.0
}

fn store(page: &mut Page, counts: &Counts) {
    let c = counts;
    for (name, help, value) in [
        ("series_open", "Series with instances that are part of no job.", c.open_series),
        ("instances_stored", "Instances in the store.", c.instances),
        ("jobs_waiting", "Jobs in the queue.", c.waiting),
        ("jobs_awaiting_views", "Jobs that wait for other series of a study.", c.awaiting_views),
        ("jobs_running", "Jobs being worked on.", c.running),
        ("jobs_quarantined", "Jobs given up, until retention.", c.quarantined),
        ("results_stored", "Results in the store.", c.results),
        ("outbox_messages", "Messages not delivered.", c.outbox),
        ("store_bytes", "Bytes of all instances.", c.bytes),
        ("store_free_bytes", "Bytes free in the store's file system.", c.free_bytes),
    ] {
        page.plain(&format!("scanside_{name}"), GAUGE, help, value as f64);
    }
    if let Some(at) = c.oldest_message {
        page.plain(
            "scanside_outbox_oldest_timestamp_seconds",
            GAUGE,
            "When the oldest message that is not delivered was made.",
            seconds(at),
        );
    }
}

fn inference(page: &mut Page, snapshot: &Snapshot) {
    let name = "scanside_inference_seconds";
    if snapshot.inference.is_empty() {
        return;
    }
    page.head(name, "summary", "Time of an inference, by task.");
    for (task, inference) in &snapshot.inference {
        let labels = [("task", task.as_str())];
        page.sample(&format!("{name}_sum"), &labels, inference.time.as_secs_f64());
        page.sample(&format!("{name}_count"), &labels, inference.count as f64);
    }
}

const GAUGE: &str = "gauge";
const COUNTER: &str = "counter";

/// The format's seconds from the store's milliseconds.
fn seconds(ms: i64) -> f64 {
    ms as f64 / 1000.0
}

struct Page(String);

impl Page {
    /// A metric without labels.
    fn plain(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        self.sample(name, &[], value);
    }

    fn one<const N: usize>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        labels: [(&str, &str); N],
        value: f64,
    ) {
        self.family(name, kind, help, [(labels, value)]);
    }

    /// A metric with labels; without samples it is left out.
    fn family<'a, const N: usize>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'a str, &'a str); N], f64)>,
    ) {
        for (i, (labels, value)) in samples.into_iter().enumerate() {
            if i == 0 {
                self.head(name, kind, help);
            }
            self.sample(name, &labels, value);
        }
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.0 += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0 += name;
        for (i, (label, text)) in labels.iter().enumerate() {
            let before = if i == 0 { '{' } else { ',' };
            self.0 += &format!("{before}{label}=\"{}\"", escaped(text));
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        // Rust writes a finite number as Prometheus reads it; infinities it calls `inf`, which Prometheus takes too.
        let _ = writeln!(self.0, " {value}");
    }
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests;

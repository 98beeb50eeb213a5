use std::collections::BTreeMap;
use std::time::Duration;

use super::super::Inference;
use super::*;
use crate::publish::session::Status;
use crate::service::machine::Temperature;

fn full() -> Snapshot {
    let inference = Inference { count: 4, time: Duration::from_millis(12_500) };
    Snapshot {
        trouble: Some("the disk is full".into()),
        version: "1.2.3".into(),
        uptime: Duration::from_secs(90),
        store: Some(Counts {
            open_series: 1,
            instances: 2000,
            waiting: 3,
            awaiting_views: 4,
            running: 1,
            quarantined: 2,
            results: 40,
            outbox: 5,
            oldest_message: Some(1_700_000_000_250),
            bytes: 20_000_000_000,
            free_bytes: 1_000_000_000,
        }),
        session: Status {
            connected: true,
            connections: 7,
            delivered: 35,
            unheard: 1,
            refused: 2,
            trouble: Some("NotAuthorized".into()),
        },
        associations: 4,
        instances_received: 2000,
        instances_refused: 6,
        jobs_finished: BTreeMap::from([("final".into(), 38), ("refused".into(), 2)]),
        inference: BTreeMap::from([("lesion".into(), inference)]),
        slices_encoded: 1234,
        last_result: Some(1_700_000_100_000),
        resident_memory: Some(31_457_280),
        temperatures: vec![
            Temperature { zone: "cpu-thermal".into(), celsius: 48.25 },
            Temperature { zone: "a \"b\" \\c\nd".into(), celsius: -5.0 },
        ],
    }
}

#[test]
fn every_number_is_on_the_page() {
    let page = render(&full());
    let samples: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
    let expected = r#"scanside_build_info{version="1.2.3"} 1
scanside_healthy 0
scanside_uptime_seconds 90
scanside_series_open 1
scanside_instances_stored 2000
scanside_jobs_waiting 3
scanside_jobs_awaiting_views 4
scanside_jobs_running 1
scanside_jobs_quarantined 2
scanside_results_stored 40
scanside_outbox_messages 5
scanside_store_bytes 20000000000
scanside_store_free_bytes 1000000000
scanside_outbox_oldest_timestamp_seconds 1700000000.25
scanside_mqtt_connected 1
scanside_mqtt_connections_total 7
scanside_mqtt_delivered_total 35
scanside_mqtt_unheard_total 1
scanside_mqtt_refused_messages 2
scanside_dicom_associations 4
scanside_dicom_instances_received_total 2000
scanside_dicom_instances_refused_total 6
scanside_slices_encoded_total 1234
scanside_jobs_finished_total{kind="final"} 38
scanside_jobs_finished_total{kind="refused"} 2
scanside_inference_seconds_sum{task="lesion"} 12.5
scanside_inference_seconds_count{task="lesion"} 4
scanside_last_result_timestamp_seconds 1700000100
scanside_resident_memory_bytes 31457280
scanside_temperature_celsius{zone="cpu-thermal"} 48.25
scanside_temperature_celsius{zone="a \"b\" \\c\nd"} -5"#;
    assert_eq!(samples, expected.lines().collect::<Vec<_>>());
}

/// The format's rules: HELP and TYPE once and first, samples of a metric together, sound names.
#[test]
fn the_page_keeps_the_formats_rules() {
    let page = render(&full());
    assert!(page.ends_with('\n') && !page.contains("\n\n"));
    let mut described: Vec<(&str, &str)> = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap();
            assert!(!text.is_empty());
            let (of, kind) = lines.next().unwrap().strip_prefix("# TYPE ").unwrap().split_once(' ').unwrap();
            assert!(of == name && !described.iter().any(|(other, _)| *other == name), "{name} twice");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
            described.push((name, kind));
            continue;
        }
        let (name, kind) = *described.last().unwrap();
        let sample = line.split(['{', ' ']).next().unwrap();
        let parts = ["_sum", "_count"].map(|part| format!("{name}{part}"));
        assert!(sample == name || kind == "summary" && parts.iter().any(|part| part == sample), "{line}");
        assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
    }
    assert!(described.len() > 25, "{described:?}");
}

#[test]
fn what_is_not_known_is_left_out() {
    let page = render(&Snapshot::default());
    for part in ["store_", "outbox", "last_result", "memory", "temperature", "jobs", "inference"] {
        assert!(!page.contains(part), "{part} in {page}");
    }
    assert!(page.contains("scanside_healthy 1\n") && page.contains("scanside_mqtt_connected 0\n"));
}

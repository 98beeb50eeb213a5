//! What stands in the index, as JSON: a field that a later build adds has a default in this one's rows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::result::{Completion, Kind};

/// A series that has instances. Key: its UID.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SeriesRow {
    pub study_uid: Option<String>,
    /// Instances that the sender said the series has.
    pub expected: Option<u32>,
    /// When its first instance came.
    pub first: i64,
    /// When anything happened to it last.
    pub last: i64,
    /// Instances so far; the next one gets this sequence number.
    pub instances: u32,
    /// Instances that are part of a revision: those with a sequence number below this.
    pub closed: u32,
    /// Revisions so far.
    pub revisions: u32,
    /// Jobs in the queue.
    pub jobs: u32,
    /// By task, the result that the next revision's takes the place of.
    pub results: BTreeMap<String, String>,
    /// All results in the index, by their id.
    pub all_results: Vec<String>,
}

/// One instance. Key: series UID, SOP UID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InstanceRow {
    pub sequence: u32,
    pub sha256: String,
    pub bytes: u64,
    pub received: i64,
}

/// A job in the queue. Key: its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct JobRow {
    pub series_uid: String,
    pub revision: u32,
    pub completion: Completion,
    /// The job is about the instances with a sequence number below this.
    pub instances: u32,
    pub queued: i64,
    /// Place in the queue, the lowest first; each try puts the job at the end.
    pub turn: u64,
    pub tries: u32,
    /// Why the last try failed.
    pub reason: Option<String>,
    /// Whether it is in quarantine.
    pub quarantined: bool,
    /// Of a job of one task about a study.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub study: Option<StudyRow>,
}

/// What a task waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StudyRow {
    pub task: String,
    pub study_uid: Option<String>,
    /// Since when it waits.
    pub since: i64,
    /// The job is not taken before.
    pub until: i64,
}

/// A result. Key: its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ResultRow {
    pub task: String,
    pub kind: Kind,
    pub stored: i64,
    pub json: String,
    /// Of a result about several series, these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub series: Vec<String>,
}

/// Why a job was given up. Key: the job's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QuarantineRow {
    pub series_uid: String,
    pub revision: u32,
    pub tries: u32,
    pub reason: String,
    pub at: i64,
}

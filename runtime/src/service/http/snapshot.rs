use std::collections::BTreeMap;
use std::time::Duration;

use crate::publish::session::Status;
use crate::service::machine::Temperature;
use crate::store::Counts;

/// How the service is doing, in numbers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Why the service does not do its work, one sentence for whoever mends it; none while it does.
    pub trouble: Option<String>,
    /// The program's version.
    pub version: String,
    /// Since the service started.
    pub uptime: Duration,
    /// What the store holds; none while it cannot tell.
    pub store: Option<Counts>,
    /// The session with the broker.
    pub session: Status,
    /// DICOM associations at present.
    pub associations: u64,
    /// Instances acknowledged, in all.
    pub instances_received: u64,
    /// Instances answered with a failure, in all.
    pub instances_refused: u64,
    /// Jobs finished, in all, by the kind of result that they ended in ([`crate::result::Kind::as_str`]).
    pub jobs_finished: BTreeMap<String, u64>,
    /// Time spent on inference, by task.
    pub inference: BTreeMap<String, Inference>,
    /// Slices encoded, in all.
    pub slices_encoded: u64,
    /// When the last result was made, ms since 1970.
    pub last_result: Option<i64>,
    /// Bytes of memory in use by the process, where the machine tells.
    pub resident_memory: Option<u64>,
    /// What the machine's thermometers say.
    pub temperatures: Vec<Temperature>,
}

/// Inferences of one task so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Inference {
    /// How many.
    pub count: u64,
    /// How long they took together.
    pub time: Duration,
}

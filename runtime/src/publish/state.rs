use firmware_config::Task;
use serde::{Deserialize, Serialize};

/// Why a state is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The connection stands.
    Online,
    /// The service ends, on purpose.
    Leaving,
    /// The connection was lost without a word: the Will. It is written down when the connection begins.
    Lost,
}

/// The payload of `state`, retained: birth, death and Will.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// `scanside.state/1`.
    pub schema: String,
    /// Whether the service is there.
    pub online: bool,
    /// The program and its version.
    pub build: String,
    /// The tasks that it runs.
    pub tasks: Vec<Task>,
    /// Since when this holds, UTC, RFC 3339; null in a Will, whose time nobody knows beforehand.
    pub since: Option<String>,
}

impl State {
    /// The value of [`State::schema`].
    pub const SCHEMA: &'static str = "scanside.state/1";

    /// The state as JSON; `now` is not used for a Will.
    pub fn json(presence: Presence, build: &str, tasks: &[Task], now: &str) -> Vec<u8> {
        let state = Self {
            schema: Self::SCHEMA.into(),
            online: presence == Presence::Online,
            build: build.into(),
            tasks: tasks.to_vec(),
            since: (presence != Presence::Lost).then(|| now.into()),
        };
        serde_json::to_vec(&state).unwrap_or_default()
    }
}

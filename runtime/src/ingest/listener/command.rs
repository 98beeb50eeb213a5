//! DIMSE command sets (PS3.7, 6.3 and 9.3): implicit VR little endian, group 0000 only.

use super::Status;

/// Longest command set that is read; a C-STORE request has some 300 bytes.
pub(super) const MAX_COMMAND: usize = 1 << 14;

pub(super) const C_STORE_RQ: u16 = 0x0001;
pub(super) const C_ECHO_RQ: u16 = 0x0030;
pub(super) const C_CANCEL_RQ: u16 = 0x0FFF;
/// Set in the command field of responses.
const RESPONSE: u16 = 0x8000;
/// (0000,0800) CommandDataSetType of a command that no data set follows.
const NO_DATA_SET: u16 = 0x0101;

const AFFECTED_SOP_CLASS: u16 = 0x0002;
const COMMAND_FIELD: u16 = 0x0100;
const MESSAGE_ID: u16 = 0x0110;
const MESSAGE_ID_BEING_RESPONDED_TO: u16 = 0x0120;
const DATA_SET_TYPE: u16 = 0x0800;
const STATUS: u16 = 0x0900;
const ERROR_COMMENT: u16 = 0x0902;
const AFFECTED_SOP_INSTANCE: u16 = 0x1000;

/// What a command set says, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) field: u16,
    pub(super) message_id: u16,
    pub(super) has_data_set: bool,
    pub(super) sop_class: Option<String>,
    pub(super) sop_instance: Option<String>,
}

impl Command {
    /// `None` where it is no command set: elements of another group, lengths beyond the end, attributes twice, or
    /// without command field, message ID or data set type.
    pub(super) fn parse(mut bytes: &[u8]) -> Option<Self> {
        let (mut field, mut message_id, mut data_set) = (None, None, None);
        let (mut sop_class, mut sop_instance) = (None, None);
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_first_chunk::<8>()?;
            let [g0, g1, e0, e1, length @ ..] = *head;
            if (g0, g1) != (0, 0) {
                return None;
            }
            let length = usize::try_from(u32::from_le_bytes(length)).ok()?;
            let (value, rest) = rest.split_at_checked(length)?;
            bytes = rest;
            let fresh = match u16::from_le_bytes([e0, e1]) {
                COMMAND_FIELD => field.replace(short(value)?).is_none(),
                MESSAGE_ID => message_id.replace(short(value)?).is_none(),
                DATA_SET_TYPE => data_set.replace(short(value)?).is_none(),
                AFFECTED_SOP_CLASS => sop_class.replace(uid(value)?).is_none(),
                AFFECTED_SOP_INSTANCE => sop_instance.replace(uid(value)?).is_none(),
                _ => true,
            };
            if !fresh {
                return None;
            }
        }
        let field = field?;
        // A C-CANCEL request has no message ID of its own.
        let message_id = if field == C_CANCEL_RQ { message_id.unwrap_or(0) } else { message_id? };
        let has_data_set = data_set? != NO_DATA_SET;
        Some(Self { field, message_id, has_data_set, sop_class, sop_instance })
    }

    /// The status of an answer, which needs no field of a request.
    pub(super) fn status(mut bytes: &[u8]) -> Option<u16> {
        while let Some(([g0, g1, e0, e1, length @ ..], rest)) = bytes.split_first_chunk::<8>() {
            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            let (value, rest) = rest.split_at_checked(length)?;
            if (*g0, *g1) == (0, 0) && u16::from_le_bytes([*e0, *e1]) == STATUS {
                return short(value);
            }
            bytes = rest;
        }
        None
    }

    pub(super) fn is_request(&self) -> bool {
        self.field & RESPONSE == 0
    }

    /// The command set of the answer; `comment` is cut to what (0000,0902) holds.
    pub(super) fn answer(&self, status: Status, comment: &str) -> Vec<u8> {
        let mut elements: Vec<(u16, Vec<u8>)> = Vec::new();
        if let Some(uid) = &self.sop_class {
            elements.push((AFFECTED_SOP_CLASS, padded(uid, 0)));
        }
        let number = |n: u16| n.to_le_bytes().to_vec();
        elements.push((COMMAND_FIELD, number(self.field | RESPONSE)));
        elements.push((MESSAGE_ID_BEING_RESPONDED_TO, number(self.message_id)));
        elements.push((DATA_SET_TYPE, number(NO_DATA_SET)));
        elements.push((STATUS, number(status.code())));
        if !comment.is_empty() {
            // PS3.5, 6.2, VR LO: 64 characters, no backslash.
            let allowed = |c: &char| (' '..='~').contains(c) && *c != '\\';
            let comment: String = comment.chars().filter(allowed).take(64).collect();
            elements.push((ERROR_COMMENT, padded(&comment, b' ')));
        }
        if let Some(uid) = &self.sop_instance {
            elements.push((AFFECTED_SOP_INSTANCE, padded(uid, 0)));
        }
        let mut body = Vec::new();
        for (element, value) in elements {
            put(&mut body, element, &value);
        }
        let mut out = Vec::with_capacity(body.len() + 12);
        put(&mut out, 0x0000, &(body.len() as u32).to_le_bytes());
        out.extend(body);
        out
    }
}

/// The command set of a request without a data set.
pub(super) fn request(field: u16, message_id: u16, sop_class: &str) -> Vec<u8> {
    let elements = [
        (AFFECTED_SOP_CLASS, padded(sop_class, 0)),
        (COMMAND_FIELD, field.to_le_bytes().to_vec()),
        (MESSAGE_ID, message_id.to_le_bytes().to_vec()),
        (DATA_SET_TYPE, NO_DATA_SET.to_le_bytes().to_vec()),
    ];
    let mut body = Vec::new();
    for (element, value) in elements {
        put(&mut body, element, &value);
    }
    let mut out = Vec::new();
    put(&mut out, 0x0000, &(body.len() as u32).to_le_bytes());
    out.extend(body);
    out
}

fn put(out: &mut Vec<u8>, element: u16, value: &[u8]) {
    out.extend([0, 0]);
    out.extend(element.to_le_bytes());
    out.extend((value.len() as u32).to_le_bytes());
    out.extend(value);
}

fn padded(text: &str, padding: u8) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    if bytes.len() % 2 == 1 {
        bytes.push(padding);
    }
    bytes
}

fn short(value: &[u8]) -> Option<u16> {
    value.try_into().ok().map(u16::from_le_bytes)
}

/// A UID (PS3.5, 9.1): 1 to 64 digits and dots, so that it can stand in file names and messages.
fn uid(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?.trim_matches(['\0', ' ']);
    let sound = (1..=64).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_digit() || c == b'.');
    sound.then(|| text.to_owned())
}

#[cfg(test)]
mod tests;

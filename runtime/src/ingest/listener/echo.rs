use std::net::SocketAddr;
use std::time::Duration;

use dicom_dictionary_std::uids;
use dicom_ul::association::client::ClientAssociationOptions;
use dicom_ul::pdu::{PDataValue, PDataValueType, Pdu};

use super::command::{C_ECHO_RQ, Command, request};

/// Asks whatever listens at `to` for a sign of life (C-ECHO, PS3.7, 9.1.5), as `called` and from `calling`. `patience` is for each
/// answer. The error is why there was none, as a phrase.
pub fn echo(to: SocketAddr, called: &str, calling: &str, patience: Duration) -> Result<(), String> {
    let mut association = ClientAssociationOptions::new()
        .calling_ae_title(calling)
        .called_ae_title(called)
        .with_presentation_context(uids::VERIFICATION, vec![uids::IMPLICIT_VR_LITTLE_ENDIAN])
        .connection_timeout(patience)
        .read_timeout(patience)
        .write_timeout(patience)
        .establish(to)
        .map_err(|error| error.to_string())?;
    let answer = exchange(&mut association);
    // Whether the goodbye arrives does not matter.
    let _ = association.release();
    answer
}

type Association = dicom_ul::association::client::ClientAssociation<std::net::TcpStream>;

fn exchange(association: &mut Association) -> Result<(), String> {
    let context = association.presentation_contexts().first().ok_or("it takes no C-ECHO")?.id;
    let value = PDataValue {
        presentation_context_id: context,
        value_type: PDataValueType::Command,
        is_last: true,
        data: request(C_ECHO_RQ, 1, uids::VERIFICATION),
    };
    association.send(&Pdu::PData { data: vec![value] }).map_err(|error| error.to_string())?;
    let pdu = association.receive().map_err(|error| error.to_string())?;
    let Pdu::PData { data } = pdu else {
        return Err(format!("it answered with {}", pdu.short_description()));
    };
    let bytes: Vec<u8> = data.into_iter().flat_map(|value| value.data).collect();
    match Command::status(&bytes) {
        Some(0) => Ok(()),
        Some(status) => Err(format!("it answered with status {status:04X}")),
        None => Err("it answered with what is no C-ECHO response".into()),
    }
}

use proptest::prelude::*;

use super::*;

fn element(group: u16, element: u16, value: &[u8]) -> Vec<u8> {
    let mut out = [group.to_le_bytes(), element.to_le_bytes()].concat();
    out.extend((value.len() as u32).to_le_bytes());
    out.extend(value);
    out
}

fn store() -> Vec<Vec<u8>> {
    vec![
        element(0, 0x0000, &[0; 4]),
        element(0, 0x0002, b"1.2.840.10008.5.1.4.1.1.2\0"),
        element(0, 0x0100, &[1, 0]),
        element(0, 0x0110, &[7, 0]),
        element(0, 0x0700, &[0, 0]),
        element(0, 0x0800, &[1, 0]),
        element(0, 0x1000, b"1.2.3 "),
    ]
}

#[test]
fn a_store_request_and_its_answer() {
    let command = Command::parse(&store().concat()).unwrap();
    assert_eq!((command.field, command.message_id, command.has_data_set), (C_STORE_RQ, 7, true));
    assert_eq!(command.sop_class.as_deref(), Some("1.2.840.10008.5.1.4.1.1.2"));
    assert_eq!(command.sop_instance.as_deref(), Some("1.2.3"));
    let answer = command.answer(Status::OutOfResources, &format!("dis\\k {}", "x".repeat(99)));
    assert_eq!(answer[8..12], (answer.len() as u32 - 12).to_le_bytes(), "its group length");
    let find = |n: u16| {
        let head = element(0, n, &[]);
        answer.windows(4).position(|four| four == &head[..4]).map(|at| &answer[at + 4..])
    };
    assert_eq!(find(0x0900).unwrap()[..6], [2, 0, 0, 0, 0x00, 0xA7]);
    assert_eq!(find(0x0100).unwrap()[4..6], [0x01, 0x80]);
    assert_eq!(find(0x0120).unwrap()[4..6], [7, 0]);
    assert_eq!(find(0x0902).unwrap()[..14], *b"\x40\0\0\0disk xxxxx");
    assert!(Command::parse(&answer).is_none(), "a response has no message ID of its own");
}

#[test]
fn what_is_no_command_set_is_refused() {
    assert!(Command::parse(&[]).is_none());
    for n in 0..store().len() {
        let with = |changed: Vec<u8>| {
            let mut all = store();
            all[n] = changed;
            Command::parse(&all.concat()).is_none()
        };
        // Field, message ID and data set type are needed.
        assert_eq!(with(Vec::new()), [2, 3, 5].contains(&n), "without element {n}");
        let mut elsewhere = store()[n].clone();
        elsewhere[0] = 8;
        assert!(with(elsewhere), "element {n} of group 0008");
        let mut endless = store()[n].clone();
        endless[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(with(endless), "element {n} of 4 GB");
        let twice = [store()[n].clone(), store()[n].clone()].concat();
        assert_eq!(with(twice), [1, 2, 3, 5, 6].contains(&n), "element {n} twice");
    }
    for uid in [&b""[..], b"1.2/../3", b"1.2.\xFF", &[b'1'; 66], b"patient"] {
        let mut all = store();
        all[6] = element(0, 0x1000, uid);
        assert!(Command::parse(&all.concat()).is_none(), "{uid:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Anything at all: no panic, and whatever is read can be answered within a PDU.
    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Some(command) = Command::parse(&bytes) {
            prop_assert!(command.answer(Status::CannotUnderstand, "no").len() < 400);
        }
    }

    /// A sound command with bytes changed, cut out and put in.
    #[test]
    fn damaged_commands_do_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..6),
    ) {
        let mut bytes = store().concat();
        for (at, value, how) in changes {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = value,
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, value),
            }
        }
        if let Some(command) = Command::parse(&bytes) {
            let uids = [&command.sop_class, &command.sop_instance];
            let sound = |uid: &str| !uid.is_empty() && uid.len() <= 64 && !uid.contains(['/', '\\', '\0']);
            prop_assert!(uids.into_iter().flatten().all(|uid| sound(uid)));
        }
    }
}

#[test]
fn a_request_and_the_status_of_its_answer() {
    let bytes = request(C_ECHO_RQ, 7, "1.2.840.10008.1.1");
    let command = Command::parse(&bytes).unwrap();
    assert!(command.is_request() && !command.has_data_set);
    assert_eq!((command.field, command.message_id), (C_ECHO_RQ, 7));
    assert_eq!(command.sop_class.as_deref(), Some("1.2.840.10008.1.1"));
    assert_eq!(Command::status(&bytes), None, "a request has none");
    for status in [Status::Success, Status::OutOfResources] {
        let answer = command.answer(status, "a word");
        assert_eq!(Command::status(&answer), Some(status.code()));
        for end in 0..answer.len() {
            // Cut off somewhere, it gives the status or none, and never another one.
            assert!(Command::status(&answer[..end]).is_none_or(|found| found == status.code()));
        }
    }
}

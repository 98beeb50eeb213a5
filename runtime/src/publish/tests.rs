use super::*;

fn broker(text: &str) -> Broker {
    text.parse().unwrap()
}

/// A local port on which nothing listens.
fn closed() -> Broker {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    broker(&format!("mqtt://{}", listener.local_addr().unwrap()))
}

const HASTE: Patience = Patience {
    attempts: 2,
    connect: Duration::from_millis(300),
    acknowledge: Duration::from_millis(200),
    pause: Duration::from_millis(1),
    longest_pause: Duration::from_millis(2),
};

fn run(broker: &Broker, payload: Vec<u8>) -> Result<(), PublishError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let messages = [Message { topic: "scanside/v1/s/d/result/t".into(), payload }];
    runtime.block_on(publish(&Endpoint::open(broker.clone()).unwrap(), "scanside-test", &messages, &HASTE))
}

#[test]
fn a_broker_that_is_not_there_is_told_after_the_attempts() {
    match run(&closed(), vec![1]).unwrap_err() {
        PublishError::Unacknowledged { unsent: 1, all: 1, attempts: 2, .. } => {}
        other => panic!("{other}"),
    }
}

#[test]
fn what_accepts_but_never_answers_is_given_up() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = broker(&format!("mqtt://{}", listener.local_addr().unwrap()));
    let error = run(&silent, vec![1]).unwrap_err();
    assert!(!error.is_bad_input());
    assert!(matches!(error, PublishError::Unacknowledged { attempts: 2, .. }), "{error}");
}

#[test]
fn an_oversized_message_is_refused_before_connecting() {
    let error = run(&closed(), vec![0; MAX_PAYLOAD + 1]).unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { bytes, .. } if bytes == MAX_PAYLOAD + 1), "{error}");
}

#[test]
fn topics_follow_the_kind_and_uids_the_form() {
    let (site, device) = ("north".parse().unwrap(), "ct-2".parse().unwrap());
    let mut result = crate::result::tests::sample();
    let mut message = |kind, uids| {
        result.kind = kind;
        Message::result(&result, &site, &device, uids)
    };
    let plain = message(Kind::Final, UidForm::Plain);
    assert_eq!(plain.topic, "scanside/v1/north/ct-2/result/lesion");
    assert!(String::from_utf8(plain.payload).unwrap().contains("1.2.3.4"));
    let bare = message(Kind::Refused, UidForm::LeftOut);
    assert_eq!(bare.topic, "scanside/v1/north/ct-2/refused/lesion");
    assert!(!String::from_utf8(bare.payload).unwrap().contains("1.2.3.4"));
    let key = crate::result::DeviceKey::new([3; 32]);
    let hashed = message(Kind::Shadow, UidForm::Hashed(&key));
    assert_eq!(hashed.topic, "scanside/v1/north/ct-2/shadow/lesion");
    let text = String::from_utf8(hashed.payload).unwrap();
    assert!(text.contains("hmac-sha256:") && !text.contains("1.2.3.4"), "{text}");
    assert_eq!(message(Kind::Preliminary, UidForm::Plain).topic, "scanside/v1/north/ct-2/preliminary/lesion");
}

#[test]
fn the_state_says_who_is_there() {
    let tasks = [firmware_config::Task { name: "lesion".into(), version: "1.0.0".into() }];
    let json = |presence| {
        String::from_utf8(State::json(presence, "scanside 1.2.3", &tasks, "2000-01-01T00:00:00.000Z"))
            .unwrap()
    };
    assert_eq!(
        json(Presence::Online),
        r#"{"schema":"scanside.state/1","online":true,"build":"scanside 1.2.3","tasks":[{"name":"lesion","version":"1.0.0"}],"since":"2000-01-01T00:00:00.000Z"}"#
    );
    assert!(json(Presence::Leaving).contains(r#""online":false"#));
    assert!(
        json(Presence::Lost).contains(r#""online":false"#)
            && json(Presence::Lost).contains(r#""since":null"#)
    );
}

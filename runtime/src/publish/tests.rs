use super::*;

fn broker(text: &str) -> Result<Broker, PublishError> {
    text.parse()
}

#[test]
fn addresses_are_read_or_refused_with_a_reason() {
    let display = |text: &str| broker(text).map(|b| b.to_string()).unwrap();
    assert_eq!(display("mqtt://broker.example:1884"), "mqtt://broker.example:1884");
    assert_eq!(display("MQTT://10.0.0.1/"), "mqtt://10.0.0.1:1883");
    assert_eq!(display("mqtt://[::1]:1999"), "mqtt://[::1]:1999");
    assert_eq!(display("mqtt://[::1]"), "mqtt://[::1]:1883");
    for bad in [
        "",
        "broker:1883",
        "http://broker:1883",
        "mqtts://broker:8883",
        "mqtt://",
        "mqtt://:1883",
        "mqtt://a:0",
        "mqtt://a:70000",
        "mqtt://a:x",
        "mqtt://a/b",
        "mqtt://a b",
        "mqtt://::1:1883",
        "mqtt://[::z]:1883",
    ] {
        let error = broker(bad).unwrap_err();
        assert!(
            error.is_bad_input() && error.to_string().contains("expected mqtt://HOST:PORT"),
            "{bad}: {error}"
        );
    }
}

#[test]
fn a_password_in_an_address_is_not_repeated() {
    let error = broker("mqtt://user:secret@host:1883").unwrap_err().to_string();
    assert!(error.contains("host:1883") && !error.contains("secret"), "{error}");
}

#[test]
fn only_this_machine_is_loopback() {
    for here in ["mqtt://localhost", "mqtt://127.0.0.1:1", "mqtt://127.9.9.9", "mqtt://[::1]:5"] {
        assert!(broker(here).unwrap().is_loopback(), "{here}");
    }
    for there in ["mqtt://localhost.example", "mqtt://10.0.0.1", "mqtt://[2001:db8::1]"] {
        assert!(!broker(there).unwrap().is_loopback(), "{there}");
    }
}

#[test]
fn names_that_would_change_the_topic_are_refused() {
    for good in ["north", "ct-2", "Größe", "a.b_c"] {
        assert_eq!(good.parse::<TopicLevel>().unwrap().as_str(), good);
    }
    for bad in ["", "a/b", "+", "#", "a b", "a\n", "\0", &"x".repeat(65)] {
        assert!(bad.parse::<TopicLevel>().unwrap_err().is_bad_input(), "{bad:?}");
    }
}

/// A local port on which nothing listens.
fn closed() -> Broker {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    broker(&format!("mqtt://{}", listener.local_addr().unwrap())).unwrap()
}

const HASTE: Patience = Patience {
    attempts: 2,
    connect: Duration::from_secs(1),
    acknowledge: Duration::from_millis(200),
    pause: Duration::from_millis(1),
};

fn run(broker: &Broker, payload: Vec<u8>) -> Result<(), PublishError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let messages = [Message { topic: "scanside/v1/s/d/result/t".into(), payload }];
    runtime.block_on(publish(broker, "scanside-test", &messages, &HASTE))
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
    let silent = broker(&format!("mqtt://{}", listener.local_addr().unwrap())).unwrap();
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
fn topics_follow_the_kind_and_uids_stay_on_this_machine() {
    let (site, device) = ("north".parse().unwrap(), "ct-2".parse().unwrap());
    let mut result = crate::result::tests::sample();
    let mut message = |kind, url| {
        result.kind = kind;
        Message::result(&result, &site, &device, &broker(url).unwrap())
    };
    let here = message(Kind::Final, "mqtt://127.0.0.1:1883");
    assert_eq!(here.topic, "scanside/v1/north/ct-2/result/lesion");
    assert!(String::from_utf8(here.payload).unwrap().contains("1.2.3.4"));
    let there = message(Kind::Refused, "mqtt://broker.example:1883");
    assert_eq!(there.topic, "scanside/v1/north/ct-2/refused/lesion");
    assert!(!String::from_utf8(there.payload).unwrap().contains("1.2.3.4"));
    assert_eq!(message(Kind::Shadow, "mqtt://a").topic, "scanside/v1/north/ct-2/shadow/lesion");
    assert_eq!(message(Kind::Preliminary, "mqtt://a").topic, "scanside/v1/north/ct-2/preliminary/lesion");
}

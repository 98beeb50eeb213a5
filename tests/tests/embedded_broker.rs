//! The demo's broker.
#![allow(missing_docs, reason = "a test")]

use std::time::Duration;

use runtime::publish::{Endpoint, Message, Patience, publish};
use tests::broker::Broker;
use tests::subscriber::Subscriber;

#[test]
fn messages_of_the_largest_size_pass_in_order() {
    let broker = Broker::start().unwrap();
    let subscriber = Subscriber::new(broker.port, "scanside/#").unwrap();
    let message =
        |i: u8| Message { topic: format!("scanside/{i}"), payload: vec![i; runtime::publish::MAX_PAYLOAD] };
    let messages: Vec<Message> = (0..20).map(message).collect();
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = broker.url().parse().unwrap();
    executor
        .block_on(publish(&Endpoint::open(url).unwrap(), "scanside-test", &messages, &Patience::default()))
        .unwrap();
    for expected in &messages {
        let found = subscriber.next(Duration::from_secs(20)).unwrap();
        assert_eq!((&found.topic, &found.payload), (&expected.topic, &expected.payload));
    }
}

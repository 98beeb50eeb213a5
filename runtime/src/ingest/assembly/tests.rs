use proptest::prelude::*;

use super::*;

const POLICY: Policy =
    Policy { association_end: true, expected_count: true, idle_ms: Some(5_000), max_age_ms: 60_000 };

fn instance(series: &str, association: u64, expected: Option<u32>, at: i64) -> Event {
    Event::Instance { series_uid: series.into(), association, expected, new: true, at }
}

fn again(series: &str, association: u64, at: i64) -> Event {
    Event::Instance { series_uid: series.into(), association, expected: None, new: false, at }
}

fn ended(association: u64, released: bool, at: i64) -> Event {
    Event::AssociationEnded { association, released, at }
}

fn complete(series: &str, completion: Completion) -> Vec<Complete> {
    vec![Complete { series_uid: series.into(), completion }]
}

#[test]
fn two_series_on_one_association_are_two() {
    let mut assembly = Assembly::new(POLICY);
    for (n, series) in ["a", "b", "a", "b"].into_iter().enumerate() {
        assert_eq!(assembly.on(instance(series, 7, None, n as i64)), []);
    }
    let both =
        [complete("a", Completion::AssociationEnd), complete("b", Completion::AssociationEnd)].concat();
    assert_eq!(assembly.on(ended(7, true, 9)), both);
    assert_eq!((assembly.open(), assembly.next_deadline()), (0, None));
}

#[test]
fn a_series_waits_for_each_of_its_associations() {
    let mut assembly = Assembly::new(POLICY);
    assert_eq!(assembly.on(instance("a", 1, None, 0)), []);
    assert_eq!(assembly.on(instance("a", 2, None, 0)), []);
    assert_eq!(assembly.on(ended(3, true, 1)), [], "it sent nothing");
    assert_eq!(assembly.on(ended(1, true, 1)), []);
    assert_eq!(assembly.on(ended(2, true, 2)), complete("a", Completion::AssociationEnd));
}

#[test]
fn a_broken_association_completes_nothing_but_its_repetition_does() {
    let mut assembly = Assembly::new(POLICY);
    assert_eq!(assembly.on(instance("a", 1, None, 0)), []);
    assert_eq!(assembly.on(ended(1, false, 100)), []);
    // The sender tries again from the start.
    assert_eq!(assembly.on(again("a", 2, 4_000)), []);
    assert_eq!(assembly.on(instance("a", 2, None, 5_500)), []);
    assert_eq!(assembly.on(ended(2, true, 5_600)), complete("a", Completion::AssociationEnd));
    // Had it not, time would have.
    assert_eq!(assembly.on(instance("b", 3, None, 6_000)), []);
    assert_eq!(assembly.on(ended(3, false, 6_000)), []);
    assert_eq!(assembly.next_deadline(), Some(11_000));
    assert_eq!(assembly.tick(10_999), []);
    assert_eq!(assembly.tick(11_000), complete("b", Completion::Idle));
}

#[test]
fn the_expected_count_completes_across_revisions_and_forbids_the_association_s_end() {
    let mut assembly = Assembly::new(POLICY);
    assert_eq!(assembly.on(instance("a", 1, Some(4), 0)), []);
    assert_eq!(assembly.on(instance("a", 1, Some(3), 0)), [], "the greatest number holds");
    assert_eq!(assembly.on(ended(1, true, 1)), [], "two are lacking");
    assert_eq!(assembly.tick(5_000), complete("a", Completion::Idle));
    assert_eq!(assembly.on(again("a", 2, 6_000)), [], "nothing new opens no revision");
    assert_eq!(assembly.open(), 0);
    assert_eq!(assembly.on(instance("a", 2, Some(4), 7_000)), []);
    assert_eq!(assembly.on(again("a", 2, 7_000)), [], "stored once, counted once");
    assert_eq!(assembly.on(instance("a", 2, Some(4), 7_001)), complete("a", Completion::ExpectedCount));
    // A fifth: the number was wrong, so it completes nothing any more.
    assert_eq!(assembly.on(instance("a", 2, Some(4), 7_002)), []);
    assert_eq!(assembly.on(ended(2, true, 7_003)), complete("a", Completion::AssociationEnd));
}

#[test]
fn age_ends_a_series_that_never_falls_silent() {
    let mut assembly = Assembly::new(POLICY);
    let mut at = 0;
    while at < POLICY.max_age_ms {
        assert_eq!(assembly.on(instance("a", 1, None, at)), [], "{at}");
        at += 4_000;
    }
    assert_eq!(assembly.on(instance("a", 1, None, at)), complete("a", Completion::MaxAge));
}

#[test]
fn clocks_that_jump_complete_nothing_at_once_and_block_nothing() {
    const HOUR: i64 = 3_600_000;
    let policy = Policy { idle_ms: Some(60_000), max_age_ms: 10 * HOUR, ..POLICY };
    for jump in [-1_000 * HOUR, 1_000 * HOUR, i64::MIN / 4, i64::MAX / 4] {
        let mut assembly = Assembly::new(policy.clone());
        for n in 0..100 {
            assert_eq!(assembly.on(instance(&n.to_string(), n, None, 0)), []);
        }
        assert_eq!(assembly.tick(jump), [], "all of them are seconds old");
        let mut at = jump;
        let mut done = 0;
        for _ in 0..8 {
            at = assembly.next_deadline().unwrap_or(at);
            done += assembly.tick(at).len();
        }
        assert_eq!(done, 100, "after {} ms", at - jump);
        assert!((50_000..=60_000).contains(&(at - jump)), "{}", at - jump);
    }
    // No arithmetic overflows at the ends.
    let mut assembly = Assembly::new(policy);
    for at in [i64::MIN, i64::MAX, 0, i64::MIN, i64::MAX] {
        assert_eq!(assembly.on(instance("a", 1, None, at)), []);
        assert!(assembly.next_deadline().is_some());
    }
}

#[test]
fn events_a_little_out_of_order_do_not_speed_the_clock() {
    let mut assembly = Assembly::new(Policy { max_age_ms: 100_000, ..POLICY });
    for n in 0..10_000 {
        assert_eq!(assembly.on(instance("a", 1, None, n)), []);
        assert_eq!(assembly.on(instance("a", 1, None, n - 20)), []);
    }
    assert_eq!(assembly.tick(9_999 + 4_999), []);
    assert_eq!(assembly.tick(9_999 + 5_000), complete("a", Completion::Idle));
}

#[test]
fn what_was_pending_at_a_restart_completes() {
    let pending = |uid: &str, instances, expected| Pending { series_uid: uid.into(), instances, expected };
    let all = [pending("all", 4, Some(4)), pending("few", 3, Some(4)), pending("unknown", 9, None)];
    let mut assembly = Assembly::restore(POLICY, all, 1_000_000);
    assert_eq!(assembly.next_deadline(), Some(1_000_000));
    assert_eq!(assembly.tick(1_000_000), complete("all", Completion::ExpectedCount));
    assert_eq!(assembly.on(instance("few", 1, None, 1_000_001)), complete("few", Completion::ExpectedCount));
    assert_eq!(assembly.tick(1_004_999), []);
    assert_eq!(assembly.tick(1_005_000), complete("unknown", Completion::Idle));
}

#[test]
fn memory_of_completed_series_is_bounded() {
    let mut assembly = Assembly::new(POLICY);
    for n in 0..3 * REMEMBERED {
        assert_eq!(assembly.on(instance(&n.to_string(), 1, Some(1), 0)).len(), 1);
    }
    assert_eq!(assembly.closed.len(), REMEMBERED);
}

#[derive(Debug, Clone)]
enum Step {
    Instance { series: usize, association: u64, expected: Option<u32>, new: bool },
    Ended { association: u64, released: bool },
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    let expected = prop_oneof![3 => Just(None), 2 => (1..8u32).prop_map(Some)];
    prop_oneof![
        6 => (0..3usize, 0..3u64, expected, prop::bool::weighted(0.8))
            .prop_map(|(series, association, expected, new)| Step::Instance { series, association, expected, new }),
        2 => (0..3u64, any::<bool>()).prop_map(|(association, released)| Step::Ended { association, released }),
        2 => Just(Step::Tick),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    let idle = prop_oneof![Just(None), (1..4_000i64).prop_map(Some)];
    (any::<bool>(), any::<bool>(), idle, 1..12_000i64).prop_map(
        |(association_end, expected_count, idle_ms, max_age_ms)| Policy {
            association_end,
            expected_count,
            idle_ms,
            max_age_ms,
        },
    )
}

/// The rules once more, from the whole history of one series: `(time, step)` of all steps so far that concern it,
/// those of completed revisions first. Returns why it is complete now, if it is.
fn by_definition(policy: &Policy, done: &[Step], open: &[(i64, Step)], now: i64) -> Option<Completion> {
    let opened = open.iter().position(|(_, step)| matches!(step, Step::Instance { new: true, .. }))?;
    let open = &open[opened..];
    let said = |step: &Step| match step {
        Step::Instance { expected, .. } => *expected,
        _ => None,
    };
    let is_new = |step: &&Step| matches!(step, Step::Instance { new: true, .. });
    let steps = || done.iter().chain(open.iter().map(|(_, step)| step));
    let count = steps().filter(is_new).count() as u32;
    let expected = steps().filter_map(said).max();
    let (_, last) = open.last()?;
    if policy.expected_count && expected == Some(count) && is_new(&last) {
        return Some(Completion::ExpectedCount);
    }
    if let Step::Ended { association, released: true } = last
        && policy.association_end
        && !(policy.expected_count && expected.is_some_and(|n| count < n))
    {
        let sends =
            |step: &Step, a: u64| matches!(step, Step::Instance { association, .. } if *association == a);
        let ends = |step: &Step, a: u64| matches!(step, Step::Ended { association, .. } if *association == a);
        let over = |a: u64, steps: &[(i64, Step)]| {
            let sent = steps.iter().rposition(|(_, step)| sends(step, a));
            sent.is_none_or(|n| steps[n..].iter().any(|(_, step)| ends(step, a)))
        };
        // It had sent something and not ended before.
        if !over(*association, &open[..open.len() - 1]) && (0..3).all(|a| over(a, open)) {
            return Some(Completion::AssociationEnd);
        }
    }
    let arrivals = open.iter().filter(|(_, step)| matches!(step, Step::Instance { .. }));
    let silent_since = arrivals.map(|(at, _)| *at).max()?;
    let idle = policy.idle_ms.map(|idle| silent_since + idle).filter(|at| *at <= now);
    let aged = Some(open[0].0 + policy.max_age_ms).filter(|at| *at <= now);
    match (idle, aged) {
        (Some(idle), Some(aged)) if aged < idle => Some(Completion::MaxAge),
        (Some(_), _) => Some(Completion::Idle),
        (None, Some(_)) => Some(Completion::MaxAge),
        (None, None) => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the order: at every call exactly those series are complete that the definition says, so none is late,
    /// none early, and every new instance is part of one completion.
    #[test]
    fn any_interleaving_completes_as_defined(
        policy in policy(),
        steps in prop::collection::vec((step(), 0..3_000i64), 1..80),
    ) {
        let mut assembly = Assembly::new(policy.clone());
        let mut done: [Vec<Step>; 3] = Default::default();
        let mut open: [Vec<(i64, Step)>; 3] = Default::default();
        let mut at = 1_000_000;
        let mut new = 0;
        let mut covered = 0;
        let ticks = (0..30).map(|_| (Step::Tick, 3_000));
        for (step, wait) in steps.into_iter().chain(ticks) {
            at += wait;
            let answer = match &step {
                Step::Instance { series, association, expected, new, .. } => {
                    let series_uid = series.to_string();
                    let (association, expected, new) = (*association, *expected, *new);
                    assembly.on(Event::Instance { series_uid, association, expected, new, at })
                }
                Step::Ended { association, released } => {
                    assembly.on(Event::AssociationEnded { association: *association, released: *released, at })
                }
                Step::Tick => assembly.tick(at),
            };
            let mut expected = Vec::new();
            for series in 0..3 {
                match step {
                    // Nothing new where nothing is open: no revision, no trace.
                    Step::Instance { series: s, new: is_new, .. }
                        if s == series && (is_new || !open[series].is_empty()) =>
                    {
                        new += usize::from(is_new);
                        open[series].push((at, step.clone()));
                    }
                    Step::Ended { .. } if !open[series].is_empty() => open[series].push((at, step.clone())),
                    _ if !open[series].is_empty() => open[series].push((at, Step::Tick)),
                    _ => {}
                }
                if let Some(completion) = by_definition(&policy, &done[series], &open[series], at) {
                    expected.push(Complete { series_uid: series.to_string(), completion });
                    let revision = std::mem::take(&mut open[series]);
                    let is_new = |step: &Step| matches!(step, Step::Instance { new: true, .. });
                    covered += revision.iter().filter(|(_, step)| is_new(step)).count();
                    done[series].extend(revision.into_iter().map(|(_, step)| step));
                }
            }
            let mut sorted = answer.clone();
            sorted.sort_by(|a, b| a.series_uid.cmp(&b.series_uid));
            prop_assert_eq!(sorted, expected);
            prop_assert_eq!(assembly.open(), open.iter().filter(|steps| !steps.is_empty()).count());
            prop_assert!(assembly.next_deadline().is_none_or(|deadline| deadline > at));
        }
        prop_assert_eq!(covered, new);
        prop_assert_eq!(assembly.open(), 0);
    }

    /// A restart in the middle loses no series and completes none without a cause.
    #[test]
    fn a_restart_anywhere_loses_nothing(counts in prop::collection::vec((1..9u32, prop::option::of(1..9u32)), 0..9)) {
        let pending: Vec<Pending> = counts.iter().enumerate()
            .map(|(n, &(instances, expected))| Pending { series_uid: n.to_string(), instances, expected })
            .collect();
        let mut assembly = Assembly::restore(POLICY, pending, 77);
        let at_once = assembly.tick(77).len();
        prop_assert_eq!(at_once, counts.iter().filter(|(n, expected)| *expected == Some(*n)).count());
        prop_assert_eq!(assembly.tick(77 + 4_999), []);
        prop_assert_eq!(assembly.tick(77 + 5_000).len(), counts.len() - at_once);
    }
}

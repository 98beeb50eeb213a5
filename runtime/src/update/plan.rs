//! What is to be done so that a device runs what is wanted: pure.

use std::collections::BTreeMap;

use firmware_config::{Desired, Shadow, TargetRef, Wanted};

/// What stands in a task's slots, as far as the plan asks: digests of plugin files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// What classifies.
    pub active: Option<String>,
    /// What waits.
    pub candidate: Option<String>,
    /// What a rollback brings back.
    pub previous: Option<String>,
    /// The rule that the candidate runs in the shadow by, if it does.
    pub shadow: Option<Shadow>,
    /// What could not go live, at this revision of the desired state or by the verdict of its golden cases.
    pub failed: Option<String>,
}

/// One step towards what is wanted.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Fetch the plugin and put it into the candidate slot.
    Install(TargetRef),
    /// Let the candidate run its golden cases, and go live.
    Activate,
    /// Let the candidate run beside the active plugin.
    Shadow(Shadow),
    /// Bring the previous plugin back, which is the one that is wanted.
    Rollback,
    /// Let nothing run: the task is not wanted any more.
    TakeDown,
}

/// The next step of each task that is not as it should be, by task. After it was done, or has failed, it is asked again.
pub fn plan(desired: &Desired, slots: &BTreeMap<String, Standing>) -> BTreeMap<String, Action> {
    let nothing = Standing::default();
    let wanted = desired.tasks.iter().filter_map(|(task, wanted)| {
        let standing = slots.get(task).unwrap_or(&nothing);
        Some((task.clone(), next(wanted, standing)?))
    });
    let unwanted = slots
        .iter()
        .filter(|(task, standing)| standing.active.is_some() && !desired.tasks.contains_key(*task));
    wanted.chain(unwanted.map(|(task, _)| (task.clone(), Action::TakeDown))).collect()
}

fn next(wanted: &Wanted, standing: &Standing) -> Option<Action> {
    let target = &wanted.target;
    let is = |slot: &Option<String>| slot.as_ref() == Some(&target.sha256);
    if is(&standing.active) || is(&standing.failed) {
        return None;
    }
    // A plugin that has proved itself here needs neither the network nor another proof.
    if is(&standing.previous) && wanted.shadow.is_none() {
        return Some(Action::Rollback);
    }
    if !is(&standing.candidate) {
        return Some(Action::Install(target.clone()));
    }
    match &wanted.shadow {
        // Where nothing is active there is nothing to run beside.
        Some(shadow) if standing.active.is_some() => {
            (standing.shadow.as_ref() != Some(shadow)).then(|| Action::Shadow(shadow.clone()))
        }
        _ => Some(Action::Activate),
    }
}

#[cfg(test)]
mod tests {
    use firmware_config::{DESIRED_SCHEMA, Promote};
    use proptest::prelude::*;

    use super::*;

    fn wanted(digest: u8, shadow: Option<Shadow>) -> Wanted {
        Wanted {
            target: TargetRef { name: format!("north/{digest}"), length: 1, sha256: digest.to_string() },
            shadow,
        }
    }

    fn desired(tasks: impl IntoIterator<Item = (String, Wanted)>) -> Desired {
        Desired {
            schema: DESIRED_SCHEMA.into(),
            site: "north".parse().unwrap(),
            device: "ct-2".parse().unwrap(),
            revision: 1,
            expires: "2030-01-01T00:00:00Z".parse().unwrap(),
            tasks: tasks.into_iter().collect(),
        }
    }

    fn shadow(results: u32) -> Shadow {
        Shadow { results, promote: Promote::Rule, min_agreement: 0.9, max_difference: 0.1 }
    }

    /// What a step comes to where everything goes well; a golden case may fail.
    fn act(action: &Action, standing: &mut Standing, passes: bool) {
        match action {
            Action::Install(target) => {
                standing.candidate = Some(target.sha256.clone());
                standing.shadow = None;
            }
            Action::Activate if passes => {
                standing.previous = standing.active.take();
                standing.active = standing.candidate.take();
            }
            Action::Activate => standing.failed = standing.candidate.take(),
            Action::Shadow(shadow) => standing.shadow = Some(shadow.clone()),
            Action::Rollback => std::mem::swap(&mut standing.active, &mut standing.previous),
            Action::TakeDown => standing.previous = standing.active.take(),
        }
    }

    fn slot() -> impl Strategy<Value = Option<String>> {
        proptest::option::of((0u8..4).prop_map(|digest| digest.to_string()))
    }

    fn standing() -> impl Strategy<Value = Standing> {
        let rule = proptest::option::of((1u32..3).prop_map(shadow));
        (slot(), slot(), slot(), rule, slot()).prop_map(|(active, candidate, previous, shadow, failed)| {
            Standing { active, candidate, previous, shadow, failed }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]
        /// From whatever a device is in, a few steps lead to what is wanted, and then there is nothing left to do.
        #[test]
        fn every_device_comes_to_rest(
            slots in proptest::collection::btree_map("[abc]", standing(), 0..3),
            tasks in proptest::collection::btree_map("[abc]", (0u8..4, proptest::option::of((1u32..3).prop_map(shadow))), 0..3),
            passes in any::<bool>(),
        ) {
            let desired = desired(tasks.into_iter().map(|(task, (digest, shadow))| (task, wanted(digest, shadow))));
            let (mut now, mut steps) = (slots.clone(), 0);
            loop {
                let plan = plan(&desired, &now);
                if plan.is_empty() {
                    break;
                }
                steps += 1;
                prop_assert!(steps <= 4, "{now:?}");
                for (task, action) in plan {
                    act(&action, now.entry(task).or_default(), passes);
                }
            }
            for (task, standing) in &now {
                let Some(wanted) = desired.tasks.get(task) else {
                    prop_assert_eq!(&standing.active, &None);
                    continue;
                };
                let digest = Some(wanted.target.sha256.clone());
                let waits = wanted.shadow.is_some() && standing.shadow == wanted.shadow && standing.candidate == digest;
                prop_assert!(standing.active == digest || standing.failed == digest || waits, "{standing:?}");
                if standing.failed == digest && standing.active != digest {
                    let before = slots.get(task).and_then(|standing| standing.active.clone());
                    prop_assert_eq!(&standing.active, &before, "what was active still is");
                }
            }
        }
    }

    #[test]
    fn what_was_there_before_comes_back_without_the_network() {
        let standing =
            Standing { active: Some("2".into()), previous: Some("1".into()), ..Standing::default() };
        let slots = [("a".to_owned(), standing)].into();
        assert_eq!(plan(&desired([("a".to_owned(), wanted(1, None))]), &slots)["a"], Action::Rollback);
    }
}

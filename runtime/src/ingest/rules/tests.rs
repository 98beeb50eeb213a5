use firmware_config::Observed;
use proptest::prelude::*;

use super::*;

fn rules(text: &str) -> Rules {
    let rules: Rules = serde_json::from_str(text).unwrap();
    rules.validate("rules").unwrap();
    rules
}

fn head() -> ObservedSeries {
    ObservedSeries {
        study_uid: Some("1.2".into()),
        series_uid: "1.2.3".into(),
        modality: vec!["CT".into()],
        body_part: vec!["HEAD".into()],
        description: vec!["Head 5.0 H31s, Jane Doe".into()],
        kernel: vec!["H31s".into()],
        image_type: vec!["AXIAL".into(), "ORIGINAL".into(), "PRIMARY".into()],
        contrast: false,
        plane: vec![Plane::Axial],
        slice_thickness_mm: Some([5.0, 5.0]),
        slice_spacing_mm: Some(4.5),
        slices: 30,
    }
}

fn anything() -> Accepts {
    Accepts::default()
}

#[test]
fn a_plugin_that_does_not_say_what_it_accepts_gets_nothing() {
    let decision = decide("t", None, None, &head());
    assert!(!decision.accepted);
    assert!(decision.refusals()[0].starts_with("accepts asks for a plugin whose signed manifest"));
    assert!(decide("t", Some(&anything()), None, &head()).accepted);
}

#[test]
fn each_rule_passes_and_refuses_by_itself() {
    for (pass, refuse, rule) in [
        (r#"{"modality": ["MR", "ct"]}"#, r#"{"modality": ["MR"]}"#, "rules.modality"),
        (r#"{"body_part": ["Head"]}"#, r#"{"body_part": ["CHEST"]}"#, "rules.body_part"),
        (r#"{"description": ["*h31*"]}"#, r#"{"description": ["bone", "lung*"]}"#, "rules.description"),
        (
            r#"{"exclude_description": ["scout"]}"#,
            r#"{"exclude_description": ["h31"]}"#,
            "rules.exclude_description",
        ),
        (r#"{"plane": ["axial"]}"#, r#"{"plane": ["sagittal", "coronal"]}"#, "rules.plane"),
        (
            r#"{"slice_thickness_mm": [5, 6]}"#,
            r#"{"slice_thickness_mm": [5.1, 6]}"#,
            "rules.slice_thickness_mm",
        ),
        (r#"{"slice_spacing_mm": [4, 4.5]}"#, r#"{"slice_spacing_mm": [1, 4.4]}"#, "rules.slice_spacing_mm"),
        (r#"{"kernel": ["H3?s"]}"#, r#"{"kernel": ["H3?"]}"#, "rules.kernel"),
        (r#"{"exclude_kernel": ["H6*"]}"#, r#"{"exclude_kernel": ["H*"]}"#, "rules.exclude_kernel"),
        (r#"{"contrast": false}"#, r#"{"contrast": true}"#, "rules.contrast"),
        (r#"{"min_slices": 30}"#, r#"{"min_slices": 31}"#, "rules.min_slices"),
        (r#"{"max_slices": 30}"#, r#"{"max_slices": 29}"#, "rules.max_slices"),
        (
            r#"{"exclude_image_type": ["DERIVED"]}"#,
            r#"{"exclude_image_type": ["primary"]}"#,
            "rules.exclude_image_type",
        ),
    ] {
        let passed = decide("t", Some(&anything()), Some(&rules(pass)), &head());
        assert!(passed.accepted, "{pass}: {:?}", passed.reasons);
        assert!(passed.reasons.iter().any(|reason| reason.rule == rule && reason.passed), "{pass}");
        let refused = decide("t", Some(&anything()), Some(&rules(refuse)), &head());
        let failed: Vec<&str> =
            refused.reasons.iter().filter(|r| !r.passed).map(|r| r.rule.as_str()).collect();
        assert_eq!((refused.accepted, &failed[..]), (false, &[rule][..]), "{refuse}");
        assert!(!refused.refusals()[0].contains("Doe"), "{:?}", refused.refusals());
    }
}

#[test]
fn what_the_device_asks_for_must_be_said_and_what_it_excludes_must_be_found() {
    let silent = ObservedSeries { series_uid: "1".into(), slices: 3, ..ObservedSeries::default() };
    for asks in [
        r#"{"modality": ["CT"]}"#,
        r#"{"description": ["*"]}"#,
        r#"{"plane": ["axial"]}"#,
        r#"{"slice_thickness_mm": [0, 9]}"#,
        r#"{"slice_spacing_mm": [0, 9]}"#,
        r#"{"kernel": ["*"]}"#,
    ] {
        assert!(!decide("t", Some(&anything()), Some(&rules(asks)), &silent).accepted, "{asks}");
    }
    let excludes =
        r#"{"exclude_description": ["*"], "exclude_kernel": ["*"], "exclude_image_type": ["DERIVED"]}"#;
    assert!(decide("t", Some(&anything()), Some(&rules(excludes)), &silent).accepted);
}

#[test]
fn a_localizer_is_nobody_s_unless_asked_for() {
    let mut scout = head();
    scout.image_type.push("LOCALIZER".into());
    scout.plane = vec![Plane::Axial, Plane::Sagittal];
    let refused = decide("t", Some(&anything()), None, &scout);
    assert_eq!(refused.refusals().len(), 1);
    assert!(decide("t", Some(&anything()), Some(&rules(r#"{"exclude_image_type": []}"#)), &scout).accepted);
    let axial = Accepts { plane: vec![Plane::Axial], ..anything() };
    assert_eq!(
        decide("t", Some(&axial), None, &scout).refusals().len(),
        2,
        "one of its planes is not accepted"
    );
}

fn knee(uid: &str, plane: Plane, slices: usize) -> ObservedSeries {
    ObservedSeries {
        series_uid: uid.into(),
        plane: vec![plane],
        slices,
        modality: vec!["MR".into()],
        ..head()
    }
}

#[test]
fn a_task_of_several_views_waits_for_each() {
    let views = rules(
        r#"{"modality": ["MR"], "views": {"any": {}, "axial": {"plane": ["axial"]}, "sagittal": {"plane": ["sagittal"]}}}"#,
    );
    let study = [
        knee("1", Plane::Sagittal, 30),
        knee("2", Plane::Coronal, 9),
        ObservedSeries { modality: vec!["CT".into()], ..knee("3", Plane::Axial, 50) },
        ObservedSeries { study_uid: Some("9".into()), ..knee("4", Plane::Axial, 50) },
    ];
    let waiting = decide_study("knee", Some(&anything()), &views, &study);
    assert_eq!(waiting.missing, ["axial"]);
    assert!(!waiting.ready());
    assert!(!waiting.decisions["3"].accepted, "the modality is the whole task's");
    let study = [&study[..], &[knee("5", Plane::Axial, 20)]].concat();
    let ready = decide_study("knee", Some(&anything()), &views, &study);
    assert!(ready.ready(), "{:?}", ready.missing);
    // `any` would have liked the largest, but the others need theirs.
    let names: Vec<(&str, &str)> =
        ready.views.iter().map(|(view, uid)| (view.as_str(), uid.as_str())).collect();
    assert_eq!(names, [("any", "2"), ("axial", "5"), ("sagittal", "1")]);
    assert!(!decide_study("knee", None, &views, &study).ready(), "the manifest bounds it all the same");
    assert!(!decide_study("knee", Some(&anything()), &views, &[]).ready());
    let one = decide("knee", Some(&anything()), Some(&views), &knee("6", Plane::Axial, 5));
    assert_eq!(one.fitting_views().collect::<Vec<_>>(), ["any", "axial"]);
}

fn some<T: Clone + std::fmt::Debug + 'static>(values: &'static [T]) -> impl Strategy<Value = Vec<T>> {
    prop::collection::vec(prop::sample::select(values), 0..3)
}

const MODALITIES: &[&str] = &["CT", "MR", "PT"];
const PLANES: &[Plane] = &[Plane::Axial, Plane::Coronal, Plane::Sagittal];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The manifest is judged as it is offline, rule by rule, and no device rule lets in what it refuses.
    #[test]
    fn devices_narrow_only(
        modality in some(MODALITIES), body_part in some(&["HEAD", "KNEE"]), plane in some(PLANES),
        spacing in prop::option::of((0..5u8, 0..5u8)), min_slices in prop::option::of(0..40usize),
        narrowed in some(MODALITIES), contrast in prop::option::of(any::<bool>()),
        scan in (prop::option::of(prop::sample::select(MODALITIES)), prop::sample::select(PLANES), 0..9u8, 0..50usize),
    ) {
        let text = |values: &[&str]| values.iter().copied().map(str::to_owned).collect::<Vec<_>>();
        let spacing = spacing.map(|(a, b)| [f64::from(a), f64::from(a + b)]);
        let accepts = Accepts {
            modality: text(&modality), body_part: text(&body_part), plane, slice_spacing_mm: spacing, min_slices,
        };
        let (modality, plane, mm, slices) = scan;
        let series = ObservedSeries {
            modality: modality.map(str::to_owned).into_iter().collect(),
            plane: vec![plane],
            slice_spacing_mm: Some(f64::from(mm)),
            slices,
            ..head()
        };
        let observed = Observed {
            modality: modality.map(str::to_owned),
            body_part: Some("HEAD".into()),
            plane,
            slice_spacing_mm: f64::from(mm),
            slices,
        };
        let by_manifest = decide("t", Some(&accepts), None, &series);
        prop_assert_eq!(by_manifest.refusals().len(), accepts.refusals(&observed).len());
        let device = Rules { modality: text(&narrowed), contrast, ..Rules::default() };
        let both = decide("t", Some(&accepts), Some(&device), &series);
        prop_assert!(by_manifest.accepted || !both.accepted);
        prop_assert_eq!(both.accepted, both.reasons.iter().all(|reason| reason.passed));
    }
}

fn image() -> Header {
    Header {
        sop_class: "1.2.840.10008.5.1.4.1.1.2".into(),
        sop_uid: "1.2.3.4".into(),
        study_uid: Some("1.2".into()),
        series_uid: Some("1.2.3".into()),
        transfer_syntax: "1.2.840.10008.1.2.1".into(),
        is_image: true,
        modality: Some("CT".into()),
        body_part: Some("HEAD".into()),
        series_description: Some("Head".into()),
        protocol_name: None,
        convolution_kernel: Some("H31s".into()),
        contrast_agent: false,
        slice_thickness: Some(5.0),
        image_type: vec!["ORIGINAL".into()],
        images_in_acquisition: None,
        number_of_frames: 1,
        orientation: Some([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        position: Some([0.0, 0.0, 7.0]),
    }
}

#[test]
fn an_image_alone_is_asked_only_what_it_can_say() {
    let accepts = Accepts { min_slices: Some(20), slice_spacing_mm: Some([1.0, 6.0]), ..anything() };
    let may = |text: &str, image: &Header| may_accept(Some(&accepts), Some(&rules(text)), image);
    // How many there are and how far apart they lie is known at the end.
    assert!(may(r#"{"min_slices":30,"max_slices":90,"slice_spacing_mm":[1,6]}"#, &image()));
    assert!(may(r#"{"modality":["CT"],"plane":["axial"],"slice_thickness_mm":[4,6]}"#, &image()));
    for text in [
        r#"{"modality":["MR"]}"#,
        r#"{"plane":["sagittal"]}"#,
        r#"{"slice_thickness_mm":[1,2]}"#,
        r#"{"exclude_description":["head*"]}"#,
        r#"{"contrast":true}"#,
    ] {
        assert!(!may(text, &image()), "{text}");
    }
    assert!(!may("{}", &Header { image_type: vec!["LOCALIZER".into()], ..image() }));
    assert!(!may("{}", &Header { is_image: false, ..image() }));
    assert!(!may_accept(None, None, &image()), "a manifest that does not say what it accepts");
}

use std::time::Duration;

use super::*;

pub(crate) fn sample() -> TaskResult {
    let hash = |c: &str| c.repeat(64);
    let mut provenance = Provenance {
        backbone_sha256: hash("a"),
        plugin_sha256: hash("b"),
        graph_sha256: hash("c"),
        recipe_sha256: hash("d"),
        tensor_sha256: hash("e"),
        engine: EngineInfo {
            isa: "x86_64+avx2+fma".into(),
            kernels: "tract".into(),
            precision: crate::engine::Precision::F32,
            mode: crate::engine::Mode::Merged,
            threads: 2,
        },
        build: "scanside 1.2.3".into(),
        target: None,
        digest: String::new(),
    };
    provenance.digest = provenance.compute_digest();
    TaskResult {
        schema: SCHEMA.into(),
        result_id: result_id("ct-2", "lesion", &provenance.plugin_sha256, &hash("f"), Kind::Final, 0),
        kind: Kind::Final,
        is_final: true,
        revision: 0,
        replaces: None,
        created: rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(951_786_123_045)),
        intended_use: INTENDED_USE.into(),
        trust: Trust::Unsigned,
        device: "ct-2".into(),
        task: Task { name: "lesion".into(), version: "1.0.0".into() },
        input: Input {
            kind: SourceKind::Dicom,
            study_uid: Some("1.2.3".into()),
            series_uid: Some("1.2.3.4".into()),
            instances: 2,
            digest: hash("f"),
            completion: Completion::Given,
            views: BTreeMap::new(),
        },
        labels: vec![
            LabelResult {
                name: "lesion".into(),
                logit: 1.5,
                probability: 0.75,
                threshold: Some(0.5),
                positive: Some(true),
            },
            LabelResult {
                name: "other".into(),
                logit: -0.1,
                probability: 0.25,
                threshold: None,
                positive: None,
            },
        ],
        view_weights: BTreeMap::new(),
        key_slices: vec![
            KeySlice {
                view: None,
                index: 1,
                sop_instance_uid: Some("1.2.3.4.5".into()),
                frame_number: Some(7),
                weight: 0.75,
            },
            KeySlice { view: None, index: 0, sop_instance_uid: None, frame_number: None, weight: 0.25 },
        ],
        timings_ms: BTreeMap::from([("read".into(), 1.5), ("encode".into(), 20.0)]),
        provenance,
        warnings: vec!["one".into()],
    }
}

/// The wire format: a change here is a change for everybody who reads results.
const JSON: &str = concat!(
    r#"{"schema":"scanside.result/1","result_id":"RESULT_ID","kind":"final","final":true,"revision":0,"#,
    r#""replaces":null,"created":"2000-02-29T01:02:03.045Z","intended_use":"research","trust":"unsigned","#,
    r#""device":"ct-2","task":{"name":"lesion","version":"1.0.0"},"input":{"kind":"dicom","study_uid":"1.2.3","#,
    r#""series_uid":"1.2.3.4","instances":2,"#,
    r#""digest":"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff","completion":"given"},"#,
    r#""labels":[{"name":"lesion","logit":1.5,"probability":0.75,"threshold":0.5,"positive":true},"#,
    r#"{"name":"other","logit":-0.1,"probability":0.25,"threshold":null,"positive":null}],"#,
    r#""key_slices":[{"index":1,"sop_instance_uid":"1.2.3.4.5","frame_number":7,"weight":0.75},"#,
    r#"{"index":0,"sop_instance_uid":null,"weight":0.25}],"timings_ms":{"encode":20.0,"read":1.5},"#,
    r#""provenance":{"#,
    r#""backbone_sha256":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","#,
    r#""plugin_sha256":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","#,
    r#""graph_sha256":"cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc","#,
    r#""recipe_sha256":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","#,
    r#""tensor_sha256":"eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee","#,
    r#""engine":{"isa":"x86_64+avx2+fma","kernels":"tract","precision":"f32","mode":"merged","threads":2},"#,
    r#""build":"scanside 1.2.3","digest":"DIGEST"},"warnings":["one"]}"#,
);

#[test]
fn the_json_is_the_contracts() {
    let result = sample();
    let expected = JSON.replace("RESULT_ID", RESULT_ID).replace("DIGEST", DIGEST);
    assert_eq!(result.to_json(), expected);
    assert_eq!(serde_json::from_str::<TaskResult>(&expected).unwrap(), result);
}

// Computed with sha256sum over the lines that the documentation of each names.
const RESULT_ID: &str = "4321d43829afdccd8cfd8b63a8bf5acf6985732d144686ace7fe22d48038fb90";
const DIGEST: &str = "ea483e4d93194d47955abd0e277b7881b05804e418f794e0213b5d9bd08356d6";

#[test]
fn the_identity_depends_on_each_of_its_parts() {
    let id = |d: &str, t: &str, p: &str, i: &str, k, r| result_id(d, t, p, i, k, r);
    let all = [
        id("a", "b", "c", "d", Kind::Final, 0),
        id("x", "b", "c", "d", Kind::Final, 0),
        id("a", "x", "c", "d", Kind::Final, 0),
        id("a", "b", "x", "d", Kind::Final, 0),
        id("a", "b", "c", "x", Kind::Final, 0),
        id("a", "b", "c", "d", Kind::Shadow, 0),
        id("a", "b", "c", "d", Kind::Final, 1),
    ];
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), all.len());
}

#[test]
fn uids_can_be_taken_out() {
    let bare = sample().without_uids();
    assert!(!bare.to_json().contains("1.2.3.4"), "{}", bare.to_json());
    assert_eq!(bare.result_id, sample().result_id);
    assert_eq!(bare.warnings.len(), 2);
    assert_eq!(bare.without_uids(), bare, "and only once is it told");

    let mut study = sample();
    let view = ViewInput { series_uid: Some("1.2.3.4.9".into()), instances: 1, digest: "0".repeat(64) };
    study.input.views = [("axial".into(), view)].into();
    assert!(study.to_json().contains(r#""views":{"axial":{"series_uid":"1.2.3.4.9","instances":1,"#));
    assert!(!study.without_uids().to_json().contains("1.2.3.4"));
}

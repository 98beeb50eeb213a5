//! What an attacker may serve, and that none of it is taken.
#![allow(missing_docs, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use firmware_config::{DESIRED_SCHEMA, Desired, TargetRef, TopicLevel, Wanted};
use runtime::gate::GateLimits;
use runtime::slots::Slots;
use runtime::update::{Attack, Downloads, Folder, Place, Source, TargetFile, Trust, UpdateError, Updates};
use tempfile::TempDir;
use tests::fixture::{Fixture, loader};
use tests::repository::{FAR, Key, Repository, desire, envelope};

/// 2026-11-26.
const NOW: i64 = 1_795_651_200;
const PAST: &str = "2026-11-25T00:00:00Z";

struct Bench {
    folder: TempDir,
    repository: Repository,
    trust: Trust,
}

impl Bench {
    /// A device that has seen the second release of a repository.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut repository = Repository::default();
        repository.files.insert("bowel-1.0.0.plugin".into(), vec![7; 5000]);
        let anchor = folder.path().join("root.json");
        fs::write(&anchor, repository.root_json()).unwrap();
        repository.release();
        repository.write(&folder.path().join("served"));
        let trust = Trust::open(&folder.path().join("device"), &anchor, &names()[0]).unwrap();
        let mut this = Self { folder, repository, trust };
        this.refresh().unwrap();
        this
    }

    fn served(&self) -> PathBuf {
        self.folder.path().join("served")
    }

    fn source(&self) -> Arc<dyn Source> {
        Arc::new(Folder(self.served()))
    }

    fn refresh(&mut self) -> Result<runtime::update::Repository, UpdateError> {
        let source = self.source();
        self.trust.refresh(&source, NOW)
    }

    fn kept(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("device/trust.json")).unwrap()
    }
}

fn names() -> [TopicLevel; 2] {
    ["north", "ct-2"].map(|name| name.parse().unwrap())
}

type Lie = fn(&mut Repository, &Path);

#[test]
fn lies_about_the_repository_are_refused_and_the_next_honest_release_is_taken() {
    let attacks: [(&str, Attack, Lie); 12] = [
        ("rollback of the timestamp", Attack::Rollback, |r, at| {
            r.versions[3] = 1;
            r.write(at);
        }),
        ("rollback of the snapshot", Attack::Rollback, |r, at| {
            r.release();
            r.versions[2] = 1;
            r.write(at);
        }),
        ("rollback of a site", Attack::Rollback, |r, at| {
            r.release();
            r.versions[4] = 1;
            r.write(at);
        }),
        ("freeze", Attack::Freeze, |r, at| {
            r.release();
            r.expires[3] = PAST.into();
            r.write(at);
        }),
        ("freeze of a site", Attack::Freeze, |r, at| {
            r.release();
            r.expires[4] = PAST.into();
            r.write(at);
        }),
        ("mix-and-match", Attack::MixAndMatch, |r, at| {
            r.release();
            r.write(at);
            fs::copy(at.join("metadata/2.targets.json"), at.join("metadata/3.targets.json")).unwrap();
        }),
        ("a site that is hidden", Attack::MixAndMatch, |r, at| {
            r.release();
            r.hide_site = true;
            r.write(at);
        }),
        ("fast-forward by another key", Attack::Signature, |r, at| {
            r.timestamp_key = Key::of(99);
            r.versions[3] = u64::MAX / 2;
            r.write(at);
        }),
        ("a site signed by another key", Attack::Signature, |r, at| {
            r.release();
            r.site_signer = Some(Key::of(99));
            r.write(at);
        }),
        ("a root with too few signatures", Attack::Signature, |r, at| {
            r.versions[0] = 2;
            r.root_signatures = 1;
            r.release();
            r.write(at);
        }),
        ("a root signed by others", Attack::Signature, |r, at| {
            r.versions[0] = 2;
            r.root = [Key::of(91), Key::of(92), Key::of(93)];
            r.release();
            r.write(at);
        }),
        ("no metadata at all", Attack::Malformed, |_, at| {
            fs::write(at.join("metadata/timestamp.json"), "<html>Sign in to the hotel's network</html>")
                .unwrap();
        }),
    ];
    for (name, attack, lie) in attacks {
        let mut bench = Bench::new();
        let (before, at) = (bench.kept(), bench.served());
        let honest = copy(&at, bench.folder.path());
        lie(&mut bench.repository, &at);
        let error = bench.refresh().map(|_| ()).expect_err(name);
        assert_eq!(error.attack(), Some(attack), "{name}: {error}");
        let said = error.to_string();
        assert!(error.is_bad_input() && !said.contains('\n'), "{name}: {said}");
        println!("{name}: {said}");
        assert_eq!(bench.kept(), before, "{name}: nothing of it is kept");

        fs::remove_dir_all(&at).unwrap();
        fs::rename(honest, &at).unwrap();
        let mut next =
            Repository { files: std::mem::take(&mut bench.repository.files), ..Repository::default() };
        next.versions = [1, 4, 4, 4, 4];
        next.write(&at);
        bench.refresh().unwrap_or_else(|error| panic!("{name}, afterwards: {error}"));
    }
}

fn copy(from: &Path, to: &Path) -> PathBuf {
    let to = to.join("honest");
    for part in ["metadata", "targets/north"] {
        fs::create_dir_all(to.join(part)).unwrap();
        for entry in fs::read_dir(from.join(part)).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), to.join(part).join(entry.file_name())).unwrap();
        }
    }
    to
}

#[test]
fn endless_metadata_is_cut_off() {
    let mut bench = Bench::new();
    bench.repository.release();
    bench.repository.padding = 2 << 20;
    bench.repository.write(&bench.served());
    let error = bench.refresh().map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("sends more than the 1048576 bytes that timestamp.json may have"), "{error}");
}

#[test]
fn a_revoked_key_signs_nothing_any_more_and_a_fast_forward_is_recovered_from() {
    let mut bench = Bench::new();
    // Whoever had the timestamp's key has counted it to the end, and the device believed that.
    bench.repository.versions[3] = u64::MAX / 2;
    bench.repository.write(&bench.served());
    bench.refresh().unwrap();
    // The operators replace the key in a new root, signed by two of three.
    let stolen = std::mem::replace(&mut bench.repository.timestamp_key, Key::of(60));
    bench.repository.versions = [2, 3, 3, 3, 3];
    bench.repository.write(&bench.served());
    assert_eq!(bench.refresh().unwrap().versions().timestamp, 3);
    // The stolen key is worth nothing now, in no release.
    let honest = std::mem::replace(&mut bench.repository.timestamp_key, stolen);
    let root = fs::read(bench.served().join("metadata/2.root.json")).unwrap();
    bench.repository.release();
    bench.repository.write(&bench.served());
    fs::write(bench.served().join("metadata/2.root.json"), root).unwrap();
    let error = bench.refresh().map(|_| ()).unwrap_err();
    assert_eq!(error.attack(), Some(Attack::Signature), "{error}");
    bench.repository.timestamp_key = honest;
    bench.repository.release();
    bench.repository.write(&bench.served());
    bench.refresh().unwrap();
}

#[test]
fn a_clock_that_starts_anew_in_the_past_does_not_bring_expired_metadata_back() {
    let mut bench = Bench::new();
    bench.repository.release();
    bench.repository.expires[3] = PAST.into();
    bench.repository.write(&bench.served());
    let source = bench.source();
    for clock in [0, NOW - 30 * 86_400] {
        let error = bench.trust.refresh(&source, clock).map(|_| ()).unwrap_err();
        assert_eq!(error.attack(), Some(Attack::Freeze), "{error}");
    }
    // After a restart as well.
    let (device, anchor) = (bench.folder.path().join("device"), bench.folder.path().join("root.json"));
    let mut again = Trust::open(&device, &anchor, &names()[0]).unwrap();
    assert_eq!(again.refresh(&source, 0).map(|_| ()).unwrap_err().attack(), Some(Attack::Freeze));
    // And a box without a clock takes what has not expired.
    bench.repository.release();
    bench.repository.expires[3] = FAR.into();
    bench.repository.write(&bench.served());
    again.refresh(&source, 0).unwrap();
}

#[test]
fn what_a_device_has_seen_is_not_forgotten_where_its_file_is_damaged() {
    let bench = Bench::new();
    let (device, anchor) = (bench.folder.path().join("device"), bench.folder.path().join("root.json"));
    let whole = bench.kept();
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(device.join("trust.json"), &whole[..length]).unwrap();
        let error = Trust::open(&device, &anchor, &names()[0]).unwrap_err().to_string();
        assert!(error.contains("it is not known which releases this device has seen"), "{error}");
    }
}

#[test]
fn target_files_that_were_swapped_or_lead_elsewhere_are_refused() {
    let mut bench = Bench::new();
    let [site, _] = names();
    let repository = bench.refresh().unwrap();
    let wanted = bench.repository.target("bowel-1.0.0.plugin");
    assert_eq!(repository.find(&site, &wanted.name).unwrap(), wanted);
    for name in [
        "north/../../etc/passwd",
        "/etc/passwd",
        "north//x",
        "north/.x",
        "",
        "north/none",
        "south/bowel-1.0.0.plugin",
        "bowel-1.0.0.plugin",
    ] {
        let error = repository.find(&site, name).unwrap_err();
        assert!(matches!(error, UpdateError::NoTarget { .. }), "{name}: {error}");
    }
    // Signed, and not the one that the desired state names.
    let other = TargetRef { sha256: "0".repeat(64), ..wanted.clone() };
    assert_eq!(repository.target(&site, &other).unwrap_err().attack(), Some(Attack::Swapped));
    // Another site's device gets nothing of this one.
    let south: TopicLevel = "south".parse().unwrap();
    assert!(repository.find(&south, &wanted.name).is_err());

    let file = repository.target(&site, &wanted).unwrap();
    let place = bench.served().join("targets").join(&file.path);
    let downloads = Downloads::open(&bench.folder.path().join("downloads")).unwrap();
    let source = bench.source();
    for (bytes, attack) in [
        (vec![8; 5000], Attack::Swapped),
        (vec![7; 5001], Attack::EndlessData),
        (vec![7; 1 << 20], Attack::EndlessData),
    ] {
        fs::write(&place, bytes).unwrap();
        let error = downloads.fetch(&*source, &wanted, &file, &mut |_| true).unwrap_err();
        assert_eq!(error.attack(), Some(attack), "{error}");
        assert!(!downloads.path(&wanted).exists());
    }
}

#[test]
fn a_plugin_under_another_tasks_name_leaves_that_tasks_candidate_alone() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["1.0.0", "1.1.0"].map(|version| {
        let fixture = Fixture::for_a_service(|manifest| manifest.task.version = version.into());
        fs::read(&fixture.plugin).unwrap()
    });
    let published = [("lesion-1.0.0.plugin".into(), first), ("bowel-1.0.0.plugin".into(), second)].into();
    let repository = Repository { files: published, ..Repository::default() };
    let [anchor, served, data] = ["root.json", "served", "data"].map(|name| folder.path().join(name));
    fs::write(&anchor, repository.root_json()).unwrap();
    repository.write(&served);
    let slots = Slots::new(&data).signed_only(true);
    let candidate = repository.target("lesion-1.0.0.plugin");
    let file = served.join("targets").join(TargetFile::new(&candidate).path);
    slots.install(&file, Some(candidate)).unwrap();
    let kept = || (fs::read(data.join("plugins/lesion/slots.json")).unwrap(), files(&data.join("plugins")));
    let before = kept();

    let [site, device] = names();
    let place = Place {
        site: site.clone(),
        device,
        loader: loader(&folder.path().join("none.safetensors")),
        keep_free: 0,
        gate: GateLimits { time: Duration::from_mins(1), memory: u64::MAX },
    };
    let trust = Trust::open(&data.join("updates"), &anchor, &site).unwrap();
    let downloads = Downloads::open(&data.join("updates/downloads")).unwrap();
    let mut updates = Updates::new(place, trust, Arc::new(Folder(served)), slots, downloads);
    updates.hear(desire(&desired(1, &repository.target("bowel-1.0.0.plugin")), &[&Key::of(7)]));
    let mut last = None;
    updates.step(NOW, &mut |reported| {
        last = Some(reported);
        true
    });
    let failure = last.unwrap().tasks["bowel"].failure.clone().unwrap();
    println!("a plugin under another task's name: {failure}");
    assert!(failure.contains("it holds a plugin of task lesion, and one of bowel is wanted"), "{failure}");
    assert_eq!(kept(), before, "nothing of the other task is touched");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all.sort();
    all
}

fn desired(revision: u64, target: &TargetRef) -> Desired {
    let [site, device] = names();
    Desired {
        schema: DESIRED_SCHEMA.into(),
        site,
        device,
        revision,
        expires: FAR.parse().unwrap(),
        tasks: [("bowel".to_owned(), Wanted { target: target.clone(), shadow: None })].into(),
    }
}

#[test]
fn a_desired_state_is_followed_only_from_who_may_say_so() {
    let mut bench = Bench::new();
    let [site, device] = names();
    let at = [&site, &device];
    let repository = bench.refresh().unwrap();
    let target = bench.repository.target("bowel-1.0.0.plugin");
    let honest = |revision| desired(revision, &target);
    let key = || Key::of(7);
    assert!(bench.trust.follow(&desire(&honest(5), &[&key()]), &repository, at, NOW).unwrap());
    assert!(
        !bench.trust.follow(&desire(&honest(5), &[&key()]), &repository, at, NOW).unwrap(),
        "once is enough"
    );

    let mut changed = desire(&honest(6), &[&key()]);
    let revision = changed.windows(12).position(|w| w == b"\"revision\":6").unwrap();
    changed[revision + 11] = b'9';
    let with = |edit: fn(&mut Desired)| {
        let mut desired = honest(6);
        edit(&mut desired);
        desire(&desired, &[&key()])
    };
    let mut unknown = serde_json::to_value(honest(6)).unwrap();
    unknown["reboot"] = true.into();
    let attacks = [
        ("forged", Attack::Signature, desire(&honest(6), &[&Key::of(99)])),
        ("signed by the timestamp's key", Attack::Signature, desire(&honest(6), &[&Key::of(6)])),
        ("unsigned", Attack::Signature, desire(&honest(6), &[])),
        ("signed twice by one key", Attack::Signature, desire(&honest(6), &[&key(), &key()])),
        ("changed on the way", Attack::Signature, changed),
        ("replayed", Attack::Rollback, desire(&honest(4), &[&key()])),
        (
            "another one of the same revision",
            Attack::Rollback,
            with(|d| {
                d.revision = 5;
                d.tasks.clear();
            }),
        ),
        ("expired", Attack::Freeze, with(|d| d.expires = PAST.parse().unwrap())),
        ("for another device", Attack::Swapped, with(|d| d.device = "ct-3".parse().unwrap())),
        ("for another site", Attack::Swapped, with(|d| d.site = "south".parse().unwrap())),
        (
            "a path trick",
            Attack::Malformed,
            with(|d| d.tasks.get_mut("bowel").unwrap().target.name = "north/../x".into()),
        ),
        (
            "a task's name",
            Attack::Malformed,
            with(|d| {
                let wanted = d.tasks.remove("bowel").unwrap();
                d.tasks.insert("../bowel".into(), wanted);
            }),
        ),
        ("unknown words", Attack::Malformed, envelope(&unknown, &[&key()])),
        ("no JSON", Attack::Malformed, b"reboot".to_vec()),
        ("endless", Attack::EndlessData, vec![b' '; 1 << 20]),
    ];
    let before = bench.kept();
    for (name, attack, payload) in attacks {
        let error = bench.trust.follow(&payload, &repository, at, NOW).unwrap_err();
        assert_eq!(error.attack(), Some(attack), "{name}: {error}");
        let said = error.to_string();
        assert!(said.contains("stays with revision 5") && !said.contains('\n'), "{name}: {said}");
        println!("{name}: {said}");
        assert_eq!(bench.kept(), before, "{name}");
    }
    // After a restart it is known what is followed, and what was seen.
    let anchor = bench.folder.path().join("root.json");
    let mut again = Trust::open(&bench.folder.path().join("device"), &anchor, &names()[0]).unwrap();
    assert_eq!(again.desired().unwrap().revision, 5);
    let error = again.follow(&desire(&honest(4), &[&key()]), &repository, at, NOW).unwrap_err();
    assert_eq!(error.attack(), Some(Attack::Rollback));
    assert!(again.follow(&desire(&honest(6), &[&key()]), &repository, at, NOW).unwrap());
}

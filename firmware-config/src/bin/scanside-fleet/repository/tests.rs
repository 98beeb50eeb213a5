use std::collections::BTreeSet;

use tough::schema::RoleType;

use super::*;
use crate::envelope::{seal, to_bytes};
use crate::keys::Keyring;

struct Desk {
    folder: tempfile::TempDir,
    keys: Keyring,
    roots: Vec<Decoded<Hex>>,
}

impl Desk {
    /// A repository of two sites, with all keys at hand.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut keys = Keyring::default();
        let roots: Vec<KeyPair> = (0..3).map(|_| KeyPair::generate().unwrap()).collect();
        let others = [(); 3].map(|()| KeyPair::generate().unwrap());
        let [targets, snapshot, timestamp] = &others;
        let none = Keyring::default();
        let root = Repository::create(
            &folder.path().join("r"),
            &roots,
            2,
            [targets, snapshot, timestamp],
            &now(&none),
        )
        .unwrap();
        files::write(&folder.path().join("root.json"), &root).unwrap();
        let ids = roots.iter().map(KeyPair::tuf_id).collect();
        roots.into_iter().chain(others).for_each(|key| keys.insert(key, "k".into()));
        let mut desk = Self { folder, keys, roots: ids };
        for site in ["north", "south"] {
            let key = KeyPair::generate().unwrap();
            let id = key.tuf_id();
            desk.keys.insert(key, site.into());
            let pair = desk.keys.of(site, &[id], 1).unwrap();
            desk.open().unwrap().add_site(site, &pair, 1, &now(&desk.keys)).unwrap();
        }
        desk
    }

    fn open(&self) -> Result<Repository> {
        Repository::open(&self.folder.path().join("r"), &self.folder.path().join("root.json"))
    }

    fn metadata(&self, name: &str) -> PathBuf {
        self.folder.path().join("r/metadata").join(name)
    }
}

fn now(keys: &Keyring) -> Renewal<'_> {
    Renewal { keys, now: jiff::Timestamp::now(), lifetimes: Lifetimes::default() }
}

fn versions(repository: &Repository) -> Vec<u64> {
    let sites = repository.sites.values().map(|site| site.signed.version.get());
    let Repository { root, timestamp, snapshot, targets, .. } = repository;
    [root.signed.version, timestamp.signed.version, snapshot.signed.version, targets.signed.version]
        .map(NonZeroU64::get)
        .into_iter()
        .chain(sites)
        .collect()
}

#[test]
fn only_what_changes_gets_a_new_version() {
    let desk = Desk::new();
    assert_eq!(versions(&desk.open().unwrap()), [1, 3, 3, 3, 1, 1]);
    let new = [(Some("north"), "north/a-1.0.0.plugin".to_owned(), &b"abc"[..])];
    let published = desk.open().unwrap().publish(&new, &now(&desk.keys)).unwrap();
    let repository = desk.open().unwrap();
    assert_eq!(versions(&repository), [1, 4, 4, 3, 2, 1]);
    let blobs = repository.blobs(Some("north")).unwrap();
    assert_eq!(blobs[0].target, published[0]);
    let place = format!("r/targets/north/{}.a-1.0.0.plugin", published[0].sha256);
    assert_eq!(blobs[0].path, desk.folder.path().join(place));
    assert_eq!(blobs[0].read().unwrap(), b"abc");
    assert_eq!(repository.plugin("north", "a", "1.0.0").unwrap(), published[0]);
    assert!(repository.plugin("south", "a", "1.0.0").unwrap_err().to_string().contains("not published"));
    drop(repository);

    let gone = [(Some("north"), blobs[0].clone())];
    desk.open().unwrap().unpublish(&gone, &now(&desk.keys)).unwrap();
    assert!(desk.open().unwrap().blobs(Some("north")).unwrap().is_empty() && !blobs[0].path.exists());
    desk.open().unwrap().refresh(&BTreeSet::new(), &now(&desk.keys)).unwrap();
    assert_eq!(versions(&desk.open().unwrap()), [1, 6, 6, 3, 3, 1]);
}

#[test]
fn a_folder_that_somebody_else_wrote_to_is_refused() {
    let desk = Desk::new();
    let stranger = KeyPair::generate().unwrap();
    let told = || desk.open().err().unwrap().to_string();
    for name in ["timestamp.json", "3.snapshot.json", "3.targets.json", "1.north.json", "1.root.json"] {
        let path = desk.metadata(name);
        let sound = files::read(&path).unwrap();
        let mut forged: Signed<serde_json::Value> = serde_json::from_slice(&sound).unwrap();
        forged.signed["expires"] = "2100-01-01T00:00:00Z".into();
        files::write(&path, &to_bytes(&seal(forged.signed, &[&stranger]))).unwrap();
        assert!(told().contains(name), "{name}: {}", told());
        files::write(&path, &sound).unwrap();
    }
    // A root of one's own that follows the trusted one in name only.
    let mut root = desk.open().unwrap().root.signed.clone();
    root.version = at_least_one(2);
    files::write(&desk.metadata("2.root.json"), &to_bytes(&seal(root, &[&stranger]))).unwrap();
    assert!(told().contains("2.root.json"), "{}", told());
    std::fs::remove_file(desk.metadata("2.root.json")).unwrap();
    desk.open().unwrap();
    // A whole repository of somebody else.
    let other = Desk::new();
    let told = Repository::open(&other.folder.path().join("r"), &desk.folder.path().join("root.json"));
    assert!(told.err().unwrap().to_string().contains("1.root.json"));
}

#[test]
fn keys_are_rotated_and_the_old_ones_count_no_more() {
    let mut desk = Desk::new();
    for (role, file) in [
        (RoleType::Targets, "4.targets.json"),
        (RoleType::Timestamp, "timestamp.json"),
        (RoleType::Root, "4.root.json"),
    ] {
        let old = desk.open().unwrap().role_keys(role).0;
        let fresh: Vec<KeyPair> = old.iter().map(|_| KeyPair::generate().unwrap()).collect();
        let public: Vec<_> = fresh.iter().map(|key| key.public().clone()).collect();
        let threshold = desk.open().unwrap().role_keys(role).1;
        for key in fresh {
            desk.keys.insert(key, "k".into());
        }
        desk.open().unwrap().set_role_keys(role, &public, threshold, &now(&desk.keys)).unwrap();
        let repository = desk.open().unwrap();
        assert!(repository.role_keys(role).0.iter().all(|id| !old.contains(id)));
        assert!(repository.root.signed.keys.len() == 6, "revoked keys are gone from the root");
        assert!(desk.metadata(file).exists());
    }
    // A new root is not made by fewer than its threshold, of old and new keys.
    let repository = desk.open().unwrap();
    let (ids, threshold) = repository.role_keys(RoleType::Root);
    assert_eq!((ids.len(), threshold), (3, 2));
    assert!(ids.iter().all(|id| !desk.roots.contains(id)));
    drop(repository);
    let few = Keyring::default();
    let told = desk.open().unwrap().refresh(&["root".to_owned()].into(), &now(&few)).unwrap_err();
    assert!(told.to_string().contains("root needs the signatures of 2"), "{told}");

    let before = desk.open().unwrap().site_keys("north").unwrap().0;
    let key = KeyPair::generate().unwrap();
    let id = key.tuf_id();
    desk.keys.insert(key, "north".into());
    desk.open().unwrap().set_site_keys("north", std::slice::from_ref(&id), 1, &now(&desk.keys)).unwrap();
    let repository = desk.open().unwrap();
    assert_eq!(repository.site_keys("north").unwrap().0, [id]);
    assert!(!repository.delegations().keys.contains_key(&before[0]));
}

#[test]
fn a_site_that_comes_back_counts_on() {
    let desk = Desk::new();
    let (ids, _) = desk.open().unwrap().site_keys("north").unwrap();
    let new = [(Some("north"), "north/a-1.0.0.plugin".to_owned(), &b"abc"[..])];
    desk.open().unwrap().publish(&new, &now(&desk.keys)).unwrap();
    desk.open().unwrap().remove_site("north", &now(&desk.keys)).unwrap();
    let repository = desk.open().unwrap();
    assert!(!repository.sites.contains_key("north"));
    assert!(
        repository.snapshot.signed.meta.contains_key("north.json"),
        "clients refuse a snapshot that drops a role"
    );
    drop(repository);
    let pair = desk.keys.of("north", &ids, 1).unwrap();
    desk.open().unwrap().add_site("north", &pair, 1, &now(&desk.keys)).unwrap();
    let repository = desk.open().unwrap();
    assert_eq!(repository.sites["north"].signed.version.get(), 3);
    assert!(repository.sites["north"].signed.targets.is_empty());
}

#[test]
fn names_of_sites_lead_nowhere() {
    for good in ["north", "ct_1.b", "A-2"] {
        check_site(good).unwrap();
    }
    for bad in
        ["", ".", "..", "a/b", "a b", "root", "targets", "backbones", "*", "n\u{f6}rd", &"x".repeat(65)]
    {
        assert!(check_site(bad).is_err(), "{bad}");
    }
}

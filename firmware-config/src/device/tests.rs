use super::*;

const LEAST: &str = r#"site = "north"
device = "ct-2"
data_dir = "/var/lib/scanside"
backbone = "/var/lib/scanside/backbone.safetensors"
[dicom]
ae_title = "SCANSIDE"
listen = "127.0.0.1:11112"
[mqtt]
url = "mqtt://127.0.0.1:1883"
"#;

fn parse(text: &str) -> Result<Device, ConfigError> {
    Device::parse(text, [])
}

fn with(environment: &[(&str, &str)]) -> Result<Device, ConfigError> {
    Device::parse(LEAST, environment.iter().map(|(name, value)| ((*name).into(), (*value).into())))
}

/// The sentence for the least file with `line` behind it.
fn complaint(line: &str) -> String {
    parse(&format!("{LEAST}{line}\n")).unwrap_err().to_string()
}

#[test]
fn the_least_file_runs() {
    let device = parse(LEAST).unwrap();
    assert_eq!((device.site.as_str(), device.device.as_str()), ("north", "ct-2"));
    assert_eq!(device.mqtt.url.to_string(), "mqtt://127.0.0.1:1883");
    assert_eq!(device.threads, None);
    assert_eq!(device.series.idle, Timeout::After(Duration::from_mins(1)));
    assert_eq!(device.store.max_size, Size(20_000_000_000));
    assert!(device.publishes_plain_uids() && device.cautions().is_empty());
    assert!(docs().contains(LEAST), "the documentation shows it");
}

#[test]
fn every_default_and_example_is_a_value_of_its_key() {
    for key in sections().iter().flat_map(|section| section.keys) {
        let accepts = |toml: &str| value::Raw::parse(toml).is_some_and(|raw| (key.accepts)(&raw));
        assert!(accepts(key.example), "{}: {}", key.path, key.example);
        assert!(key.is_required() || key.is_unset() || accepts(key.default), "{}: {}", key.path, key.default);
        assert_ne!(key.default, key.example, "{}: an example tells more than the default", key.path);
        assert!(key.doc.trim().ends_with('.'), "{}", key.path);
    }
}

#[test]
fn the_example_is_a_configuration_as_it_stands() {
    let device = parse(&example()).unwrap();
    assert_eq!(device, parse(LEAST).unwrap(), "and says no more than the least one");
}

#[test]
fn the_example_holds_with_everything_in_it() {
    let uncommented: String = example()
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest)
                if rest.starts_with('[') || rest.split_once(" = ").is_some_and(|(k, _)| !k.contains(' ')) =>
            {
                format!("{rest}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    let device = parse(&uncommented.replace("mqtt://", "mqtts://")).unwrap();
    assert_eq!(device.threads, Some(4));
    assert_eq!(device.tasks[0].rules.modality, ["CT"]);
    assert_eq!(device.mqtt.user.as_deref(), Some("scanside-ct-2"));
}

#[test]
fn an_unknown_key_names_the_nearest_and_its_line() {
    for (line, sentence) in [
        ("urll = 1", "line 10: there is no key `mqtt.urll`; the nearest is `mqtt.url`"),
        ("ae_title = \"X\"", "line 10: there is no key `mqtt.ae_title`; the nearest is `dicom.ae_title`"),
        (
            "[dicom.tsl]\ncert = \"x\"",
            "line 11: there is no key `dicom.tsl.cert`; the nearest is `dicom.tls.cert`",
        ),
        (
            "[store]\nretension = \"1d\"",
            "line 11: there is no key `store.retension`; the nearest is `store.retention`",
        ),
    ] {
        assert_eq!(complaint(line), sentence);
    }
}

#[test]
fn a_wrong_value_is_one_sentence() {
    for (line, sentence) in [
        ("keep_alive = 30", "line 10: `mqtt.keep_alive` is 30, expected a duration such as"),
        (
            "keep_alive = \"0s\"",
            "line 10: `mqtt.keep_alive` is \"0s\", expected a duration from \"1s\" to \"12h\"",
        ),
        ("uids = \"Plain\"", "line 10: `mqtt.uids` is \"Plain\", expected \"plain\", \"hashed\" or \"auto\""),
        ("user = \"\"", "line 10: `mqtt.user` is \"\", expected a text that is not empty"),
        ("[store]\nmax_tries = 0", "line 11: `store.max_tries` is 0, expected a whole number of at least 1"),
        ("[store]\nmax_tries = 1.5", "line 11: `store.max_tries` is 1.5, expected a whole number"),
        ("[store]\nmax_size = \"1B\"", "line 11: `store.max_size` is \"1B\", expected a size from"),
        ("[http]\nlisten = \"localhost\"", "line 11: `http.listen` is \"localhost\", expected ADDRESS:PORT"),
        ("password_file = \"p\"", "line 10: `mqtt.password_file` needs `mqtt.user`"),
        ("cert = \"c\"", "line 10: `mqtt.cert` needs `mqtt.key`"),
        ("ca = \"c\"", "line 10: `mqtt.ca` is given, but `mqtt.url` is not mqtts"),
        ("[dicom.tls]\nclient_ca = \"c\"", "line 11: `dicom.tls.client_ca` needs"),
        ("keep_alive = ", "line 10: not TOML: "),
        ("url = \"mqtt://b\"", "line 10: not TOML: "),
    ] {
        let found = complaint(line);
        assert!(found.starts_with(sentence) && !found.contains('\n'), "{line}: {found}");
    }
}

#[test]
fn a_missing_key_is_told_with_an_example() {
    for (line, key) in LEAST.lines().filter_map(|line| line.split_once(" = ").map(|(key, _)| (line, key))) {
        let error = parse(&LEAST.replace(line, "")).unwrap_err();
        assert!(matches!(&error, ConfigError::Missing { key: found, .. } if found.ends_with(key)), "{error}");
    }
    let error = parse("").unwrap_err().to_string();
    assert_eq!(error, "`site` is missing; give it, for example site = \"north\"");
}

#[test]
fn the_environment_goes_over_the_file() {
    let device = with(&[
        ("SCANSIDE_DICOM__AE_TITLE", "CT2"),
        ("SCANSIDE_SITE", "7"),
        ("SCANSIDE_STORE__MAX_TRIES", "5"),
        ("SCANSIDE_DICOM__CALLING", "[\"A\", \"B\"]"),
        ("SCANSIDE_MQTT__USER", "\"quoted\""),
        ("SCANSIDE_LOG", "debug"),
        ("PATH", "/bin"),
    ])
    .unwrap();
    assert_eq!((device.dicom.ae_title.as_str(), device.site.as_str()), ("CT2", "7"));
    assert_eq!((device.store.max_tries, device.dicom.calling.len()), (5, 2));
    assert_eq!(device.mqtt.user.as_deref(), Some("quoted"));

    let refusal = |name: &str, value: &str| with(&[(name, value)]).unwrap_err().to_string();
    assert_eq!(
        refusal("SCANSIDE_DICOM__AE_TITEL", "X"),
        "environment variable SCANSIDE_DICOM__AE_TITEL: there is no key `dicom.ae_titel`; the nearest is `dicom.ae_title`"
    );
    assert!(refusal("SCANSIDE_SITTE", "x").ends_with("the nearest is `site`"));
    assert_eq!(
        refusal("SCANSIDE_STORE__MAX_TRIES", "many"),
        "environment variable SCANSIDE_STORE__MAX_TRIES: `store.max_tries` is \"many\", expected a whole number of at least 1"
    );
}

#[test]
fn uids_are_plain_only_where_nobody_reads_along() {
    let open = LEAST.replace("127.0.0.1:1883", "broker.example");
    assert!(!parse(&open).unwrap().publishes_plain_uids());
    let refused = parse(&format!("{open}uids = \"plain\"\n")).unwrap_err().to_string();
    assert!(
        refused.starts_with("line 10: `mqtt.uids` is \"plain\", but others could read along"),
        "{refused}"
    );
    let tls =
        format!("{}ca = \"ca.pem\"\n", LEAST.replace("mqtt://127.0.0.1:1883", "mqtts://broker.example"));
    assert!(parse(&tls).unwrap().publishes_plain_uids());
    assert!(!parse(&format!("{tls}uids = \"hashed\"\n")).unwrap().publishes_plain_uids());
}

#[test]
fn what_is_seldom_wise_is_told() {
    let text = LEAST.replace("127.0.0.1", "10.0.0.1")
        + "user = \"u\"\npassword_file = \"p\"\n[http]\nlisten = \"0.0.0.0:80\"\n";
    let cautions = parse(&text).unwrap().cautions();
    assert_eq!(cautions.len(), 3, "{cautions:?}");
}

#[test]
fn changes_are_sorted_by_when_they_take_effect() {
    let old = parse(LEAST).unwrap();
    let text =
        LEAST.replace("ct-2", "ct-3") + "health_interval = \"10s\"\n[dicom.tls]\ncert = \"c\"\nkey = \"k\"\n";
    let changes = Device::changes(&old, &parse(&text).unwrap());
    assert_eq!(changes.now, ["mqtt.health_interval"]);
    assert_eq!(changes.restart, ["device", "dicom.tls.cert", "dicom.tls.key"]);
    assert_eq!(Device::changes(&old, &old), Changes::default());
    let new = parse(&format!("{LEAST}[[task]]\nname = \"bleed\"\n")).unwrap();
    assert_eq!(Device::changes(&old, &new), Changes { now: vec!["task"], restart: vec![] });
}

/// Nothing that a text editor can do to the file makes reading panic.
#[test]
fn cut_files_are_read_or_refused() {
    let text = example();
    for end in (0..text.len()).filter(|&end| text.is_char_boundary(end)) {
        let _ = parse(&text[..end]);
    }
}

#[test]
fn the_page_of_documentation_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/config.md");
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == docs(),
        "docs/config.md is stale: run `target/release/scanside config docs > docs/config.md`"
    );
}

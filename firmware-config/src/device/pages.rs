//! What users read of the keys: a commented file, and a page of documentation.

use super::schema::{Key, Section};
use super::{sections, units};

/// Columns of the example's comments.
const WIDTH: usize = 110;

/// A `device.toml` with every key: those that must be given with an example, the others commented out at their default.
pub fn example() -> String {
    let mut out = String::from(
        "# device.toml for `scanside run`. What is commented out stands at its default, or, where it has none, at an example.\n",
    );
    for section in sections() {
        out += "\n";
        if !section.path.is_empty() {
            out += &comment(section.doc);
            // A table without a key that must be given is not needed.
            let needed = section.keys.iter().any(Key::is_required);
            out += &format!("{}[{}]\n", if needed { "" } else { "# " }, section.path);
        }
        for key in section.keys {
            out += &comment(key.doc);
            let (mark, value) = match key {
                key if key.is_required() => ("", key.example),
                key if key.is_unset() => ("# ", key.example),
                key => ("# ", key.default),
            };
            out += &format!("{mark}{} = {value}\n", key.name());
        }
    }
    out + "\n" + TASK_EXAMPLE
}

/// `docs/config.md`.
pub fn docs() -> String {
    let mut out = String::from(INTRODUCTION);
    for section in sections() {
        let title = if section.path.is_empty() { "Top".into() } else { format!("[{}]", section.path) };
        out += &format!("\n## {title}\n\n{}\n\n", words(section.doc));
        out += "| key | default | what it does | a change takes effect |\n| --- | --- | --- | --- |\n";
        for key in section.keys {
            out += &row(&section, key);
        }
    }
    out += TASK_DOCS;
    out + "\n## Durations and sizes\n\n" + &units::help()
}

const INTRODUCTION: &str = "\
# device.toml

<!-- Made by `scanside config docs > docs/config.md`; a test compares. -->

`scanside run --config device.toml` reads it; `scanside config check --config device.toml` says what is wrong with it;
`scanside config example` prints one to begin with. The keys without a default must be given, all others may be left out:

```toml
site = \"north\"
device = \"ct-2\"
data_dir = \"/var/lib/scanside\"
backbone = \"/var/lib/scanside/backbone.safetensors\"
[dicom]
ae_title = \"SCANSIDE\"
listen = \"127.0.0.1:11112\"
[mqtt]
url = \"mqtt://127.0.0.1:1883\"
```

An environment variable goes over the file, and the file over the default. Its name is the key's, in capitals, behind
`SCANSIDE_`, with two underscores between section and key: `SCANSIDE_DICOM__AE_TITLE=CT2` sets `dicom.ae_title`. Values are
written as in the file; a text may go without quotes. The `[[task]]` tables come from the file only. An unknown key is an
error that names the nearest one, and so is a variable with `__` in its name that is no key.

On SIGHUP (`systemctl reload scanside`) the file is read again. What takes effect *now* does; of the rest the log says
that it waits for a restart. A file with a mistake changes nothing.
";

const TASK_EXAMPLE: &str = "\
# Which series go to a task, a table a task, at the end of the file. It narrows what the plugin accepts; a task without a
# table gets every series that its plugin accepts. `scanside why` tells what was chosen and why.
# [[task]]
# name = \"hemorrhage\"
# modality = [\"CT\"]
# description = [\"head*\", \"*cranial*\"]
# slice_thickness_mm = [0.5, 6.0]
";

const TASK_DOCS: &str = "
## [[task]]

Which series go to a task, a table a task. It narrows what the plugin's signed manifest accepts, never widens it; a task without a
table gets every series that its plugin accepts. What a rule asks for and the series does not say counts as not fulfilled. A change takes
effect now. `scanside why SERIES --config device.toml` tells for each task which rule took or refused a series.

| key | what it asks |
| --- | --- |
| `name` | the task's name, as in its plugin; must be given |
| `modality`, `body_part` | one of these (0008,0060), (0018,0015) |
| `description`, `kernel` | Series Description (0008,103E), Convolution Kernel (0018,1210) fits one of these patterns; `*` is any text, `?` any character, a pattern without them may stand anywhere, case does not count |
| `exclude_description`, `exclude_kernel` | … fits none of these |
| `plane` | acquired in one of `axial`, `coronal`, `sagittal` |
| `slice_thickness_mm`, `slice_spacing_mm` | `[least, most]` of Slice Thickness (0018,0050), of the distance between positions |
| `contrast` | whether a contrast agent must be named (0018,0010), or must not |
| `min_slices`, `max_slices` | number of slices |
| `exclude_image_type` | no image has one of these in Image Type (0008,0008); `[\"LOCALIZER\"]` unless given |
| `views.NAME` | for a task over several series of a study: what each view asks beyond the rules above |
| `views_wait_min` | how many minutes after the last series of a study that such a task takes it waits for the others; 60 unless given |
";

fn row(section: &Section, key: &Key) -> String {
    let default = match key {
        key if key.is_required() => format!("none, must be given, e.g. `{}`", key.example),
        key if key.is_unset() => format!("none, e.g. `{}`", key.example),
        key => format!("`{}`", key.default),
    };
    let path = if section.path.is_empty() { key.path } else { key.name() };
    let when = if key.reloadable { "now" } else { "after a restart" };
    let (doc, expected) = (words(key.doc), key.expected.replace('|', "\\|"));
    format!("| `{path}` | {default} | {doc} Takes {expected}. | {when} |\n")
}

/// On one line.
fn words(doc: &str) -> String {
    doc.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// As lines of a comment.
fn comment(doc: &str) -> String {
    let (mut out, mut line) = (String::new(), String::from("#"));
    for word in doc.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            out += &line;
            out.push('\n');
            line = "#".into();
        }
        line.push(' ');
        line += word;
    }
    out + &line + "\n"
}

//! The cluster examples of `docs/cluster`: each job asks for its own fold, seed or task. `scanside-train` is a stand-in here
//! that prints what it was asked for.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cluster").join(name)
}

/// What `script` (under `shell`) asks of `scanside-train` with these variables, a line a call.
fn asked(shell: &[&str], script: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("scanside-train");
    std::fs::write(&program, "#!/bin/sh\necho \"$@\"\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let output = Command::new(shell[0])
        .args(&shell[1..])
        .arg(script)
        .env("PATH", path)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(String::from).collect()
}

/// The block scalar below `- |`, without its indentation.
fn block(yaml: &str) -> String {
    let lines = yaml.lines().skip_while(|line| line.trim() != "- |").skip(1);
    lines.map_while(|line| line.strip_prefix("              ")).collect::<Vec<_>>().join("\n")
}

/// Fold and seed of the job `index`.
fn fold_and_seed(line: &str) -> (u64, u64) {
    let words: Vec<&str> = line.split(' ').collect();
    assert_eq!(words[0], "fit");
    let after = |flag: &str| {
        let at = words.iter().position(|word| *word == flag).unwrap();
        words[at + 1].parse().unwrap()
    };
    assert_eq!(after("--folds"), 5);
    (after("--fold"), after("--seeds"))
}

#[test]
fn the_jobs_of_an_array_cover_all_folds_and_seeds() {
    let script = example("slurm-folds.sh").display().to_string();
    let text = std::fs::read_to_string(&script).unwrap();
    assert!(text.contains("#SBATCH --array=0-14%"), "15 jobs");
    let yaml = std::fs::read_to_string(example("kubernetes-folds.yaml")).unwrap();
    assert!(yaml.contains("completions: 15 "));
    let in_pod = block(&yaml);
    let mut found = [Vec::new(), Vec::new()];
    for index in 0..15 {
        let id = index.to_string();
        let variables = [
            ("SLURM_ARRAY_TASK_ID", id.as_str()),
            ("TASK", "t"),
            ("DATA", "d"),
            ("BACKBONE", "b"),
            ("OUT", "o"),
        ];
        let job = asked(&["bash"], &script, &variables);
        let pod = asked(&["/bin/sh", "-euc"], &in_pod, &[("JOB_COMPLETION_INDEX", &id)]);
        for (found, lines) in found.iter_mut().zip([job, pod]) {
            assert_eq!(lines.len(), 1);
            found.push(fold_and_seed(&lines[0]));
        }
    }
    let all: Vec<(u64, u64)> = (0..3).flat_map(|seed| (0..5).map(move |fold| (fold, seed))).collect();
    assert_eq!(found, [all.clone(), all]);
}

#[test]
fn each_job_takes_its_line_of_the_list() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("tasks.txt");
    std::fs::write(&list, "liver\nmy spleen\n").unwrap();
    let script = example("slurm-tasks.sh").display().to_string();
    let list = list.display().to_string();
    let lines =
        asked(&["bash"], &script, &[("SLURM_ARRAY_TASK_ID", "2"), ("LIST", &list), ("BACKBONE", "b")]);
    let expected = [
        "fit --task my spleen/task.toml --data my spleen/data.csv --backbone b --out my spleen/run --device cuda --threads 1",
        "export --run my spleen/run --out my spleen --device cuda --threads 1",
        "report --run my spleen/run --out my spleen/report.html --device cuda --threads 1",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn each_job_of_a_comparison_takes_its_cell() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("cells.txt");
    std::fs::write(&list, "a/anymc3d/seed-0\na/lora-lstm/seed-1\n").unwrap();
    let list = list.display().to_string();
    let variables =
        [("SLURM_ARRAY_TASK_ID", "2"), ("CELLS", &*list), ("SUITE", "s"), ("BACKBONE", "b"), ("OUT", "o")];
    let lines = asked(&["bash"], &example("slurm-compare.sh").display().to_string(), &variables);
    let expected =
        "compare --suite s --backbone b --out o --cell a/lora-lstm/seed-1 --device cuda --threads 1";
    assert_eq!(lines, [expected]);
    let yaml = std::fs::read_to_string(example("kubernetes-compare.yaml")).unwrap();
    let script = block(&yaml).replace("/mnt/scanside/cells.txt", &list);
    let lines = asked(&["/bin/sh", "-euc"], &script, &[("JOB_COMPLETION_INDEX", "0")]);
    assert!(lines[0].contains(" --cell a/anymc3d/seed-0 "), "{lines:?}");
}

"""The method's claims on phantoms: LoRA and a query against a frozen backbone, the query against mean and median, masks against none.

Makes the demo suite at half its counts, fits every arm once with each seed on the same volumes, and prints each arm's figures and
the paired differences with two intervals of 95 %: Student's t over the seeds, and a bootstrap over the test volumes of the mean
over the seeds. A fit that is finished is not made again, and one that was interrupted goes on. Needs Python alone; from the
repository's root, after `cargo xtask assets` and `cargo build --workspace --release --bins`:
    python3 trainer/benches/claims.py --out target/claims
"""

import argparse
import csv
import math
import random
import re
import subprocess
from pathlib import Path

SEEDS = [0, 1, 2, 3, 4]
# Student's t, 97.5 %, for as many seeds.
T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
DRAWS = 2000
# What an arm changes in the suite's task file.
ARMS = {
    "query": lambda task: task,
    "frozen": lambda task: set_key(task, "lr_lora", "0.0"),
    "mean": lambda task: set_key(task, "pooling", '"mean"'),
    "median": lambda task: set_key(task, "pooling", '"median"'),
    "pixel": lambda task: task + "\n[train.pixel]\n",
}
# The arms whose heat maps are compared with the masks.
LOCATED = ["query", "pixel"]
# The linear probe on mean-pooled frozen embeddings, which has no seed.
PROBE = "probe"
VERSUS = [("query", PROBE), ("query", "frozen"), ("query", "mean"), ("query", "median"), ("pixel", "query")]
FIGURES = ["auroc", "hit", "dice", "best"]


def set_key(task, key, value):
    """Sets a key of [train]."""
    task = re.sub(rf"^{key} = .*\n", "", task, flags=re.MULTILINE)
    return task.replace("[train]\n", f"[train]\n{key} = {value}\n")


def half(suite):
    """The demo suite with half its volumes, five blocks and six epochs."""
    for old, new in [
        ('name = "demo"', 'name = "half"'),
        ("train = 80", "train = 40"),
        ("val = 40", "val = 20"),
        ("test = 160", "test = 80"),
        ("blocks = 11", "blocks = 5"),
        ("epochs = 4", "epochs = 6"),
    ]:
        assert suite.count(old + "\n") == 1, f"{old} is not in the suite once"
        suite = suite.replace(old + "\n", new + "\n")
    return suite


def make(arguments):
    """Volumes and fits."""
    out, program = arguments.out, [str(arguments.program)]
    threads = ["--threads", str(arguments.threads)]
    data = out / "data"
    if not (data / "data.csv").exists():
        out.mkdir(parents=True, exist_ok=True)
        (out / "half.toml").write_text(half(Path("trainer/suites/demo.toml").read_text()))
        subprocess.run([*program, "phantom", "--suite", str(out / "half.toml"), "--out", str(data)], check=True)
    table = (data / "data.csv").read_text().splitlines(keepends=True)
    (data / "held-out.csv").write_text("".join(row for row in table if row.split(",")[1] != "train"))
    for arm in arguments.arms:
        task = out / f"{arm}.toml"
        task.write_text(ARMS[arm]((data / "task.toml").read_text()))
        fit = ["fit", "--task", str(task), "--data", str(data / "data.csv"), "--out", str(out / arm)]
        fit += ["--backbone", str(arguments.backbone), *threads, "--seeds"]
        subprocess.run([*program, *fit, ",".join(map(str, SEEDS))], check=True)
        if arm == "query":
            subprocess.run([*program, *fit, str(SEEDS[0]), "--probe"], check=True)
        for seed in SEEDS if arm in LOCATED else []:
            run = out / arm / f"seed-{seed}"
            if not (run / "located.csv").exists():
                predict = ["predict", "--run", str(run), "--data", str(data / "held-out.csv"), *threads]
                subprocess.run([*program, *predict, "--out", str(run / "located.csv")], check=True)


def area(scores, truth):
    """AUROC, by pairs."""
    positive = [score for score, true in zip(scores, truth) if true]
    negative = [score for score, true in zip(scores, truth) if not true]
    pairs = sum((a > b) + 0.5 * (a == b) for a in positive for b in negative)
    return pairs / (len(positive) * len(negative))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def rows(path):
    with open(path, newline="") as file:
        return sorted((row for row in csv.DictReader(file) if row["split"] == "test"), key=lambda row: row["id"])


def figure(found, name, chosen):
    """A figure of one run over the test rows of which the numbers are `chosen`; of heat maps, over those with a finding."""
    taken = [found[i] for i in chosen]
    if name == "auroc":
        return area([float(row["logit:lesion"]) for row in taken], [row["lesion"] == "1" for row in taken])
    column = {"hit": "heat:hit", "dice": "heat:dice", "best": "heat:best-dice"}[name]
    return mean(float(row[column]) for row in taken if row[column] != "")


def by_seeds(values):
    """Mean with its interval over the seeds."""
    centre = mean(values)
    deviation = math.sqrt(sum((value - centre) ** 2 for value in values) / (len(values) - 1))
    half_width = T[len(values)] * deviation / math.sqrt(len(values))
    return f"{centre:.3f} ({centre - half_width:.3f} to {centre + half_width:.3f})"


def report(out):
    files = {"heat": "located.csv", "auroc": "predictions.csv"}
    found = {}
    for arm in ARMS:
        for kind, name in files.items():
            paths = [out / arm / f"seed-{seed}" / name for seed in SEEDS]
            if all(path.exists() for path in paths):
                found[arm, kind] = [rows(path) for path in paths]
    probe = out / "query" / f"seed-{SEEDS[0]}" / "probe.csv"
    if probe.exists():
        found[PROBE, "auroc"] = [rows(probe)] * len(SEEDS)

    def of(arm, name):
        return found.get((arm, "auroc" if name == "auroc" else "heat"))

    every = range(80)
    values = {}
    for arm in [PROBE, *ARMS]:
        for name in FIGURES:
            if of(arm, name):
                values[arm, name] = [figure(run, name, every) for run in of(arm, name)]
                each = ", ".join(f"{value:.3f}" for value in values[arm, name])
                print(f"{arm:7} {name:5} {each}   mean {by_seeds(values[arm, name])}")
    for mine, theirs in VERSUS:
        for name in FIGURES:
            if (mine, name) not in values or (theirs, name) not in values:
                continue
            differences = [a - b for a, b in zip(values[mine, name], values[theirs, name])]
            pairs = list(zip(of(mine, name), of(theirs, name)))
            # The same draws for every comparison; half the volumes have a lesion, so that none will lack a class.
            generator, drawn = random.Random(0), []
            for _ in range(DRAWS):
                chosen = [generator.randrange(len(every)) for _ in every]
                drawn.append(mean(figure(a, name, chosen) - figure(b, name, chosen) for a, b in pairs))
            drawn.sort()
            low, high = drawn[int(0.025 * DRAWS)], drawn[int(0.975 * DRAWS)]
            print(f"{mine} - {theirs} {name:5} {by_seeds(differences)} over seeds, ({low:.3f} to {high:.3f}) over test volumes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for volumes and runs")
    parser.add_argument("--program", type=Path, default=Path("target/release/scanside-train"))
    parser.add_argument("--backbone", type=Path, default=Path("target/assets/backbone/vit_s_focus.onnx"))
    parser.add_argument("--arms", type=lambda text: text.split(","), default=list(ARMS), help="fit these only, of " + ", ".join(ARMS))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    make(arguments)
    report(arguments.out)


if __name__ == "__main__":
    main()

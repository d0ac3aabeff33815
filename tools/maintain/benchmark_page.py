"""Write the tables of docs/*/benchmarks.md and docs/*/inference.md from the records of benchmarks.

    python tools/maintain/benchmark_page.py
    python tools/maintain/benchmark_page.py --records records/NAME --inference records/NAME

A record is a JSON file that a script of benchmarks/ wrote with --json. The tables stand between two marks of
each page; the rest of a page is written by hand. A kind of benchmark without a record is left out, and the
tool prints its name.
"""

import argparse
import json
import math
import re
import shlex
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import sidebyside
from tools.maintain.benchmark_words import BENCHMARKS, INFERENCE
from tools.maintain.page_marks import between_marks
from util.compute import cpu_runtime
from util.system.atomic_file import atomic_write

RECORDS = ROOT / "records" / "2026-11-21_speed"
KINDS = [
    "train_step",
    "train_step_profile",
    "bfloat16_training",
    "input_pipeline",
    "index",
    "infer",
    "infer_startup",
]
INFERENCE_RECORDS = ROOT / "records" / "2026-11-22_inference"
INFERENCE_KINDS = ["infer", "infer_startup", "serve_load"]
MARKS = "<!-- tools/maintain/benchmark_page.py writes from here on -->\n", "<!-- to here -->\n"

# Rows of the summary: kind of benchmark, and pattern of the side's name.
SUMMARY = [
    ("train_step", "onednn .*"),
    ("input_pipeline", ".*"),
    ("infer", ".*"),
    ("infer_startup", "main_infer .*"),
]
SUMMARY_COLUMNS = ["images_per_s", "seconds", "peak_mb"]
OPPONENTS = ("torch", "import and read")  # beginnings of the names of sides that ours are compared with

Record = dict[str, Any]
Words = dict[str, Any]
Rounds = Sequence[dict[str, float]]


def load(folder: Path | str, kinds: Sequence[str] = KINDS) -> list[tuple[str, str, Record]]:
    """Read the records of a folder.

    Returns [(file name, kind, record)] in the order of the pages. Raises ValueError if the folder has no
    record, or a file that is not a record of one of `kinds`.
    """
    found = []
    for path in Path(folder).glob("*.json"):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error}); run its benchmark again") from error
        kind = record.get("benchmark")
        if kind not in kinds:
            raise ValueError(f"{path}: not a record of {', '.join(kinds)}; move it to another folder")
        s = record["settings"]
        order = (
            kinds.index(kind),
            s.get("task") == "finetune",
            -s.get("width", 0),
            s.get("batch_size", 0),
            s.get("precision") == "bfloat16",
            path.name,
        )
        found.append((order, path.name, kind, record))
    if not found:
        raise ValueError(f"{folder}: no record found; benchmarks/*.py --json FILE writes one")
    return [(name, kind, record) for _, name, kind, record in sorted(found, key=lambda each: each[0])]


def benchmark_tables(folder: Path | str, words: Words) -> str:
    """Make the generated part of a page of BENCHMARKS."""
    folder, records = Path(folder), load(folder)
    lines = [words["source"].format(folder=folder.name), ""]
    if rows := [row for each in records for row in summary(folder.name, *each, words)]:
        columns = [words["what"], words["side"], *(words["measurements"][each] for each in SUMMARY_COLUMNS)]
        lines += [f"## {words['summary']}\n", *table([columns, *rows]), ""]
    section = None
    for file, kind, record in records:
        if kind != section:
            section = kind
            lines.append(f"## {words['sections'][kind]}\n")
        lines += [f"### {title(kind, record, words)}\n", *origin(folder.name, file, record, words), ""]
        body = {"train_step_profile": profile, "bfloat16_training": training}.get(kind, comparison)
        lines += [*body(record, words), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def inference_tables(folder: Path | str, words: Words) -> str:
    """Make the generated part of a page of INFERENCE."""
    found = load(folder, INFERENCE_KINDS)
    versions: dict[str, str] = {}
    for _, _, record in found:
        for side in record.get("sides", {}).values():
            versions.update({key: value for key, value in side["about"].items() if key != "threads"})
    machine = found[0][2]["machine"]
    lines = [
        words["head"].format(
            **{**machine, "instruction_set": instruction_set(machine)},
            folder=Path(folder).name,
            versions=", ".join(f"{key} {value}" for key, value in versions.items()),
        ),
        "",
    ]
    kinds = {kind: [record for _, of, record in found if of == kind] for kind in INFERENCE_KINDS}
    groups: dict[tuple[str, str], list[Record]] = {}  # batch sizes of one model and precision share a table
    for record in kinds["infer"]:
        groups.setdefault((record["settings"]["model"], record["settings"]["precision"]), []).append(record)
    for (model, precision), records in groups.items():
        lines += [words["infer"].format(model=model, precision=precision), "", *speeds(records, words), ""]
    for record in kinds["infer_startup"]:
        lines += [words["infer_startup"].format(**record["settings"]), "", *first_answers(record, words), ""]
    if kinds["serve_load"]:
        lines += [words["serve_load"], "", *table([words["load"], *map(under_load, kinds["serve_load"])]), ""]
    return "\n".join(lines)


def speeds(records: Sequence[Record], words: Words) -> list[str]:
    """Make a table of images/s: a row for each side, a column for each record."""
    rows: dict[str, list[str]] = {}
    for record in records:
        for side in record["sides"]:
            speed = number(typical(record["sides"][side]["rounds"], "images_per_s"))
            rows.setdefault(side, []).append(
                speed
                if side == record["against"]
                else words["times"].format(speed, number(ratio(record, side, "images_per_s")))
            )
    return table(
        [
            [words["side"], *(words["batch"].format(record["settings"]["batch_size"]) for record in records)],
            *([side, *cells] for side, cells in rows.items()),
        ]
    )


def first_answers(record: Record, words: Words) -> list[str]:
    """Make the table of the seconds from the start of a process to its first answer."""
    rows = [[words["side"], words["seconds"], words["beside"]]]
    for side, values in record["sides"].items():
        seconds = [each["seconds"] for each in values["rounds"]]
        rows.append(
            [
                side,
                spread(seconds, words),
                "1" if side == record["against"] else number(ratio(record, side, "seconds")),
            ]
        )
    return table(rows)


def under_load(record: Record) -> list[str]:
    """Make the row of a record of benchmarks/serve_load.py."""
    found, settings = record["found"], record["settings"]
    memory = [megabytes for _, megabytes in record["resident_mb"]]
    return [
        f"{record['about']['model']}, {record['about']['engine']}",
        f"{settings['requests']:,}",
        str(settings["connections"]),
        *(number(found[key]) for key in ("requests_per_s", "p50_ms", "p99_ms", "slowest_ms", "mean_batch")),
        str(found["errors"]),
        ", ".join(f"{memory[place]:,.0f}" for place in (0, len(memory) // 2, -1)),
    ]


def title(kind: str, record: Record, words: Words) -> str:
    s = record["settings"]
    return words["titles"][kind].format(
        **{**s, "task": words["tasks"].get(s.get("task")), "source": words["sources"][bool(s.get("packed"))]}
    )


def origin(folder: str, file: str, record: Record, words: Words) -> Iterator[str]:
    """Yield the lines on a record's origin: file, date, machine, command and versions."""
    if "sides" in record:
        about, argv = record, record["command"]
        rest = words["rounds"].format(len(next(iter(record["sides"].values()))["rounds"]))
        versions = {name: side["about"] for name, side in record["sides"].items()}
    else:  # benchmarks/bfloat16_training.py, whose settings are its flags
        about, rest = record["about"], ""
        argv = [
            "benchmarks/bfloat16_training.py",
            *(word for flag, value in record["settings"].items() for word in (f"--{flag}", str(value))),
        ]
        shared = {key: value for key, value in about.items() if key not in ("date", "machine", "revision")}
        versions = {"float32": shared, "bfloat16": shared}
    if about.get("revision"):
        rest = words["commit"].format(re.sub(r"^(.{7})[^+]*", r"\1", about["revision"])) + rest
    machine = {**about["machine"], "instruction_set": instruction_set(about["machine"])}
    yield (
        words["origin"].format(file=file, folder=folder, date=about["date"][:10], rest=rest, **machine) + "\n"
    )
    yield f"```\n{command(argv)}\n```\n"
    same: dict[str, list[str]] = {}  # sides with the same versions share a line
    for name, values in versions.items():
        same.setdefault(", ".join(f"{key} {value}" for key, value in values.items()), []).append(f"`{name}`")
    for described, names in same.items():
        if described:
            yield words["about"].format(sides=", ".join(names), about=described)


def instruction_set(machine: Record) -> str:
    """Name the instruction set of a record's machine; older records have only the processor's features."""
    return machine.get("instruction_set") or cpu_runtime.name_of(
        cpu_runtime.instruction_sets(machine["flags"])
    )


def command(argv: Sequence[str]) -> str:
    """Write sys.argv of a benchmark as a command line, with /path/to in place of the machine's folders."""
    script, *options = argv
    kept: list[str] = []
    for word in options:
        flag, path = re.fullmatch(r"(--\w+=)?(.*)", word, flags=re.DOTALL).groups("")  # type: ignore[union-attr]
        target = flag or (kept[-1] if kept else "")
        if target.startswith("--json"):
            path = Path(path).name
        elif path.startswith(("/", "~", "..")):
            path = f"/path/to/{Path(path).name}"
        kept.append(flag + path)
    return shlex.join(["python", "/".join(Path(script).parts[-2:]), *kept])


def comparison(record: Record, words: Words) -> Iterator[str]:
    """Yield the lines of the table of a record that benchmarks/sidebyside.py wrote."""
    rounds = {name: side["rounds"] for name, side in record["sides"].items()}
    measure, against = record["measure"], record["against"]
    names = words["measurements"]
    others = list(dict.fromkeys(key for each in rounds.values() for key in each[0] if key != measure))
    compared = sidebyside.ratios(rounds, measure, against) if against else {}
    rows = [
        [
            words["side"],
            words["median"].format(names[measure]),
            *([words["ratio"], words["each"]] if against else []),
            *(names.get(key, key) for key in others),
        ]
    ]
    for name, each in rounds.items():
        row = [name, spread([one[measure] for one in each], words)]
        if against:
            row += (
                [number(ratio(record, name, measure)), words["range"].format(*map(number, compared[name]))]
                if name in compared
                else ["1", ""]
            )
        row += [
            (f"{typical(each, key):.0%}" if key == "share_of_matmul" else number(typical(each, key)))
            if key in each[0]
            else ""
            for key in others
        ]
        rows.append(row)
    yield from table(rows)
    ours = next(iter(rounds.values()))
    if against in rounds and {"matmul_gflops", "gflops"} <= ours[0].keys() and "gflops" in rounds[against][0]:
        bound = typical(ours, "matmul_gflops") / typical(rounds[against], "gflops")
        yield "\n" + words["ceiling"].format(number(bound), f"`{against}`")


def typical(rounds: Rounds, measurement: str) -> float:
    """Returns the median over the rounds, or the maximum for peak memory."""
    values = [one[measurement] for one in rounds]
    return max(values) if measurement == "peak_mb" else statistics.median(values)


def ratio(record: Record, side: str, measurement: str) -> float:
    return typical(record["sides"][side]["rounds"], measurement) / typical(
        record["sides"][record["against"]]["rounds"], measurement
    )


def summary(folder: str, file: str, kind: str, record: Record, words: Words) -> Iterator[list[str]]:
    """Yield a row of the summary for each of our sides of a record with an opponent."""
    opposed = (record.get("against") or "").startswith(OPPONENTS)
    if not opposed or record["settings"].get("torch_attention", "official") != "official":
        return
    what = f"[{title(kind, record, words)}](../../records/{folder}/{file})"
    for side, values in record["sides"].items():
        if not side.startswith(OPPONENTS) and any(
            kind == of and re.fullmatch(pattern, side) for of, pattern in SUMMARY
        ):
            yield [
                what,
                side,
                *(
                    number(ratio(record, side, each)) if each in values["rounds"][0] else ""
                    for each in SUMMARY_COLUMNS
                ),
            ]


def profile(record: Record, words: Words) -> list[str]:
    """Make the table of the shares of a training step, in per cent, sorted by the first side."""
    sides = {
        name: {key: typical(side["rounds"], key) for key in side["rounds"][0]}
        for name, side in record["sides"].items()
    }
    kinds = sorted(
        {kind for spent in sides.values() for kind in spent} - {"step"},
        key=lambda kind: [*(-spent.get(kind, 0) for spent in sides.values()), kind],
    )
    return table(
        [
            [words["profile"], *sides],
            [words["step"], *(number(1000 * spent["step"]) for spent in sides.values())],
            *(
                [
                    words["kinds"].get(kind, kind),
                    *(
                        f"{spent[kind] / spent['step']:.1%}" if kind in spent else ""
                        for spent in sides.values()
                    ),
                ]
                for kind in kinds
            ),
        ]
    )


def training(record: Record, words: Words) -> list[str]:
    """Make the tables of the same training in float32 and bfloat16 with several seeds.

    Raises ValueError unless both precisions have the same seeds.
    """
    runs: dict[str, dict[int, Record]] = {}
    for run in record["runs"]:
        runs.setdefault(run["precision"], {})[run["seed"]] = run
    if set(runs) != {"float32", "bfloat16"} or runs["float32"].keys() != runs["bfloat16"].keys():
        raise ValueError(
            "bfloat16_training: needs runs of float32 and bfloat16 with the same seeds, got "
            + "; ".join(f"{precision} {sorted(seeds)}" for precision, seeds in runs.items())
        )
    rows = [words["training"]]
    for precision, by_seed in runs.items():
        final = [run["losses"][-1] for run in by_seed.values()]
        accuracy = [run["accuracy"] for run in by_seed.values()]
        rows.append(
            [
                precision,
                ", ".join(map(str, by_seed)),
                ", ".join(f"{steps:,}" for steps in sorted({run["steps"] for run in by_seed.values()})),
                *(
                    words["range"].format(*(f"{f(values):.{digits}f}" for f in (statistics.fmean, min, max)))
                    for values, digits in ((final, 4), (accuracy, 2))
                ),
            ]
        )
    exact, half = runs["float32"], runs["bfloat16"]
    between_precisions = [
        [abs(a - b) for a, b in zip(exact[seed]["losses"], half[seed]["losses"], strict=True)]
        for seed in exact
    ]
    between_seeds = [
        max(losses) - min(losses) for losses in zip(*(run["losses"] for run in exact.values()), strict=True)
    ]
    apart = [
        words["apart"],
        [
            words["between_precisions"],
            f"{max(map(max, between_precisions)):.4f}",
            f"{max(losses[-1] for losses in between_precisions):.4f}",
        ],
        [words["between_seeds"], f"{max(between_seeds):.4f}", f"{between_seeds[-1]:.4f}"],
    ]
    return [*table(rows), "", *table(apart)]


def spread(values: Sequence[float], words: Words) -> str:
    """Write the median, lowest and highest of some values."""
    return words["range"].format(*map(number, (statistics.median(values), min(values), max(values))))


def table(rows: Sequence[Iterable[str]]) -> list[str]:
    """Make the lines of a Markdown table; the first row is its head."""
    cells = [list(row) for row in rows]
    return ["| " + " | ".join(row) + " |" for row in [cells[0], ["---"] * len(cells[0]), *cells[1:]]]


def number(value: float) -> str:
    """Write a number with three significant digits and without an exponent."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--records", metavar="FOLDER", default=RECORDS, help="records of docs/*/benchmarks.md"
    )
    parser.add_argument(
        "--inference", metavar="FOLDER", default=INFERENCE_RECORDS, help="records of docs/*/inference.md"
    )
    args = parser.parse_args()
    folder, inference = Path(args.records).resolve(), Path(args.inference).resolve()
    try:
        parts = {name: benchmark_tables(folder, words) for name, words in BENCHMARKS.items()}
        parts |= {name: inference_tables(inference, words) for name, words in INFERENCE.items()}
        pages = {
            path: between_marks(path.read_text(encoding="utf-8"), text, path, MARKS)
            for path, text in ((ROOT / "docs" / name, text) for name, text in parts.items())
        }
    except ValueError as error:
        sys.exit(f"benchmark_page.py: error: {error}")
    for path, content in pages.items():
        with atomic_write(path, "w") as f:
            f.write(content)
    for of, kinds in ((folder, KINDS), (inference, INFERENCE_KINDS)):
        records = load(of, kinds)
        print(f"found in {of.name}: {', '.join(file for file, _, _ in records)}")
        if missing := [kind for kind in kinds if kind not in {kind for _, kind, _ in records}]:
            print(f"left out because there is no record: {', '.join(missing)}")


if __name__ == "__main__":
    main()

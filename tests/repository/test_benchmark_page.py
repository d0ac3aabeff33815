"""The tables of docs/*/benchmarks.md and docs/*/inference.md say what the records say."""

import json
import re

import pytest

from tools.maintain import benchmark_page
from tools.maintain.benchmark_page import MARKS, ROOT, benchmark_tables, inference_tables
from tools.maintain.benchmark_words import BENCHMARKS, INFERENCE
from tools.maintain.page_marks import between_marks

MACHINE = {"cpu": "Some CPU", "cores": 2, "flags": ["avx2", "avx512f"], "memory_gb": 4.0, "platform": "Linux"}


def page(folder, name="en/benchmarks.md"):
    return benchmark_tables(folder, BENCHMARKS[name])


def write(folder, file="record.json", **changes):
    """A record as benchmarks/sidebyside.py writes it, of a training step in three rounds."""
    ours = [
        {"images_per_s": 3.0, "peak_mb": 900.0, "matmul_gflops": 400.0, "share_of_matmul": 0.5},
        {"images_per_s": 8.0, "peak_mb": 1000.0, "matmul_gflops": 300.0, "share_of_matmul": 0.7},
        {"images_per_s": 4.0, "peak_mb": 1100.0, "matmul_gflops": 350.0, "share_of_matmul": 0.6},
    ]
    theirs = [
        {"images_per_s": 1.0, "peak_mb": 700.0},
        {"images_per_s": 2.0, "peak_mb": 800.0},
        {"images_per_s": 4.0, "peak_mb": 800.0},
    ]
    record = {
        "benchmark": "train_step",
        "date": "2026-12-24T10:00:00+00:00",
        "revision": "0123456789abcdef+",
        "command": [
            "/home/me/mae/benchmarks/train_step.py",
            "--against",
            "torch",
            "--torch_python",
            "/opt/x/python",
            "--images",
            ".../photos",
            "--torch_path=../elsewhere/lib",
            "--json",
            "some/where/record.json",
        ],
        "machine": MACHINE,
        "measure": "images_per_s",
        "against": "torch float32",
        "settings": {
            "task": "finetune",
            "image": 224,
            "patch": 16,
            "width": 768,
            "batch": 8,
            "precision": "float32",
            "torch_attention": "official",
        },
        "sides": {
            "onednn float32": {"about": {"paddlepaddle": "3.3.1"}, "rounds": ours},
            "torch float32": {"about": {"torch": "2.13"}, "rounds": theirs},
        },
        **changes,
    }
    (folder / file).write_text(json.dumps(record))
    return record


def rows(text):
    """The cells of all tables' rows, by the first cell."""
    return {
        cells[0]: cells[1:]
        for cells in (line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| "))
    }


@pytest.mark.parametrize(
    "name, tables",
    [
        *((name, benchmark_tables(benchmark_page.RECORDS, words)) for name, words in BENCHMARKS.items()),
        *(
            (name, inference_tables(benchmark_page.INFERENCE_RECORDS, words))
            for name, words in INFERENCE.items()
        ),
    ],
)
def test_the_pages_are_those_of_the_records(name, tables):
    path = ROOT / "docs" / name
    written = path.read_text(encoding="utf-8")
    assert written == between_marks(written, tables, path, MARKS), (
        "run python tools/maintain/benchmark_page.py"
    )
    folders = set(re.findall(r"(?<![\w.])/\w+/", tables))
    assert folders <= {"/path/"}, "a folder of the machine that was measured on"


def test_the_table_tells_medians_ratios_and_ranges(tmp_path):
    write(tmp_path)
    found = rows(page(tmp_path))
    assert found["side"] == [
        "images/s, median (lowest to highest)",
        "ratio of medians",
        "round by round",
        "peak memory, MB",
        "GFLOP/s of a large matrix product",
        "share of that rate",
    ]
    # Medians 4 and 2; rounds 3/1, 8/2, 4/4. The highest memory.
    assert found["onednn float32"] == [
        "4.00 (3.00 to 8.00)",
        "2.00",
        "3.00 (1.00 to 4.00)",
        "1,100",
        "350",
        "60%",
    ]
    assert found["torch float32"] == ["2.00 (1.00 to 4.00)", "1", "", "800", "", ""]


def test_the_instruction_set_is_the_one_of_the_run(tmp_path):
    write(tmp_path, machine={**MACHINE, "instruction_set": "AVX2"})
    assert "Some CPU, 2 cores, AVX2, 4.0 GB" in page(tmp_path, "en/benchmarks.md")


def test_where_a_record_is_from(tmp_path):
    write(tmp_path)
    text = page(tmp_path)
    assert "### Finetuning step, 224 x 224 pixels, patch 16, width 768, batch 8, float32\n" in text
    assert (
        f"[record.json](../../records/{tmp_path.name}/record.json), 2026-12-24; "
        "Some CPU, 2 cores, AVX-512, 4.0 GB; commit 0123456+; rounds: 3.\n"
    ) in text
    assert (
        "\npython benchmarks/train_step.py --against torch --torch_python /path/to/python "
        "--images /path/to/photos --torch_path=/path/to/lib --json record.json\n"
    ) in text
    assert "- `onednn float32`: paddlepaddle 3.3.1\n- `torch float32`: torch 2.13\n" in text


def summary_rows(tmp_path, **changes):
    write(tmp_path, **changes)
    lines = page(tmp_path).partition("## Ratios at a glance")[2].partition("\n## ")[0].splitlines()
    return [line[2:-2].split(" | ")[1:] for line in lines if line.startswith("| [")]


def test_the_summary_has_the_ratios_to_the_opponent(tmp_path):
    assert summary_rows(tmp_path) == [["onednn float32", "2.00", "", "1.38"]]  # peak memory 1100 / 800
    sides = {
        "main_infer paddle": {"about": {}, "rounds": [{"seconds": 2.8}]},
        "import and read": {"about": {}, "rounds": [{"seconds": 2.0}]},
    }
    assert summary_rows(
        tmp_path,
        benchmark="infer_startup",
        measure="seconds",
        against="import and read",
        sides=sides,
        settings={"model": "vit", "precision": "float32"},
    ) == [["main_infer paddle", "", "1.40", ""]]


def training_record(folder, runs):
    record = {
        "benchmark": "bfloat16_training",
        "settings": {"seeds": 2, "epochs": 3},
        "about": {"machine": MACHINE, "paddlepaddle": "3.3.1", "date": "2026-12-24T10:00:00"},
        "runs": [dict(zip(("seed", "precision", "steps", "losses", "accuracy"), run)) for run in runs],
    }
    (folder / "bfloat16_training.json").write_text(json.dumps(record))


def test_training_in_bfloat16_is_compared_with_the_spread_of_seeds(tmp_path):
    training_record(
        tmp_path,
        [
            (0, "float32", 600, [1.0, 0.5], 80.0),
            (1, "float32", 600, [1.4, 0.7], 84.0),
            (0, "bfloat16", 600, [1.3, 0.6], 79.0),
            (1, "bfloat16", 600, [1.4, 0.65], 82.0),
        ],
    )
    text = page(tmp_path)
    found = rows(text)
    assert found["float32"] == ["0, 1", "600", "0.6000 (0.5000 to 0.7000)", "82.00 (80.00 to 84.00)"]
    assert found["bfloat16"] == ["0, 1", "600", "0.6250 (0.6000 to 0.6500)", "80.50 (79.00 to 82.00)"]
    assert found["bfloat16 and float32 with the same seed, largest difference"] == ["0.3000", "0.1000"]
    assert found["float32 with different seeds, highest minus lowest"] == ["0.4000", "0.2000"]
    assert "\npython benchmarks/bfloat16_training.py --seeds 2 --epochs 3\n" in text
    assert "\n- `float32`, `bfloat16`: paddlepaddle 3.3.1\n" in text


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", r"a\.json is not JSON"),
        ('{"benchmark": "knitting"}', r"a\.json: not a record of train_step, "),
        (None, "no record found"),
    ],
)
def test_a_folder_that_is_not_one_of_records_is_refused(tmp_path, content, message):
    if content:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        page(tmp_path)


def inference_records(folder):
    """Write records of two batch sizes, of first answers, and of a load test."""
    folder.mkdir(exist_ok=True)
    about = {
        "benchmark": "infer",
        "date": "2026-12-24T10:00:00+00:00",
        "machine": MACHINE,
        "measure": "images_per_s",
        "against": "torch float32",
    }
    for batch, theirs in ((8, 2.5), (1, 2.0)):
        (folder / f"{batch}.json").write_text(
            json.dumps(
                {
                    **about,
                    "settings": {"model": "vit", "precision": "float32", "batch_size": batch},
                    "sides": {
                        "onnxruntime float32": {
                            "about": {"onnxruntime": "1.2"},
                            "rounds": [{"images_per_s": value} for value in (4.0, 5.0, 9.0)],
                        },
                        "torch float32": {
                            "about": {"torch": "2.13", "threads": 2},
                            "rounds": [{"images_per_s": theirs}],
                        },
                    },
                }
            )
        )
    (folder / "start.json").write_text(
        json.dumps(
            {
                **about,
                "benchmark": "infer_startup",
                "measure": "seconds",
                "against": "torch",
                "settings": {"model": "vit", "precision": "float32"},
                "sides": {
                    "main_infer": {"about": {}, "rounds": [{"seconds": value} for value in (1.0, 3.0, 1.5)]},
                    "torch": {"about": {}, "rounds": [{"seconds": 3.0}]},
                },
            }
        )
    )
    (folder / "load.json").write_text(
        json.dumps(
            {
                "benchmark": "serve_load",
                "date": about["date"],
                "machine": MACHINE,
                "about": {"model": "vit", "engine": "paddle"},
                "settings": {"requests": 10000, "connections": 16},
                "found": {
                    "requests_per_s": 123.4,
                    "p50_ms": 20.0,
                    "p99_ms": 50.0,
                    "slowest_ms": 1234.0,
                    "errors": 0,
                    "mean_batch": 7.5,
                },
                "resident_mb": [[0, 400.2], [5000, 412.9], [10000, 414.4]],
            }
        )
    )


def test_the_tables_of_inference_tell_medians_and_ratios(tmp_path):
    inference_records(tmp_path)
    text = inference_tables(tmp_path, INFERENCE["en/inference.md"])
    found = rows(text)
    assert "| side | batch 1 | batch 8 |\n" in text
    assert found["onnxruntime float32"] == ["5.00 (2.50 x)", "5.00 (2.00 x)"] and found["torch float32"] == [
        "2.00",
        "2.50",
    ]
    assert found["main_infer"] == ["1.50 (1.00 to 3.00)", "0.500"] and found["torch"] == [
        "3.00 (3.00 to 3.00)",
        "1",
    ]
    assert found["vit, paddle"] == [
        "10,000",
        "16",
        "123",
        "20.0",
        "50.0",
        "1,234",
        "7.50",
        "0",
        "400, 413, 414",
    ]
    assert (
        "; onnxruntime 1.2, torch 2.13. Values are medians" in text
        and "Some CPU, 2 cores, AVX-512, 4.0 GB" in text
    )

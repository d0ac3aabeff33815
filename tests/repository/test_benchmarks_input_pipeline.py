import json

import pytest
from data_files import PHOTOS

from benchmarks import input_pipeline

TINY = [
    "--images",
    str(PHOTOS[0].parent),
    "--input_size",
    "32",
    "--batch_size",
    "2",
    "--batches",
    "2",
    "--rounds",
    "2",
    "--warmup",
    "0",
]


def test_it_runs_and_records(tmp_path, capsys):
    path = tmp_path / "record.json"
    input_pipeline.main([*TINY, "--image_backend", "pillow", "--json", str(path)])
    record = json.loads(path.read_text())
    side = record["sides"]["pillow"]
    assert len(side["rounds"]) == 2 and min(round["images_per_s"] for round in side["rounds"]) > 0
    assert side["about"]["images"] == 4 and "pillow" in side["about"]
    assert "images_per_s" in capsys.readouterr().out


def test_a_round_needs_a_batch_to_time():
    with pytest.raises(ValueError, match="--batches 1"):
        input_pipeline.main([*TINY, "--image_backend", "pillow", "--batches", "1"])

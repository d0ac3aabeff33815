"""benchmarks/sidebyside.py: turns, ratios, records, and the process of the opponent."""

import json
import sys

import pytest

from benchmarks import sidebyside
from benchmarks.sidebyside import OtherProcess, Side, alternate, medians, ratios, report
from util.compute import operations

CHILD = """
import sys
sys.path.insert(0, {root!r})
from benchmarks import sidebyside

def prepare():
    print("a library talks")
    sidebyside.import_torch(type("Args", (), {{"torch_path": "", "torch_import": {module!r}}}))
    state = []

    def round():
        print("and talks")
        state.append(0)
        return {{"images_per_s": 10.0 * len(state)}}
    return round, {{"torch": "9.9"}}

sidebyside.serve(prepare)
"""


def child(tmp_path, module="json"):
    path = tmp_path / "child.py"
    path.write_text(CHILD.format(root=str(sidebyside.ROOT), module=module))
    return [sys.executable, path]


def test_sides_take_turns_back_and_forth_and_the_warm_up_does_not_count():
    order = []

    def side(name):
        return Side(name, lambda: order.append(name) or {"n": len(order)})

    results = alternate([side("a"), side("b")], rounds=3, warmup=1)
    assert order in (list("abbaabba"), list("baabbaab"))
    counted = list(enumerate(order, 1))[2:]
    assert results == {name: [{"n": number} for number, who in counted if who == name] for name in "ab"}


def test_medians_and_ratios_round_by_round():
    results = {"a": [{"x": 1.0}, {"x": 6.0}, {"x": 30.0}], "b": [{"x": 1.0}, {"x": 2.0}, {"x": 6.0}]}
    assert medians(results) == {"a": {"x": 6.0}, "b": {"x": 2.0}}
    assert ratios(results, "x", "b") == {"a": (3.0, 1.0, 5.0)}


def test_another_process_answers_in_turn_whatever_its_libraries_print(tmp_path, capsys):
    other = OtherProcess("torch", child(tmp_path))
    ours = Side("ours", lambda: {"images_per_s": 60.0}, about={"paddle": "1"})
    results = alternate([ours, other], rounds=3, warmup=1)
    assert results["torch"] == [{"images_per_s": value} for value in (20.0, 30.0, 40.0)]
    assert other.process.returncode == 0
    path = tmp_path / "record.json"
    report("demo", [ours, other], results, measure="images_per_s", settings={"size": 8}, json_path=path)
    said = capsys.readouterr().out
    assert "2.00 x torch (rounds 1.50 to 3.00)" in said and "30 images_per_s" in said
    record = json.loads(path.read_text())
    assert record["ratios"] == {"ours": {"median": 2.0, "lowest": 1.5, "highest": 3.0}}
    assert record["sides"]["torch"] == {
        "about": {"torch": "9.9"},
        "median": {"images_per_s": 30.0},
        "rounds": results["torch"],
    }
    assert (
        record["settings"] == {"size": 8} and record["machine"]["cores"] >= 1 and record["against"] == "torch"
    )
    assert operations.describe().endswith(record["machine"]["instruction_set"])


def test_what_ails_the_other_process_is_said(tmp_path):
    with pytest.raises(ValueError, match="child.py: No module named 'no_such_module'"):
        OtherProcess("torch", child(tmp_path, "no_such_module"))
    with pytest.raises(ValueError, match="no_such_python: "):
        OtherProcess("torch", [tmp_path / "no_such_python"])
    with pytest.raises(ValueError, match="ended with code 3"):
        OtherProcess("torch", [sys.executable, "-c", "import sys; sys.exit(3)"])


def test_the_other_process_gets_the_users_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "set for Paddle")
    code = "import json, os; print(json.dumps({'about': {'seen': os.environ.get('MKL_DEBUG_CPU_TYPE')}}))"
    other = OtherProcess("torch", [sys.executable, "-c", code])
    other.close()
    assert other.about["seen"] != "set for Paddle"


def test_impossible_numbers_of_rounds():
    with pytest.raises(ValueError, match="--rounds 0"):
        alternate([], rounds=0, warmup=0)


def test_a_record_names_no_place_on_this_machine():
    expected = {
        str(sidebyside.ROOT / "data" / "photos"): "data/photos",
        "/somewhere/else/python3": ".../python3",
        "--json=/somewhere/x.json": "--json=.../x.json",
        "torch": "torch",
        8: 8,
    }
    assert {value: sidebyside._portable(value) for value in expected} == expected

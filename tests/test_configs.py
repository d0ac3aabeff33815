"""Every file in configs/ is accepted by the script that its own header names."""
import importlib
import re
import shlex

import pytest
from scripts import ROOT

CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))


def test_there_are_configs():
    assert {"configs/demo/pretrain.yaml", "configs/demo/finetune.yaml", "configs/demo/linprobe.yaml"} <= set(CONFIGS)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_command_in_its_header_parses(config, monkeypatch):
    header = [line for line in (ROOT / config).read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    command = " ".join(line.lstrip("# ") for line in header).replace("\\ ", " ")
    command = re.search(r"Command:\s+python (?:-m paddle\.distributed\.launch .*?)?(\S+\.py) (.*)", command)
    assert command, f"{config}: the header gives no 'Command:  python SCRIPT.py --config {config}'"
    script, flags = command.groups()
    words = shlex.split(flags)
    assert words[:2] == ["--config", config]
    monkeypatch.chdir(ROOT)
    parser = importlib.import_module(script.removesuffix(".py").replace("/", ".")).get_args_parser()
    args = parser.parse(words[:2])
    assert args != parser.parse([]) and args.config == config

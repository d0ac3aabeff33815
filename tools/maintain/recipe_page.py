"""Write the lists of recipes in docs/*/recipes.md from the headers of the files in configs/.

    python tools/maintain/recipe_page.py

A header has two lines of title, English and Chinese, and then fields: Command, Hardware, Batch, Time,
Expected, Source.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.maintain.page_marks import between_marks
from util.system.atomic_file import atomic_write

MARKS = "<!-- tools/maintain/recipe_page.py writes from here on -->\n", "<!-- to here -->\n"
ORDER = ("baseline", "pretrain", "finetune", "scratch", "linprobe", "evaluate")
FIELDS = ("Hardware", "Time", "Expected", "Source")
# Page: number of the title line, names of the columns, {folder: heading}.
PAGES: dict[str, tuple[int, Sequence[str], Mapping[str, str]]] = {
    "en/recipes.md": (
        0,
        ("file", "what", "hardware", "time", "expected", "source"),
        {
            "photos": "Your own photographs",
            "cifar10": "CIFAR-10",
            "cifar100": "CIFAR-100",
            "imagenette": "Imagenette",
            "imagenet": "ImageNet",
            "ablations": "The paper's ablations",
        },
    ),
    "zh/recipes.md": (
        1,
        ("文件", "内容", "硬件", "时间", "预期结果", "来源"),
        {
            "photos": "自己的照片",
            "cifar10": "CIFAR-10",
            "cifar100": "CIFAR-100",
            "imagenette": "Imagenette",
            "imagenet": "ImageNet",
            "ablations": "论文的消融实验",
        },
    ),
}


def get_args_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)


def main() -> None:
    for page, (number, columns, folders) in PAGES.items():
        path = ROOT / "docs" / page
        content = between_marks(
            path.read_text(encoding="utf-8"), tables(number, columns, folders), path, MARKS
        )
        with atomic_write(path, "w") as file:
            file.write(content)


def header(path: Path) -> tuple[list[str], dict[str, str]]:
    """Returns the title lines and {field: value} of a config's header; lines of a command are joined."""
    titles: list[str] = []
    fields: dict[str, str] = {}
    name = None
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if named := re.match(r"# ([A-Z][a-z]+): +(.*)", line):
            name, value = named.groups()
            fields[name] = value
        elif name:
            fields[name] = fields[name].removesuffix("\\").rstrip() + " " + line.lstrip("# ")
        else:
            titles.append(line.lstrip("# "))
    return titles, fields


def tables(number: int, columns: Sequence[str], folders: Mapping[str, str]) -> str:
    """Make a table for each folder of configs/, with a row for each file."""
    lines: list[str] = []
    for folder, heading in folders.items():
        lines += [f"### {heading}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for path in sorted((ROOT / "configs" / folder).glob("*.yaml"), key=_place):
            titles, fields = header(path)
            file = f"[{folder}/{path.stem}](../../configs/{folder}/{path.name})"
            lines.append("| " + " | ".join([file, titles[number], *(fields[name] for name in FIELDS)]) + " |")
        lines.append("")
    return "\n".join(lines)


def _place(path: Path) -> tuple[int, list[int | str]]:
    """Key for sorting: pretraining before finetuning, and decoder_depth_2 before decoder_depth_12."""
    first = next((place for place, word in enumerate(ORDER) if path.stem.startswith(word)), len(ORDER))
    return first, [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]


if __name__ == "__main__":
    get_args_parser().parse_args()
    main()

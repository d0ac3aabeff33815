"""Links, paths and flags of the documentation exist, its languages agree, its diagrams follow the imports."""

import ast
import re
import unicodedata
from collections.abc import Iterator

import pytest
from test_imports import ALLOWED, GRAPH, MODULES, ROOT, kind

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("README*.md"), ROOT / "util/README.md", *ROOT.glob("docs/*/*.md")]
}
TWINS = [
    ("README.md", "README.zh-CN.md"),
    *((name, name.replace("docs/en/", "docs/zh/")) for name in PAGES if name.startswith("docs/en/")),
]
ONLY_CHINESE = {"docs/zh/glossary.md"}
# Flags of other programs: Paddle's launcher, VisualDL, pip, curl, git, SLURM and glibc's.
FOREIGN_FLAGS = {
    "gpus",
    "nnodes",
    "master",
    "nproc_per_node",
    "logdir",
    "language",
    "disable-telemetry",
    "nodes",
    "data-binary",
    "ntasks-per-node",
    "gpus-per-node",
    "signal",
    "durations",
}


def code_blocks(text: str) -> list[tuple[str, str]]:
    """Returns (language, text) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def headings(text: str) -> list[tuple[int, str]]:
    return [
        (len(marks), words) for marks, words in re.findall(r"^(#+) (.*)$", prose(text), flags=re.MULTILINE)
    ]


def anchors(text: str) -> set[str]:
    """Anchors that GitHub gives to the headings."""
    return {re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-") for _, words in headings(text)}


def rows_and_items(text: str) -> list[tuple[int, int]]:
    """Returns the numbers of table rows and of list items in each section."""
    return [
        tuple(len(re.findall(pattern, section, flags=re.MULTILINE)) for pattern in (r"^\|", r"^(?:- |\d\. )"))
        for section in re.split(r"^#+ .*$", prose(text), flags=re.MULTILINE)
    ]


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Returns the code blocks without comments; of output and layouts only the number of lines."""
    found = []
    for language, block in code_blocks(text):
        lines = [
            re.sub(r"(^|\s+)# .*| --language (en|zh)\b", "", line).rstrip() for line in block.splitlines()
        ]
        found.append((language, lines if language in ("bash", "python") else [str(len(lines))]))
    return found


def test_each_page_has_a_twin():
    assert {page for pair in TWINS for page in pair} | ONLY_CHINESE | {"util/README.md"} == PAGES.keys()


@pytest.mark.parametrize("english, chinese", TWINS)
def test_twins_have_the_same_skeleton(english, chinese):
    first, second = PAGES[english], PAGES[chinese]
    assert [level for level, _ in headings(first)] == [level for level, _ in headings(second)]
    assert rows_and_items(first) == rows_and_items(second)
    assert commands(first) == commands(second)


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_readme_is_short(page):
    lines = PAGES[page].splitlines()
    assert len(lines) <= 170
    assert not [line for line in lines if columns(line) > 120]
    for bullet in re.findall(r"^- .*(?:\n(?!- |\n).*)*", prose(PAGES[page]), flags=re.MULTILINE):
        assert bullet.count("\n") < 2, bullet


def test_links_lead_somewhere():
    for page, text in PAGES.items():
        for target in re.findall(r"\]\((?!https?:)([^)\s]*)\)", prose(text)):
            path, _, anchor = target.partition("#")
            file = (ROOT / page).parent / path if path else ROOT / page
            assert file.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), f"{page}: {target}"


def test_paths_exist():
    mentioned = re.compile(
        r"(?<![\w./-])((?:util|tools|docs|tests|configs|benchmarks|records|requirements|notebooks|data)"
        r"/[\w./-]*\w|(?:main|engine|models)_\w+\.py|layer\.py)"
    )
    made = re.compile(r"docs/images/\w*$|data/(train|val)|configs/my")  # beginnings of names, and examples
    for page, text in PAGES.items():
        for path in mentioned.findall(text):
            there = (ROOT / path).exists() or list(ROOT.glob(path + "*"))
            assert there or made.match(path), f"{page}: {path}"


def test_modules_named_with_dots_exist():
    for page, text in PAGES.items():
        for name in re.findall(r"\butil(?:\.\w+)+", text):
            parts = name.split(".")
            module = next(
                (
                    ".".join(parts[:count])
                    for count in range(len(parts), 1, -1)
                    if ".".join(parts[:count]) in MODULES
                ),
                None,
            )
            if parts[1] in ALLOWED and len(parts) == 2:
                continue
            assert module, f"{page}: {name}"
            rest = parts[module.count(".") + 1 :]
            assert not rest or re.search(
                rf"^(?:def|class) {rest[0]}\b|^{rest[0]}\b",
                MODULES[module].read_text(encoding="utf-8"),
                flags=re.MULTILINE,
            ), f"{page}: {name}"


def test_flags_exist():
    sources = [
        *ROOT.glob("*.py"),
        *ROOT.glob("util/options/*.py"),
        *ROOT.glob("tools/**/*.py"),
        *ROOT.glob("benchmarks/**/*.py"),
    ]
    known = {
        flag for path in sources for flag in re.findall(r"--(\w[\w-]*)", path.read_text(encoding="utf-8"))
    }
    for page, text in PAGES.items():
        assert not set(re.findall(r"(?<![\w-])--(\w[\w-]*)", text)) - known - FOREIGN_FLAGS, page


def test_the_table_of_rooms_is_that_of_the_code():
    rows = re.findall(
        r"^\| \[(\w+)\]\(\w+\) \| (.*?) \| (.*?) \|$", PAGES["util/README.md"], flags=re.MULTILINE
    )
    assert {room: set(re.findall(r"\w+", others)) for room, _, others in rows} == ALLOWED
    for room, sentence, _ in rows:
        docstring = ast.get_docstring(
            ast.parse((ROOT / "util" / room / "__init__.py").read_text(encoding="utf-8"))
        )
        assert " ".join(docstring.split()).startswith(sentence)


def edges(text: str) -> Iterator[tuple[str, str, str]]:
    """Yields (module, arrow, module) of the Mermaid diagrams; a node is declared as name["path<br>words"]."""
    for language, block in code_blocks(text):
        if language == "mermaid":
            names = {
                node: re.match(r"[\w/.]+?(?=\.py\b|<|$)", label).group().replace("/", ".")
                for node, label in re.findall(r"(\w+)\[\"?([^\]\"]+)\"?\]", block)
            }
            bare = re.sub(r"\[[^\]]*\]", "", block)
            for first, arrow, second in re.findall(
                r"^\s*(\w+)\s*(-->|-\.->)(?:\|[^|]*\|)?\s*(\w+)\s*$", bare, flags=re.MULTILINE
            ):
                yield names[first], arrow, names[second]


def reached(start: str, solid: dict[str, set[str]]) -> set[str]:
    """Returns the modules to which solid arrows lead from one."""
    found, left = set(), [start]
    while left:
        found |= {left[0]}
        left = [*left[1:], *(solid.get(left[0], set()) - found)]
    return found


@pytest.mark.parametrize("page", ["docs/en/architecture.md", "docs/zh/architecture.md"])
def test_the_walks_follow_the_imports(page):
    """A solid arrow is an import; a dotted one a call of an object that a module above both hands over."""
    found = list(edges(PAGES[page]))
    assert len(found) >= 25
    solid = {
        first: {third for each, arrow, third in found if each == first and arrow == "-->"}
        for first, _, _ in found
    }
    for first, arrow, second in found:
        assert first in MODULES and second in MODULES, (first, second)
        if arrow == "-->":
            assert second in GRAPH[first], f"{first} does not import {second}"
        else:
            assert second not in GRAPH[first], f"{first} imports {second}: draw a solid arrow"
            assert kind(second) not in ("main_", "engine_"), f"{second} is called by scripts only"
            assert [name for name in solid if {first, second} <= reached(name, solid)], (
                f"nobody hands {second} to {first}"
            )

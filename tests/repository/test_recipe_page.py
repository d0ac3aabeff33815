"""docs/*/recipes.md: the lists are those of the headers, and the scripts parse every command."""

import importlib
import re
import shlex

import pytest
from scripts import ROOT

from tools.maintain import recipe_page
from tools.maintain.page_marks import between_marks

PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in recipe_page.PAGES}


def table_commands(page):
    """The commands of the table of other systems."""
    rows = PAGES[page][PAGES[page].index(recipe_page.MARKS[1]) :].splitlines()
    return [
        row.split("|")[-2].strip().strip("`")
        for row in rows
        if row.count("|") == 9 and "`" in row.split("|")[-2]
    ]


@pytest.mark.parametrize("page", PAGES)
def test_the_lists_are_those_of_the_headers(page):
    tables = recipe_page.tables(*recipe_page.PAGES[page])
    written = between_marks(PAGES[page], tables, page, recipe_page.MARKS)
    assert PAGES[page] == written, "run python tools/maintain/recipe_page.py"
    listed = re.findall(r"\]\(\.\./\.\./configs/(\S+?)\)", tables)
    assert sorted(listed) == sorted(
        path.relative_to(ROOT / "configs").as_posix()
        for path in (ROOT / "configs").rglob("*.yaml")
        if path.parent.name != "demo"
    )


def test_each_recipe_has_a_title_in_each_language():
    for path in (ROOT / "configs").rglob("*.yaml"):
        if path.parent.name != "demo":
            english, chinese = recipe_page.header(path)[0]
            assert english.isascii() and re.search("[\u4e00-\u9fff]", chinese)


def test_a_header_is_read(tmp_path):
    (tmp_path / "x.yaml").write_text(
        "# A title\n# 标题\n# Command:   python x.py --config \\\n#            y.yaml\n# Time:      1 h\n"
        "epochs: 3\n# Later:   no\n",
        encoding="utf-8",
    )
    assert recipe_page.header(tmp_path / "x.yaml") == (
        ["A title", "标题"],
        {"Command": "python x.py --config y.yaml", "Time": "1 h"},
    )


def test_both_languages_have_the_same_table():
    ticks = [
        ["✓" in cell for row in page.splitlines() if "✓" in row for cell in row.split("|")[2:-2]]
        for page in PAGES.values()
    ]
    assert table_commands("en/recipes.md") == table_commands("zh/recipes.md") and ticks[0] == ticks[1]
    assert len(table_commands("en/recipes.md")) >= 40


def test_the_scripts_understand_the_commands(monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in table_commands("en/recipes.md"):
        if command.startswith("jupyter notebook"):
            assert (ROOT / command.split()[-1]).is_file()
            continue
        script, words = re.fullmatch(
            r"(?:python -m paddle\.distributed\.launch .* )?(\S+)\.py(.*)", command
        ).groups()
        parser = importlib.import_module(script.replace("/", ".")).get_args_parser()
        parse = getattr(parser, "parse", parser.parse_args)
        args = vars(parse(shlex.split(words)))
        for name in re.findall(r"--(\w+)", words):
            assert name in args or name == "cls_token", command

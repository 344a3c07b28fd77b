"""README and docs: what they show runs, what they name is there, and links lead somewhere.

A block of commands or Python is run, in a folder of its own a page. One that needs data, a network,
another machine or minutes has a comment right above it, ``<!-- not run: why -->``; the command
lines in it are read by their programs all the same.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import options_page
import pytest

import certmask_jax as cm
from certmask_jax.programs import (
    attack,
    audit,
    benchmark,
    certification_config,
    certification_options,
    certify,
    choose,
    compare,
    convert_weights,
    export,
    leaderboard,
    merge,
    recipe_options,
    report,
    train,
    training_options,
)
from certmask_jax.programs.choosing import choose_options
from certmask_jax.weights import torch_files
from experiments.papers import runner

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "certmask_jax"
INCLUDED = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += sorted(page for page in DOCS.rglob("*.md") if page.name not in INCLUDED)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

MOST_LINES = 120  # of the README, and fewer
MOST_WORDS = 40  # of a sentence


class Block(NamedTuple):
    """A fenced block of a page."""

    line: int
    language: str
    file: str | None  # as which it is to be saved
    text: str
    not_run: str | None  # why


def _blocks(page: Path) -> list[Block]:
    blocks: list[Block] = []
    lines = page.read_text().splitlines()
    start = None
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start = number
            continue
        above = lines[start - 1].strip() if start else ""
        why = re.fullmatch(r"<!-- not run: (.+) -->", above)
        text = "\n".join(lines[start + 1 : number])
        kind = re.fullmatch(r'(\w*)(?: title="([\w.]+)")?', lines[start].strip("` "))
        assert kind, f"{page.name}:{start + 1}: {lines[start]}"
        blocks.append(Block(start + 1, kind[1], kind[2], text, why[1] if why else None))
        start = None
    assert start is None, f"{page.name}:{start}: a block without an end"
    return blocks


def _prose(page: Path) -> str:
    """The text of a page without blocks and comments."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def _commands(text: str) -> list[list[str]]:
    """The commands of a block, as words."""
    joined = text.replace("\\\n", " ")
    lines = [line.strip().removeprefix("!") for line in joined.splitlines()]
    each = [part for line in lines for part in line.split(" && ")]
    return [shlex.split(part, comments=True) for part in each if part.strip()]


def _program(words: list[str]) -> tuple[str, list[str]] | None:
    """``certmask NAME ...`` or ``python -m experiments.NAME ...`` as name and arguments."""
    if words[:1] == ["certmask"]:
        return words[1].replace("-", "_"), words[2:]
    if words[:2] == ["python", "-m"] and words[2].startswith("experiments."):
        return words[2].removeprefix("experiments."), words[3:]
    return None


def _read(name: str, arguments: list[str]) -> None:
    """Reads a command line as its program would; raises what is wrong with it."""
    if name == "certify":
        parsed = certification_options.parser().parse_args(arguments)
        certification_config.check_modes(parsed)
        if not parsed.list:
            certification_config.read_config(parsed)
    elif name == "train":
        parsed = training_options.parser().parse_args(arguments)
        training_options.check_uses(parsed, recipe_options.read(parsed))
    elif name == "choose":
        choose_options.read(choose.parser().parse_args(arguments))
    elif name.startswith("papers."):
        paper = importlib.import_module(f"experiments.{name}").PAPER
        paper.table(runner.parser(paper).parse_args(arguments).table)
    elif name == "benchmark":
        benchmark.read_config(benchmark.parser().parse_args(arguments))
    else:
        others = {
            "attack": attack,
            "compare": compare,
            "report": report,
            "leaderboard": leaderboard,
            "audit": audit,
            "merge": merge,
            "convert_weights": convert_weights,
            "export": export,
        }
        others[name].parser().parse_args(arguments)


MAINS = {
    "certify": certify.main,
    "choose": choose.main,
    "train": train.main,
    "attack": attack.main,
    "report": report.main,
    "leaderboard": leaderboard.main,
    "compare": compare.main,
    "audit": audit.main,
    "merge": merge.main,
    "convert_weights": convert_weights.main,
    "export": export.main,
}


SAME = ["--num-images", "20"]


def _defenses(name: str, arguments: list[str]) -> list[str]:
    """Those of a command that differs from others in these alone: all of them make one run."""
    options, specs = arguments[:2], arguments[3::2]
    plain = name == "certify" and options == SAME and set(arguments[2::2]) == {"--defense"}
    return specs if plain else []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_block_runs_or_says_why_not(page):
    for block in _blocks(page):
        where = f"{page.name}:{block.line}"
        assert block.language in ("bash", "python", "text", "toml"), f"{where}: {block.language!r}"
        if block.not_run is not None:
            assert len(block.not_run.split()) > 1, f"{where}: why is it not run?"
        elif block.language == "bash":
            others = [words for words in _commands(block.text) if _program(words) is None]
            assert not others, f"{where}: {others[0]} is not run by a test; say why above the block"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_command_lines_that_are_not_run_are_read_by_their_programs(page):
    for block in _blocks(page):
        if block.language != "bash" or block.not_run is None:
            continue
        for name, arguments in filter(None, map(_program, _commands(block.text))):
            try:
                _read(name, arguments)
            except ValueError as error:
                pytest.fail(f"{page.name}:{block.line}: {error}")


def _runs(block: Block) -> bool:
    return block.language in ("bash", "python") and block.not_run is None


RUN = [page for page in PAGES if any(map(_runs, _blocks(page)))]


@pytest.mark.parametrize("page", RUN, ids=[str(page.relative_to(ROOT)) for page in RUN])
def test_what_a_page_shows_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in _blocks(page):
        where = f"{page.name}:{block.line}"
        if not _runs(block):
            continue
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text)
            monkeypatch.syspath_prepend(tmp_path)
            monkeypatch.delitem(sys.modules, Path(block.file).stem, raising=False)
        elif block.language == "python":
            exec(compile(block.text, where, "exec"), {"__name__": "__main__"})
        commands = _commands(block.text) if block.language == "bash" else []
        for name, arguments in filter(None, map(_program, commands)):
            if not _defenses(name, arguments):
                assert MAINS[name](arguments) == 0, f"{where}: {name} {shlex.join(arguments)}"


def test_defenses_that_pages_show_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = [
        command
        for page in RUN
        for block in _blocks(page)
        if block.language == "bash" and _runs(block)
        for command in filter(None, map(_program, _commands(block.text)))
    ]
    shown = dict.fromkeys(spec for command in commands for spec in _defenses(*command))
    assert len(shown) > 10
    wanted = [word for spec in shown for word in ("--defense", spec)]
    assert certify.main([*SAME, *wanted]) == 0
    printed = capsys.readouterr().out
    assert all(spec.partition(":")[0] in printed for spec in shown)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_that_is_not_run_uses_what_is_there(page):
    for block in _blocks(page):
        if block.language != "python" or block.not_run is None:
            continue
        compile(block.text, f"{page.name}:{block.line}", "exec")
        for names in re.findall(r"\bcm\.([\w.]+)", block.text):
            member = cm
            for name in names.split("."):
                member = getattr(member, name)


def test_the_example_runs(capsys):
    runpy.run_path(str(ROOT / "examples" / "guard_digits.py"), run_name="__main__")
    assert "certified and wrong: 0" in capsys.readouterr().out


def test_the_two_commands_of_the_readme_are_these():
    blocks = [block.text for block in _blocks(ROOT / "README.md")]
    assert "pip install . && python -m experiments.certify" in blocks
    assert "pip install '.[test]' && python -m pytest -n 2" in blocks


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < MOST_LINES


def _sentences(page: Path) -> list[str]:
    """Sentences of the text: cells of tables, headings, list items and paragraphs end one."""
    text = re.sub(r"^--8<--.*$", "", _prose(page), flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)  # links as their words
    text = re.sub(r"`[^`]*`", "code", text)  # a piece of code is a word
    text = re.sub(r"^\s*(#+|[-*]|\d+\.|\|)\s", "\n\n", text, flags=re.MULTILINE)
    parts = re.split(r"\n\s*\n|\||(?<=[.!?:;])[\s)*\"]+", text)
    return [" ".join(part.split()) for part in parts if part.strip()]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_sentences_are_short(page):
    if page.name in ("references.md", "options.md"):
        pytest.skip("names of papers, or the programs' own help, which is as long as it is")
    longest = max(_sentences(page), key=lambda sentence: len(sentence.split()))
    assert len(longest.split()) <= MOST_WORDS, f"{page.name}: {longest}"


def test_sentences_are_told_apart(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\nOne `a b` two. Three\nfour.\n\n- five [six](x.md)\n| a | b c |\n")
    assert _sentences(page) == ["Title", "One code two.", "Three four.", "five six", "a", "b c"]


def _slug(heading: str) -> str:
    """As MkDocs makes an anchor of a heading."""
    plain = re.sub(r"[^\w\s-]", "", heading.replace("`", "").lower())
    return re.sub(r"[\s-]+", "-", plain.strip())


def _anchors(page: Path) -> set[str]:
    text = _prose(page)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {_slug(heading) for heading in headings} | set(re.findall(r'<a id="([\w-]+)">', text))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_file(), f"{page.name}: {target}"
        if linked.parent == DOCS and linked.name in INCLUDED:
            linked = ROOT / INCLUDED[linked.name]
        if anchor:
            assert anchor in _anchors(linked), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_an_anchor_is_there_once(page):
    anchors = re.findall(r'<a id="([\w-]+)">', page.read_text())
    assert len(anchors) == len(set(anchors))


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("nav:")[2]
    named = re.findall(r"[\w/]+\.md", navigation)
    assert sorted(named) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


TOOLS = ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers.python")


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of what it is in
        return False


@pytest.mark.skipif(
    not all(map(_has, TOOLS)), reason="needs mkdocs-material and mkdocstrings[python]"
)
def test_the_site_is_built_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    masks = (tmp_path / "site" / "api" / "masks" / "index.html").read_text()
    assert "budgeted_grid" in masks


def _cited(text: str) -> set[str]:
    """Sections of the page on soundness that a text cites: ``2.5`` or ``7``."""
    words = re.sub(r"\s+(#\s+)?", " ", text)
    return set(re.findall(r"[Ss]oundness,? (?:section )?(\d+(?:\.\d+)?)", words))


def test_every_section_that_the_code_cites_is_there():
    numbers = re.findall(r"^#+ (\d+(?:\.\d+)?) ", (DOCS / "soundness.md").read_text(), re.MULTILINE)
    assert len(numbers) == len(set(numbers))
    files = [
        file
        for folder in (PACKAGE, ROOT / "tests", ROOT / "experiments")
        for file in folder.rglob("*.py")
        if file != Path(__file__).resolve()
    ]
    cited = {file: _cited(file.read_text()) for file in files}
    for file, sections in cited.items():
        assert sections <= set(numbers), f"{file.relative_to(ROOT)}: {sections - set(numbers)}"
    assert {"2.5", "3.4", "6", "7"} <= set.union(*cited.values())


def test_citations_are_found_across_lines():
    assert _cited("(soundness, 2.5) Soundness, section\n    7; soundness,\n  # 3.4") == {
        "2.5", "7", "3.4",
    }  # fmt: skip


def test_the_map_of_the_house_names_files_and_rooms_that_are_there():
    text = (DOCS / "house.md").read_text()
    for path in re.findall(r"`([\w/]+\.py)`", text):
        assert (PACKAGE / path).is_file(), path
    rooms = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()}
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == rooms


def test_every_room_has_a_page_of_reference():
    rooms = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()}
    pages = {page.stem for page in (DOCS / "api").glob("*.md")} - {"index", "certmask_jax", "rules"}
    assert pages == rooms
    for room in rooms:
        assert f"::: certmask_jax.{room}\n" in (DOCS / "api" / f"{room}.md").read_text()


def test_the_flat_list_is_that_of_the_package():
    rows = re.findall(
        r"^\| (`.*?) \|", (DOCS / "api" / "certmask_jax.md").read_text(), re.MULTILINE
    )
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(cm.__all__)


def test_every_defense_has_a_page(capsys):
    assert certify.main(["--list"]) == 0
    section = capsys.readouterr().out.partition("\ndefenses:\n")[2]
    names = re.findall(r"^  (\w+) ", section.partition("\nmasks")[0], re.MULTILINE)
    assert {"double_masking", "robust_masking"} <= set(names)
    index = (DOCS / "defenses" / "index.md").read_text()
    for name in names:
        page = (DOCS / "defenses" / f"{name}.md").read_text()
        assert f"[`{name}`]({name}.md)" in index
        for part in ("**Idea.**", "**Paper.**", "## The rule", "## What is proved", "## Figures"):
            assert part in page, f"{name}: {part}"


def test_the_page_of_options_is_what_the_programs_have():
    assert options_page.PAGE.read_text() == options_page.text(), (
        "docs/guides/options.md is not what the programs have: write it anew with "
        "PYTHONPATH=. python tests/options_page.py"
    )


def test_modules_that_moved_are_where_the_changelog_says():
    moved = (ROOT / "CHANGELOG.md").read_text().partition("### What moved")[2]
    rows = re.findall(
        r"^\| .* \| (`certmask_jax.*) \|$", moved.partition("\n### ")[0], re.MULTILINE
    )
    assert len(rows) > 50
    for row in rows:
        first, *others = re.findall(r"`([\w.]+)`", row)  # the others stand beside the first
        room = first.rpartition(".")[0]
        for module in [first, *(f"{room}.{name}" for name in others)]:
            assert importlib.util.find_spec(module) is not None, module
    names = re.findall(r"^\| `[\w.]+`: (`.*`) \| `([\w.]+)` \|$", moved, re.MULTILINE)
    assert len(names) > 9
    for left, module in names:
        for name in re.findall(r"`(\w+)`", left):
            assert hasattr(importlib.import_module(module), name), (module, name)


def test_pytorch_is_installed_without_cuda():
    """Else pip fetches gigabytes of it on Linux, which nothing here uses."""
    commands = [
        (page.name, words)
        for page in PAGES
        for block in _blocks(page)
        if block.language == "bash"
        for words in _commands(block.text)
        if words[:2] == ["pip", "install"]
    ]
    asked = [(name, words) for name, words in commands if {"torch", "timm"} & _packages(words)]
    assert {name for name, _ in asked} >= {"weights.md", "CONTRIBUTING.md"}
    for name, words in asked:
        assert shlex.split(torch_files.CPU_INDEX) == words[-2:], (name, words)


def _packages(words: list[str]) -> set[str]:
    return {re.split("[=<>]", word)[0] for word in words[2:]}


def test_the_citation_names_this_version():
    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {cm.__version__}\n" in text

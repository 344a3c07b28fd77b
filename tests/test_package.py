"""The package as a whole: what importing it costs, and who may import whom."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import house_counts
import pytest

import certmask_jax
from certmask_jax import models
from certmask_jax._later import Later
from certmask_jax.models import named_models

PACKAGE = Path(certmask_jax.__file__).parent

# From the bottom up: what is in a room may import only its own room and those before it.
HOUSE = [
    "_version", "_later", "_text", "_settings", "_own_settings",
    "files", "masks", "mask_sets", "tables", "defenses", "rules", "inference", "attacks",
    "models", "data", "weights", "training", "certification", "pages", "programs", "__main__",
]  # fmt: skip
WITHOUT_JAX = ["masks", "mask_sets"]

KINDS = {"TwoParts", "NumpyFunction", "SeenTokens", "ViewedModel"}


def _modules() -> dict[str, Path]:
    """Every module of the package by its name in it; a room's ``__init__`` by that of the room."""
    names = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(part for part in parts if part != "__init__")] = file
    return names


def _imports(file: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports, wherever in it."""
    imports = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # ``from room import module`` needs the module, not the room's own names.
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            of_package = [name.removeprefix("certmask_jax.") in modules for name in inner]
            names = [
                name if there else node.module
                for name, there in zip(inner, of_package, strict=True)
            ]
        imports |= {n.removeprefix("certmask_jax.") for n in names if n.startswith("certmask_jax.")}
    return imports & set(modules)


def test_imports_point_down_only():
    modules = _modules()
    modules.pop("")
    assert {name.split(".")[0] for name in modules} == set(HOUSE)
    for name, file in modules.items():
        floor = HOUSE.index(name.split(".")[0])
        above = {m for m in _imports(file, modules) if HOUSE.index(m.split(".")[0]) > floor}
        assert not above, f"{name} imports {above}"


def test_no_two_modules_import_each_other_by_whatever_way():
    modules = _modules()
    graph = {name: _imports(file, modules) - {name, ""} for name, file in modules.items() if name}
    graphlib.TopologicalSorter(graph).prepare()  # names the circle


def test_no_module_has_the_name_of_a_function_beside_it():
    """Or ``help`` of the one would show the other."""
    modules = _modules()
    for name, file in modules.items():
        body = ast.parse(file.read_text()).body
        defined = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        room = name.rpartition(".")[0]
        for function in defined:
            assert f"{room}.{function}" not in modules, f"{name} has a function {function}"
            assert f"{name}.{function}" not in modules, f"{name} has a function {function}"


def test_found_is_no_name_of_what_was_found():
    """The word says that there was a search, and not what a reader holds: answers, boxes, times."""
    root = Path(__file__).resolve().parents[1]
    for folder in (PACKAGE, root / "experiments", root / "examples", root / "tests"):
        for file in folder.rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(text)) if re.search(r"\bfound\b", text) else ():
                given = None
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    given = node.id
                elif isinstance(node, ast.arg):
                    given = node.arg
                elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    given = node.name
                assert given != "found", f"{file}, line {getattr(node, 'lineno', '?')}"


def _types_asked_for(tree: ast.AST) -> set[str]:
    """The names of types that code compares an object's with, in whatever way."""
    asked: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            asked += node.args[1:] if node.func.id in ("isinstance", "issubclass") else []
        elif isinstance(node, ast.MatchClass):
            asked.append(node.cls)
        elif isinstance(node, ast.Compare):
            asked += [node.left, *node.comparators]
    within = [inner for one in asked for inner in ast.walk(one)]
    names = {inner.id for inner in within if isinstance(inner, ast.Name)}
    return names | {inner.attr for inner in within if isinstance(inner, ast.Attribute)}


def _asking_for(types: set[str]) -> dict[str, set[str]]:
    """The modules of the package that compare an object's type with some of these, and which."""
    texts = {name: file.read_text(encoding="utf-8") for name, file in _modules().items()}
    some = {name: text for name, text in texts.items() if any(one in text for one in types)}
    asked = {name: _types_asked_for(ast.parse(text)) & types for name, text in some.items()}
    return {name: of_these for name, of_these in asked.items() if of_these}


def test_one_module_knows_which_kinds_of_model_functions_there_are():
    """All others ask ``kind_of``, so that another kind is one more case, and not one of 45."""
    for code in ("isinstance(f, A | kinds.TwoParts)", "type(f) is TwoParts"):
        assert "TwoParts" in _types_asked_for(ast.parse(code))
    assert _asking_for(KINDS) == {"inference.model_kinds": KINDS}


def test_what_evidence_is_of_is_asked_of_a_defense_and_not_of_its_type():
    """But where an attack is chosen for it, or one of somebody's own is built."""
    assert set(_asking_for({"LocalDefense", "BandDefense"})) == {
        "attacks.attacked_defenses",
        "programs.attacking.opened_attacks",
        "programs.evidence_entries",
    }


def test_exact_work_on_masks_imports_no_jax():
    modules = _modules()
    exact = {name for name in modules if name.startswith(tuple(WITHOUT_JAX))}
    for name in exact:
        assert _imports(modules[name], modules) <= exact | {"_text"}, name
        roots = {
            (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
            for node in ast.walk(ast.parse(modules[name].read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert "jax" not in {root.split(".")[0] for root in roots}, name


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, certmask_jax; certmask_jax.{}; print(sorted({{m.split('.')[0] for m in "
        "sys.modules}} & {{'jax', 'numpy', 'flax', 'optax', 'orbax', 'tensorflow_datasets', "
        "'sklearn', 'PIL', 'tqdm', 'safetensors', 'tensorstore'}}))"
    )
    for name, loaded in (
        ("__all__", "[]"),
        ("mask_sets", "['numpy']"),
        ("predict", "['jax', 'numpy']"),
    ):
        result = subprocess.run(
            [sys.executable, "-c", code.format(name)], capture_output=True, text=True, check=True
        )
        assert result.stdout.strip() == loaded


def test_every_public_name_is_there():
    for name in certmask_jax.__all__:
        assert getattr(certmask_jax, name) is not None
    assert set(certmask_jax.__all__) <= set(dir(certmask_jax))


def _typed(one: Any) -> list[Any]:
    """A function; a class, with its functions; a module of the package, with all that it names."""
    if inspect.ismodule(one):
        names = getattr(one, "__all__", None) or [n for n in vars(one) if not n.startswith("_")]
        named = [getattr(one, name) for name in names]
        return [thing for n in named if not inspect.ismodule(n) for thing in _typed(n)]
    if not getattr(one, "__module__", "").startswith("certmask_jax"):
        return []
    if inspect.isclass(one):
        inner = [getattr(member, "fget", None) or member for member in vars(one).values()]
        inner = [getattr(member, "func", getattr(member, "__func__", member)) for member in inner]
        return [one, *(member for member in inner if inspect.isfunction(member))]
    return [inspect.unwrap(one)] if callable(one) else []


def test_annotations_of_what_is_public_can_be_read():
    """By ``typing.get_type_hints``, as tools do: of rooms, models and training too."""
    rooms = [importlib.import_module(f"certmask_jax.{room}") for room in house_counts.rooms_above()]
    public = [getattr(certmask_jax, name) for name in certmask_jax.__all__]
    things = [thing for one in (*public, *rooms, named_models) for thing in _typed(one)]
    assert {certmask_jax.predict, certmask_jax.defenses.PatchGuard.__init__} <= {*things}
    assert models.Model in things
    for thing in things:
        if getattr(thing, "__annotations__", None):
            assert typing.get_type_hints(thing), thing
    built = inspect.signature(certmask_jax.defenses.PatchGuard, eval_str=True).parameters
    assert built["threat"].annotation is certmask_jax.Threat


def test_a_module_for_annotations_is_imported_when_it_is_asked():
    assert Later("certmask_jax.masks.threats").Threat is certmask_jax.Threat
    with pytest.raises(ImportError):
        _ = Later("certmask_jax.nowhere").anything


def test_the_house_has_as_many_rooms_floors_and_arrows_as_its_page_says():
    arrows = house_counts.rooms_above()
    floors = house_counts.floors(arrows)
    counts = len(arrows), max(floors.values()), sum(map(len, arrows.values()))
    page = (Path(__file__).resolve().parents[1] / "docs" / "house.md").read_text(encoding="utf-8")
    assert "counts {} rooms on {} floors, with {} arrows".format(*counts) in page
    with pytest.raises(ValueError, match="a -> b -> a"):
        house_counts.floors({"a": {"b"}, "b": {"a"}})

"""What programs import before they know that they have work to do; no test of the time it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_ASKED = (  # words, and the exit status
    (["certify", "--help"], 0),
    (["certify", "--list"], 0),
    (["certify", "--defens", "x"], 2),
    (["choose", "--help"], 0),
    (["train", "--help"], 0),
    (["attack", "--help"], 0),
)
_OF_OTHERS = (
    *("flax", "optax", "orbax", "tensorstore", "safetensors", "jinja2", "jsonschema"),
    *("sklearn", "scipy", "matplotlib", "tensorflow_datasets"),
)
_OF_WORK = (  # for all but attack, whose room has its options' defaults
    *("certmask_jax.pages", "certmask_jax.attacks", "certmask_jax.training.step"),
    *("certmask_jax.training.loop", "certmask_jax.models.layers"),
    *("certmask_jax.programs.training_job", "certmask_jax.programs.opened_training"),
)
_CODE = """
import contextlib, gc, io, json, sys
from certmask_jax.programs import commands
from jax._src import xla_bridge

seen = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["certmask", *words]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            commands.main()
        except SystemExit as ended:
            status = ended.code
    seen.append({
        "status": status,
        "modules": sorted(sys.modules),
        "backends": xla_bridge.backends_are_initialized(),
        "collects": gc.isenabled(),
    })
print(json.dumps(seen))
"""


def test_help_lists_and_mistakes_import_nothing_that_works():
    """All in one process, so that each has what those before it imported."""
    words = json.dumps([words for words, _ in _ASKED])
    ended = subprocess.run(
        [sys.executable, "-c", _CODE, words],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    for (asked, status), seen in zip(_ASKED, json.loads(ended.stdout), strict=True):
        assert seen["status"] == status, asked
        modules = set(seen["modules"])
        assert not modules.intersection(_OF_OTHERS), asked
        if asked[0] != "attack":
            assert not modules.intersection(_OF_WORK), asked
        if asked[0] == "certify":
            assert "certmask_jax.certification.evaluation" not in modules
        assert not seen["backends"], asked
        assert seen["collects"], asked


def test_what_was_imported_is_looked_through_by_no_collection():
    code = """
import gc
from certmask_jax.programs import own_process

kept = [[] for _ in range(10)]
before = gc.get_freeze_count()  # 375 in Python 3.12, where what is built in begins so
with own_process.without_collections():
    assert not gc.isenabled()
assert gc.isenabled() and gc.get_freeze_count() == before  # nothing was imported

with own_process.without_collections():
    import numpy
frozen = gc.get_freeze_count()
assert gc.isenabled() and frozen > 10_000, frozen
assert len(gc.get_objects()) < 1_000, len(gc.get_objects())

with own_process.without_collections():
    import numpy
assert gc.get_freeze_count() <= frozen

gc.disable()
with own_process.without_collections():
    import colorsys
assert not gc.isenabled()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr

"""The package as a whole: what importing it costs, and who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import certmask_jax

PACKAGE = Path(certmask_jax.__file__).parent

# From the bottom up: a module may import only what stands before it.
HOUSE = [
    "_version", "text", "unreadable",
    "own_settings", "file_systems", "local_paths", "storage", "whole_files",
    "geometry", "threats", "placements", "mask_sets",
    "masked_images", "all_unions", "combined_sets", "rectangles", "finite_planes", "partitions",
    "pair_covers", "local_fields", "prediction_table",
    "defenses.defense", "defenses.first_round", "defenses.second_round",
    "defenses.double_masking_worst_case", "defenses.patchcleanser",
    "defenses.minority_reports", "defenses.certmask", "defenses.stable_unions", "defenses.mrcert",
    "defenses.settled_locations", "defenses.pair_cover", "defenses.votes", "defenses",
    "adversary", "preprocessing", "devices", "processes", "fingerprint", "compiled", "forward",
    "local_forward", "prediction", "out_of_memory", "early_exit", "predictor",
    "models.bagnet", "models.cifar_resnet", "models.resmlp", "models.resnetv2", "models.vit",
    "models.published", "models.spellings", "models", "models.output_choice",
    "weights.names", "weights.stored", "weights.gate", "weights.settings", "weights.google",
    "weights.kinds", "weights.torch_files", "weights.orbax_folders", "weights.reading",
    "weights.writing", "weights.families", "weights.places", "weights.adaptation", "weights",
    "data.class_index", "data.class_mapping", "data.listing", "data.folders",
    "data.label_tables", "data.imagenet_devkit", "data.image_lists",
    "data.decoding", "data.images", "data.subsets", "data.sources", "data",
    "loading", "run_images", "blocks", "tables", "table_writer",
    "training.cutout", "training.recipes", "training.augmentation", "training.input_pipeline",
    "training.checkpoints", "training.log", "training.step", "training",
    "report.records", "report.layout", "report.labels", "report.numbers", "report.notes",
    "report.size_screen", "report.screen", "report.files", "report.markup", "report",
    "certified_size",
    "certification",
    "finished_blocks", "evaluation", "planning", "precision_check", "merging",
]  # fmt: skip
EXACT = HOUSE[HOUSE.index("geometry") : HOUSE.index("prediction_table") + 1]


def _imports(file: Path) -> set[str]:
    """Modules that a file imports, by full name, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` needs the module, not the package's own names.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in names if name.removeprefix("certmask_jax.") in HOUSE}
            found |= modules if modules == names else {node.module} | names
    return found


def _name(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def test_imports_point_down_only():
    files = {_name(file): file for file in PACKAGE.rglob("*.py")}
    files.pop("__init__")
    assert set(files) == set(HOUSE)
    for name, file in files.items():
        own = {m.removeprefix("certmask_jax.") for m in _imports(file)} & set(HOUSE)
        above = {m for m in own if HOUSE.index(m) > HOUSE.index(name)}
        assert not above, f"{name} imports {above}"


def test_exact_floor_imports_no_jax():
    for name in EXACT:
        roots = {m.split(".")[0] for m in _imports(PACKAGE / f"{name}.py")}
        assert "jax" not in roots


def test_import_loads_only_jax_and_numpy():
    code = (
        "import sys, certmask_jax; print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'flax', 'optax', 'orbax', 'tensorflow_datasets', 'sklearn', 'PIL', 'tqdm', "
        "'safetensors', 'tensorstore'}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"

# SPDX-License-Identifier: Apache-2.0
"""The floors of the design, proved from the imports: a file imports only from lower floors or its own folder."""

import ast
from pathlib import Path

import pytest

import modeling_mclfir

PACKAGE = Path(modeling_mclfir.__file__).parent
NAME = PACKAGE.name

# The first part of a module's path inside the package → floor. Glue may import anything; "" is the package itself,
# whose public names lead up to floor 3.
FLOORS = {
    "": 3,
    "configuration_mclfir": 0,
    "configuration_mclfir_text": 0,
    "attention_mclfir": 1,
    "baseline_heads_mclfir": 1,
    "ag_man_mclfir": 1,
    "closed_form_mclfir": 1,
    "adapters_mclfir": 1,
    "trunk_mclfir": 1,
    "prompt_pool_mclfir": 1,
    "voting_mclfir": 1,
    "routing_mclfir": 1,
    "refinement_mclfir": 1,
    "processing_mclfir": 1,
    "processing_mclfir_text": 2,
    "losses": 1,
    "metrics": 1,
    "index": 1,
    "data": 1,
    "base_mclfir": 2,
    "spaces_mclfir": 2,
    "text_encoders_mclfir": 1,
    "text_projections_mclfir": 2,
    "text_tower_mclfir": 2,
    "text_spaces_mclfir": 2,
    "increments_mclfir": 2,
    "modeling_mclfir": 2,
    "modeling_mclfir_text": 3,
    "continual": 4,
    "training": 5,
    "evaluation": 5,
    "value_index": 5,
    "value_naming": 5,
    "study": 6,
    "catalogue": 6,
    "cli": 7,
    "demo": 7,
}
GLUE = ("auto_registration", "")
LEAVES = ("losses", "metrics", "index", "data")
# The evaluator and the training loop are one floor and one subject: they may know each other. So may the heads, and
# the models their base. The index of values reads tables and writes folders as training does.
SAME_HOUSE = {
    "configuration_mclfir": "configuration",
    "configuration_mclfir_text": "configuration",
    "training": "training",
    "evaluation": "training",
    "value_index": "training",
    "value_naming": "training",
    "cli": "cli",
    "demo": "cli",
    "base_mclfir": "models",
    "spaces_mclfir": "models",
    "increments_mclfir": "models",
    "modeling_mclfir": "models",
    "attention_mclfir": "heads",
    "baseline_heads_mclfir": "heads",
    "ag_man_mclfir": "heads",
    "closed_form_mclfir": "heads",
    "routing_mclfir": "heads",
    "refinement_mclfir": "heads",
}
# `evaluate` copies this file away before it imports it: it cannot use relative imports.
ABSOLUTE_ALLOWED = ("metrics/mclfir_retrieval/mclfir_retrieval.py",)


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def module_of(path: Path) -> list[str]:
    """Path inside the package, as the parts of a module's name; an __init__ is its folder."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports_of(source: str, folder: list[str]) -> set[str]:
    """Dotted paths inside our package of everything the source imports, in functions too. `folder` holds the file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found |= {name[len(NAME) :].lstrip(".") for name in names if name.split(".")[0] == NAME}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                assert node.level <= len(folder) + 1, "a relative import out of the package"
                base = folder[: len(folder) - node.level + 1]
                base = base + (node.module.split(".") if node.module else [])
            elif (node.module or "").split(".")[0] == NAME:
                base = node.module.split(".")[1:]
            else:
                continue
            if not base:  # `from .. import x`: a module of the package, or one of its public names
                found |= {alias.name if alias.name in FLOORS or alias.name in GLUE else "" for alias in node.names}
            else:
                found.add(".".join(base))
    return found


def folder_of(path: Path) -> list[str]:
    return list(path.relative_to(PACKAGE).parent.parts)


def problems(path: Path, source: str | None = None) -> list[str]:
    source = path.read_text() if source is None else source
    own = (module_of(path) or [""])[0]
    if own in GLUE:
        return []
    if own not in FLOORS:
        return [f"{path.relative_to(PACKAGE)} is on no floor: add it to FLOORS"]
    house = SAME_HOUSE.get(own, own)
    found = []
    for target in sorted(imports_of(source, folder_of(path))):
        other = target.split(".")[0]
        if SAME_HOUSE.get(other, other) == house:
            continue
        if own in LEAVES:
            found.append(f"{path.relative_to(PACKAGE)} is in a leaf, but imports {target!r}")
        elif other not in FLOORS or FLOORS[other] >= FLOORS[own]:
            found.append(f"{path.relative_to(PACKAGE)} (floor {FLOORS[own]}) imports {target!r}")
    return found


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    assert problems(path) == []


def travelling() -> list[Path]:
    return sorted(PACKAGE.glob("*_mclfir*.py"))


@pytest.mark.parametrize("path", travelling(), ids=lambda path: path.name)
def test_files_that_travel_import_flat_siblings_with_a_single_dot(path):
    siblings = {sibling.stem for sibling in travelling()}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != NAME for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                assert node.module.split(".")[0] != NAME
            else:
                assert node.level == 1 and node.module in siblings, f"line {node.lineno}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_our_own_modules_are_imported_relatively(path):
    if str(path.relative_to(PACKAGE)) not in ABSOLUTE_ALLOWED:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            # The package by its own name is no harm: it is there already.
            assert all(name.split(".")[0] != NAME or name == NAME for name in names), f"line {node.lineno}"


@pytest.mark.parametrize(
    "file, source, num_problems",
    [
        ("losses/info_nce.py", "from ..data import table", 1),
        ("losses/info_nce.py", "from .gather import gather_rows", 0),
        ("losses/info_nce.py", "def f():\n    from modeling_mclfir.continual import base", 1),
        ("losses/info_nce.py", "import modeling_mclfir.metrics as metrics", 1),
        ("losses/info_nce.py", "import torch\nfrom torch import nn", 0),
        ("metrics/mclfir_retrieval/mclfir_retrieval.py", "import modeling_mclfir.metrics as metrics", 0),
        ("configuration_mclfir.py", "from .attention_mclfir import AttributeHeads", 1),
        ("attention_mclfir.py", "from .adapters_mclfir import add_adapter", 1),
        ("modeling_mclfir.py", "from .adapters_mclfir import add_adapter\nfrom .losses import InfoNCE", 0),
        ("modeling_mclfir.py", "from . import continual", 1),
        ("continual/base.py", "from ..training.checkpoint import save_state", 1),
        ("training/loop.py", "from .. import evaluation\nfrom ..continual import METHODS", 0),
        ("training/loop.py", "from ..cli.main import main", 1),
        ("training/loop.py", "import modeling_mclfir", 0),
        ("adapters_mclfir.py", "from . import MclfirModel", 1),
        ("training/loop.py", "from .. import cli", 1),
        ("new_folder/file.py", "", 1),
    ],
)
def test_the_check_itself(file, source, num_problems):
    assert len(problems(PACKAGE / file, source)) == num_problems

"""The dependency rule, held over the AST, and tests which show that it can fail."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cdm_lightning", "datamodules", "callbacks")

# Highest layer first. A module may import from its own layer and from lower ones. A new module gets its name here.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "cli",
        "fit_command",
        "continual_command",
        "trainer_checks",
        "shards_command",
        "validate_command",
        "sample_command",
        "evaluate_command",
        "report_command",
        "audit_command",
        "audit_images",
        "restore_command",
        "attribute_command",
        "nearest_images",
        "forget_command",
        "forget_samples_command",
        "sample_receipt",
        "verify_forgotten_command",
        "collateral_command",
        "refit",
        "store_command",
        "given_images",
        "evaluation_images",
        "__main__",
    ),
    ("callbacks",),
    (
        "fitting",
        "training",
        "fit_checks",
        "private_fitting",
        "private_training",
        "card_making",
        "validation",
        "recipe",
        "ranks",
    ),
    ("module", "module_checks"),
    (
        "generation",
        "image_folder",
        "attribution",
        "coalitions",
        "credit_methods",
        "attribution_report",
        "report",
        "report_page",
        "report_audit",
        "page_elements",
        "credit_bars",
        "evaluation",
        "extractors",
        "feature_sums",
        "fidelity",
        "measurement",
        "intervals",
        "resampled_scores",
        "near_copies",
        "memorization",
        "membership",
        "audit",
        "audit_table",
        "canaries",
        "proportions",
        "yardstick",
        "contenders",
        "joint_classifier",
        "classifier_training",
        "soup",
        "line_up",
        "stratification",
        "cost",
        "comparison",
        "comparison_table",
        "continual",
        "continual_table",
        "metrics",
        "reference",
        "packing",
        "forgetting",
        "verify_forgotten",
        "collateral",
        "verification",
        "access",
        "source_choice",
        "collaboration",
        "store_commands",
        "fit_record",
        "source_forms",
        "restoration",
    ),
    (
        "composition",
        "distance",
        "guidance",
        "compartment",
        "compartments",
        "sampling",
        "solvers",
        "loss",
        "schedule",
        "optimizers",
        "store",
        "card",
        "claim",
        "exchange",
        "ledger",
        "privacy",
        "private_runs",
        "releases",
        "outputs",
        "run_sources",
        "transfer",
    ),
    ("public", "drafts", "pseudo_sources"),
    ("evidence",),
    (
        "denoiser",
        "gaussian_mechanism",
        "subsampled_gaussian",
        "private_gradient",
        "secret_noise",
        "released_statistics",
        "private_gaussians",
        "gaussians",
        "merging",
        "masked_gaussians",
        "prompts",
        "backbone",
        "guide_head",
        "conv_net",
        "unet",
        "uvit_layers",
        "public_weights",
        "ema",
        "tensor_files",
    ),
    (
        "allocator",
        "images",
        "sheets",
        "seeding",
        "shapley",
        "source_colours",
        "strategy",
        "json_option",
        "interpolation",
        "torch_files",
        "text_tables",
        "versions",
        "errors",
        "parser",
        "phase",
        "timeline",
    ),
)
LAYER = {name: -height for height, names in enumerate(LAYERS) for name in names}
MAY_IMPORT_PACKAGES = (
    "cli",
    "fit_command",
    "continual_command",
    "trainer_checks",
    "shards_command",
    "validate_command",
    "evaluate_command",
    "audit_command",
    "report_command",
    "audit_images",
    "forget_command",
    "forget_samples_command",
    "verify_forgotten_command",
    "attribute_command",
    "nearest_images",
    "given_images",
    "evaluation_images",
)  # the only ones that know datamodules and callbacks
DATAMODULES_MAY_IMPORT = ("errors", "seeding", "images")
ONLY_IN = {  # libraries, and the modules that may import them
    "lightning": ("module", "recipe", "ranks", "fit_command", "trainer_checks", "datamodules", "callbacks"),
    "webdataset": ("datamodules",),
    "safetensors": ("tensor_files", "public_weights"),
    "torch_fidelity": ("extractors", "metrics"),
    "opacus": ("subsampled_gaussian",),
}
BANNED_NAMES = ("utils", "helpers", "common", "misc")


def unit(package: str, name: str) -> str:
    """Return what stands in the tables: the name of a module of cdm_lightning, or the package around others."""
    return name if package == "cdm_lightning" else package


def files(root: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield (package, module, path) for each source file; a sub-package counts as the module of its name."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            yield package, path.relative_to(root / package).parts[0].removesuffix(".py"), path


def imports(path: Path, root: Path) -> set[str]:
    """Return the dotted names that a file imports at any depth, relative ones resolved."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            around = path.relative_to(root).parts[: -node.level] if node.level else ()
            base = ".".join([*around, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def own(names: Iterable[str]) -> set[tuple[str, str]]:
    """Return (package, module) of the names that lie in our packages."""
    parts = [name.split(".") for name in names]
    return {(part[0], part[1] if len(part) > 1 else "__init__") for part in parts if part[0] in PACKAGES}


def name_faults(root: Path) -> Iterator[str]:
    for package, module, path in files(root):
        where = path.relative_to(root)
        if set(where.with_suffix("").parts) & set(BANNED_NAMES):
            yield f"{where}: a module is named by its concept, not {', '.join(BANNED_NAMES)}"
        elif package == "cdm_lightning" and module != "__init__" and module not in LAYER:
            yield f"{where}: '{module}' stands in no layer: add it to LAYERS in tests/test_architecture.py"


def allowed(package: str, module: str, target_package: str, target: str) -> bool:
    """Return whether a module may import another one of ours."""
    if package == "cdm_lightning" and target_package != "cdm_lightning":
        return module in MAY_IMPORT_PACKAGES
    if package == "datamodules":
        return target_package == "datamodules" or (
            target_package == "cdm_lightning" and target in DATAMODULES_MAY_IMPORT
        )
    if target_package == "datamodules":
        return False
    importer, imported = unit(package, module), unit(target_package, target)
    return importer not in LAYER or imported not in LAYER or LAYER[imported] <= LAYER[importer]


def direction_faults(root: Path) -> Iterator[str]:
    for package, module, path in files(root):
        for target_package, target in sorted(own(imports(path, root))):
            if not allowed(package, module, target_package, target):
                yield f"{path.relative_to(root)}: may not import {target_package}.{target}"


def library_faults(root: Path) -> Iterator[str]:
    for package, module, path in files(root):
        for library in sorted({name.split(".")[0] for name in imports(path, root)} & set(ONLY_IN)):
            if unit(package, module) not in ONLY_IN[library]:
                yield f"{path.relative_to(root)}: {library} is imported only in {', '.join(ONLY_IN[library])}"


def init_faults(root: Path) -> Iterator[str]:
    path = root / "cdm_lightning" / "__init__.py"
    if path.exists() and imports(path, root):
        yield f"{path.relative_to(root)}: stays free of imports, so that quick commands stay quick"


def graph(root: Path) -> dict[tuple[str, str], set[tuple[str, str]]]:
    """Return what each module of ours imports of ours, itself left out."""
    edges: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for package, module, path in files(root):
        targets = {target for target in own(imports(path, root)) if target != (package, module)}
        edges.setdefault((package, module), set()).update(targets)
    return edges


def cycle_faults(root: Path) -> Iterator[str]:
    """Take away modules that import no module that is left; what cannot be taken away has a cycle."""
    left = graph(root)
    while free := [node for node, targets in left.items() if not targets & set(left)]:
        for node in free:
            del left[node]
    if left:
        yield f"a cycle of imports among or above: {', '.join('.'.join(node) for node in sorted(left))}"


def faults(root: Path) -> list[str]:
    """Return every breach of the rule in the packages below `root`, one sentence each."""
    checks = (name_faults, direction_faults, library_faults, init_faults, cycle_faults)
    return [fault for check in checks for fault in check(root)]


def test_the_rule_holds() -> None:
    assert "\n".join(faults(ROOT)) == ""


def test_the_table_names_what_exists() -> None:
    assert set(LAYER) == {unit(package, module) for package, module, _ in files(ROOT)} - {"__init__", "datamodules"}


def test_the_rule_looks_at_files() -> None:
    assert {package for package, _, _ in files(ROOT)} == set(PACKAGES)
    assert own(imports(ROOT / "cdm_lightning" / "store.py", ROOT)) == {
        ("cdm_lightning", "card"),
        ("cdm_lightning", "errors"),
        ("cdm_lightning", "exchange"),
        ("cdm_lightning", "ledger"),
        ("cdm_lightning", "tensor_files"),
    }


@pytest.mark.parametrize(
    ("file", "code", "fault"),
    [
        ("cdm_lightning/store.py", "import cdm_lightning.module", "may not import cdm_lightning.module"),
        ("cdm_lightning/images.py", "from cdm_lightning import store", "may not import cdm_lightning.store"),
        ("cdm_lightning/images.py", "from .store import Store", "may not import cdm_lightning.store"),
        ("cdm_lightning/images.py", "def f():\n    from . import store", "may not import cdm_lightning.store"),
        ("cdm_lightning/evidence.py", "from . import composition", "may not import cdm_lightning.composition"),
        ("cdm_lightning/gaussians.py", "from . import drafts", "may not import cdm_lightning.drafts"),
        ("cdm_lightning/public.py", "from . import compartments", "may not import cdm_lightning.compartments"),
        ("cdm_lightning/composition.py", "from . import packing", "may not import cdm_lightning.packing"),
        ("cdm_lightning/generation.py", "from . import module", "may not import cdm_lightning.module"),
        ("cdm_lightning/fitting.py", "from datamodules import shards", "may not import datamodules.shards"),
        ("cdm_lightning/module.py", "import datamodules", "may not import datamodules.__init__"),
        ("cdm_lightning/module.py", "from callbacks.grids import Grid", "may not import callbacks.grids"),
        ("datamodules/shards.py", "from cdm_lightning import loss", "may not import cdm_lightning.loss"),
        ("datamodules/shards.py", "import callbacks", "may not import callbacks.__init__"),
        ("callbacks/grids.py", "from datamodules import shards", "may not import datamodules.shards"),
        ("callbacks/grids.py", "from cdm_lightning import fit_command", "may not import cdm_lightning.fit_command"),
        ("cdm_lightning/store.py", "from lightning.pytorch import Trainer", "lightning is imported only in module"),
        ("cdm_lightning/module.py", "import webdataset as wds", "webdataset is imported only in datamodules"),
        ("cdm_lightning/cli.py", "import lightning", "lightning is imported only in module"),
        ("callbacks/export.py", "import safetensors.torch", "safetensors is imported only in tensor_files"),
        ("cdm_lightning/novel.py", "", "'novel' stands in no layer: add it to LAYERS in tests/test_architecture.py"),
        ("cdm_lightning/novel/deep.py", "", "'novel' stands in no layer"),
        ("callbacks/utils.py", "", "a module is named by its concept"),
        ("datamodules/helpers/io.py", "", "a module is named by its concept"),
        ("cdm_lightning/__init__.py", "import torch", "stays free of imports"),
    ],
)
def test_a_breach_is_found(tmp_path: Path, file: str, code: str, fault: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(code)
    (found,) = faults(tmp_path)
    assert found.startswith(f"{file}: ")
    assert fault in found


def test_a_cycle_is_found(tmp_path: Path) -> None:
    package = tmp_path / "cdm_lightning"
    package.mkdir()
    (package / "store.py").write_text("from cdm_lightning.ledger import append")
    (package / "ledger.py").write_text("def f():\n    from cdm_lightning.store import Store")
    (package / "images.py").write_text("import torch")
    assert faults(tmp_path) == ["a cycle of imports among or above: cdm_lightning.ledger, cdm_lightning.store"]


def test_what_is_allowed_is_no_fault(tmp_path: Path) -> None:
    for file, code in {
        "cdm_lightning/cli.py": "from cdm_lightning import fit_command, store",
        "cdm_lightning/fit_command.py": "import datamodules.shards, callbacks.grids, lightning\nfrom . import parser",
        "cdm_lightning/tensor_files.py": "import safetensors.torch",
        "cdm_lightning/store.py": "from cdm_lightning import ledger\nfrom cdm_lightning.errors import StoreError",
        "datamodules/shards.py": "import webdataset, lightning\nfrom cdm_lightning import seeding\nfrom . import keys",
        "callbacks/grids.py": "from cdm_lightning import generation, module\nfrom callbacks import export",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(code)
    assert faults(tmp_path) == []

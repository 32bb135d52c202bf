"""A source fitted again, as its saved configuration says."""

import json
import subprocess
import sys
from pathlib import Path

from cdm_lightning.errors import BadInput
from cdm_lightning.fit_command import ConfiguredRecipe, fit_parser
from cdm_lightning.fitting import fit

QUIET = ("--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--metrics.extractor", "none")


def recipe_of(config_file: Path, store: Path, source: str, root: str, *options: str) -> ConfiguredRecipe:
    """Return the recipe that a saved configuration describes, for one source of a store and shards at `root`.

    Raises:
        BadInput: there is no such file, or it describes no fit.
    """
    if not config_file.is_file():
        raise BadInput(f"{config_file} is missing, so nobody knows how '{source}' was fitted: fit it with a --config")
    parser = fit_parser()
    return ConfiguredRecipe(parser, parser.parse_args(_options(config_file, store, source, root, *options)))


def refit(config_file: Path, store: Path, source: str, root: str, *options: str) -> None:
    """Fit one source into a store, as a saved configuration says; nothing, if it is up to date.

    Where several processes did it, `fit` is called as a command: the others are started with its command line.

    Raises:
        BadInput: it cannot be fitted.
    """
    recipe = recipe_of(config_file, store, source, root, *options)
    if recipe.training["ranks"] == 1:
        fit(recipe, store)
        return
    command = [sys.executable, "-m", "cdm_lightning", "fit", *_options(config_file, store, source, root, *options)]
    if code := subprocess.run(command, check=False).returncode:  # noqa: S603 (our own command, no shell)
        raise BadInput(f"source '{source}' was not fitted again: `fit` ended with exit code {code}")


def _options(config_file: Path, store: Path, source: str, root: str, *options: str) -> list[str]:
    where = ["--store", str(store), "--data.root", root, "--data.sources", json.dumps([source])]
    return ["--config", str(config_file), *where, *options]

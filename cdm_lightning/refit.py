"""A source fitted again, as its saved configuration says."""

import json
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
    where = ["--store", str(store), "--data.root", root, "--data.sources", json.dumps([source])]
    parser = fit_parser()
    return ConfiguredRecipe(parser, parser.parse_args(["--config", str(config_file), *where, *options]))


def refit(config_file: Path, store: Path, source: str, root: str, *options: str) -> None:
    """Fit one source into a store, as a saved configuration says; nothing, if it is up to date."""
    fit(recipe_of(config_file, store, source, root, *options), store)

"""The size of images that nobody gave a size. Oracle: the shards and data sets as they are."""

from pathlib import Path

import pytest
import yaml

from cdm_lightning.fit_command import ConfiguredRecipe, fit_parser
from cdm_lightning.phase import Phase
from datamodules import ShardDataModule
from datamodules.manifest import ImageShape
from tests.made_shards import save_images, write

ASKED = [
    ((), (6, 3)),
    (("--data.image_size", "4"), (4, 3)),
    (("--data.channels", "1"), (6, 1)),
    (("--data.from", "cifar10"), (6, 3)),
]
WITHOUT_SHARDS = [("digits", (8, 1)), ("fashion_mnist", (28, 1)), ("cifar10", (32, 3)), ("folder", (32, 3))]


def recipe(root: Path, *options: str) -> ConfiguredRecipe:
    parser = fit_parser()
    return ConfiguredRecipe(parser, parser.parse_args(["--data.root", str(root), *options]))


@pytest.mark.parametrize(("options", "expected"), ASKED)
def test_it_is_that_of_the_shards(options: tuple[str, ...], expected: tuple[int, int], tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root, save_images(tmp_path / "images", 2))
    made = recipe(root, *options)
    backbone = made.config.model.backbone.init_args
    assert (backbone.image_size, backbone.channels) == expected
    assert (made.data().plan.image_size, made.data().plan.channels) == expected


@pytest.mark.parametrize(("origin", "expected"), WITHOUT_SHARDS)
def test_without_shards_it_is_that_of_the_data_set(origin: str, expected: tuple[int, int], tmp_path: Path) -> None:
    made = recipe(tmp_path / "root", "--data.from", origin)
    backbone, plan = made.config.model.backbone.init_args, made.data().plan
    assert (backbone.image_size, backbone.channels) == (plan.image_size, plan.channels) == expected


def test_the_recorded_configuration_says_it(tmp_path: Path) -> None:
    """So a fit that is repeated by it does not depend on the shards of then."""
    recipe(tmp_path / "root", "--data.from", "list").save_config(Phase("source", "bob", 1, 1), tmp_path / "config.yaml")
    data = yaml.safe_load((tmp_path / "config.yaml").read_text())["data"]
    assert (data["image_size"], data["channels"]) == (32, 3)


def test_a_damaged_manifest_is_told_where_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "bob").mkdir()
    (tmp_path / "bob" / "manifest.json").write_text("{")
    plan = recipe(tmp_path).data().plan
    assert ImageShape(plan.image_size, plan.channels) == ImageShape(8, 1)


def test_images_of_a_folder_are_written_in_this_size(tmp_path: Path) -> None:
    data = ShardDataModule(str(tmp_path / "root"), "folder", str(save_images(tmp_path / "images", 4)))
    data.prepare()
    assert data.manifest("alice").image == ImageShape(32, 3)

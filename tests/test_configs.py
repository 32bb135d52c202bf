"""Every shipped configuration parses, by its bare name, from anywhere; misspelt options are told."""

import re
from pathlib import Path

import pytest
import torch

from cdm_lightning.backbone import UViT
from cdm_lightning.cli import main
from cdm_lightning.fit_command import fit_parser

CONFIGS = sorted(path.name for path in (Path(__file__).parent.parent / "configs").glob("*_shards*.yaml"))


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configs_parse_from_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = fit_parser().parse_args(["--config", name])
    assert config.store == f"stores/{name.removesuffix('.yaml').replace('_shards', '')}"
    assert config.model.guide in ("closed_form", "none")
    backbone = config.model.backbone.init_args
    assert (backbone.image_size, backbone.channels) == (config.data.image_size, config.data.channels)
    assert backbone.guided == (config.model.guide == "closed_form")


def test_who_names_no_backbone_has_the_one_of_the_shipped_configs() -> None:
    """And a size that is given goes to it."""
    named = fit_parser().parse_args(["--config", "cifar_shards.yaml"]).model.backbone
    unnamed = fit_parser().parse_args(["--model.backbone.init_args.features", "8"]).model
    assert unnamed.backbone.class_path == named.class_path == "cdm_lightning.conv_net.ConvNet"
    assert unnamed.backbone.init_args.features == 8
    assert unnamed.learning_rate is None


def test_the_gpu_config_is_u_vit_s_2() -> None:
    """Oracle: the published size (Bao et al. 2023, Table 1: 44M, without a network for time), a forward pass."""
    settings = fit_parser().parse_args(["--config", "cifar_shards_gpu.yaml"]).model.backbone.init_args
    plain = UViT(**vars(settings) | {"guided": False})
    sizes = {name: parameter.numel() for name, parameter in plain.named_parameters()}
    published = sum(size for name, size in sizes.items() if not name.startswith("time_embed"))
    assert published == pytest.approx(44e6, rel=0.02)
    assert (len(plain.in_blocks), len(plain.out_blocks), plain.patch_embed.num_patches) == (6, 6, 256)
    with torch.inference_mode():
        guided = UViT(**vars(settings))
        image = torch.zeros(1, 3, 32, 32)
        assert guided(image, torch.ones(1), guide=torch.cat([image, image], 1)).shape == image.shape


@pytest.mark.parametrize("name", CONFIGS)
def test_debug_cuts_every_phase_to_20_steps(name: str) -> None:
    config = fit_parser().parse_args(["--config", name, "--config", "debug.yaml"])
    assert (config.model.backbone_steps, config.trainer.max_steps) == (20, 20)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_u_net_takes_the_place_of_any_backbone(name: str) -> None:
    """With the images' size, and with nothing left of the other one's options."""
    given, config = (
        fit_parser().parse_args(["--config", name, *more]).model for more in ([], ["--config", "unet.yaml"])
    )
    sizes, expected = vars(config.backbone.init_args), vars(given.backbone.init_args)
    assert config.backbone.class_path == "cdm_lightning.unet.UNet"
    assert {"image_size", "channels", "guided", "features", "width"} == sizes.keys()
    assert all(sizes[key] == expected[key] for key in ("image_size", "channels", "guided"))
    assert (sizes["features"], sizes["width"]) == ([32, 64, 96], 192)
    assert (config.compartment, config.optimizer) == ("full", "muon")
    assert (config.learning_rate, config.prompt_learning_rate) == (4e-3, 1.5e-3)


def test_the_working_folder_and_the_named_folder_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "mine.yaml").write_text("seed: 5\n")
    monkeypatch.setenv("CDM_CONFIG_PATH", str(tmp_path / "named"))
    assert fit_parser().parse_args(["--config", "mine.yaml"]).seed == 5
    (tmp_path / "mine.yaml").write_text("seed: 6\n")
    assert fit_parser().parse_args(["--config", "mine.yaml"]).seed == 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "--config", "cifar_shard.yaml"], "did you mean 'cifar_shards.yaml'?"),
        (["fit", "--model.guid", "none"], "unrecognized arguments: --model.guid none; did you mean 'model.guide'?"),
        (["fit", "--trainer.max_step", "3"], "did you mean 'trainer.max_steps'?"),
        (["fit", "--model.backbone.init_args.widht", "8"], "Option 'widht' is not accepted; did you mean 'width'?"),
        (["fit", "--model.guide", "open_form"], "Expected a one of ['closed_form', 'none']. Got value: open_form"),
        (["fit", "--model.backbone.class_path", "os.system"], "'os.system' is outside the allowed packages"),
        (["shards", "--from", "digit", "--out", "x"], "Expected a one of"),
        (["sample", "--store", "x", "--out", "y"], "no source chosen: say --sources all"),
        (["sampel"], "unknown command 'sampel'; did you mean 'sample'?"),
        (["store", "lists", "--store", "x"], "store needs an action"),
    ],
)
def test_misspelt_options_are_told_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as exit:
        code = exit.code  # type: ignore[assignment]
    assert code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_a_misspelt_key_in_a_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.yaml").write_text("model:\n  backbone_step: 3\n")
    with pytest.raises(SystemExit) as exit:
        main(["fit", "--config", str(tmp_path / "wrong.yaml")])
    assert exit.value.code == 2
    assert "did you mean 'model.backbone_steps'?" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["{}.json", "link.json"])
def test_a_place_that_cannot_be_is_told(
    path: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere" / "x.json")
    assert main(["store", "list", "--store", str(store), "--json", path.format("a" * 300)]) == 2
    assert re.search("name is too long|is no place for a file", capsys.readouterr().err)


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--help"], 0), (["-h"], 0)])
def test_no_command_prints_the_commands(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """All of those that the README has a section on."""
    assert main(arguments) == code
    listed = {
        line.split()[0] for line in capsys.readouterr().out.partition("commands:\n")[2].splitlines() if line.strip()
    }
    sections = re.findall(r"^### `([a-z][a-z-]*)", (Path(__file__).parents[1] / "README.md").read_text(), re.MULTILINE)
    assert len(sections) > 10
    assert set(sections) <= listed


def test_the_python_of_the_readme_runs(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code.replace("stores/digits", str(store)), "README.md", "exec"), {})
    shape, _, drawn = capsys.readouterr().out.partition(") ")
    assert shape == "torch.Size([16, 1, 8, 8]"  # without its last bracket
    assert set(re.findall(r"digit\d", drawn)) <= {"digit1", "digit2"}
    assert len(re.findall(r"digit\d", drawn)) == 16

"""The command `attribute`. Oracles: credits of `sample`, files that are written, loops, and sentences."""

import csv
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cdm_lightning.cli import main
from cdm_lightning.credit_bars import annotated
from cdm_lightning.images import encode_png
from cdm_lightning.near_copies import nearest
from cdm_lightning.source_colours import colours
from datamodules import ShardDataModule
from tests.decoding import decode_image
from tests.dummy_extractor import pictures

SOURCES = ["digit0", "digit1", "digit2"]


@pytest.fixture(scope="module")
def sampled(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of four sampled images with their credits."""
    out = tmp_path_factory.mktemp("sampled")
    where = ["--store", str(store), "--out", str(out), "--steps", "4", "--n", "4"]
    assert main(["sample", *where, "--sources", "all", "--annotate"]) == 0
    return out


def attribute(store: Path, out: Path, *options: str, code: int = 0) -> Any:
    """Run the command and return its report."""
    where = ["--store", str(store), "--json", str(out / "report.json")]
    assert main(["attribute", *where, *options]) == code
    return json.loads((out / "report.json").read_text())


def test_a_sampled_image_gets_the_credits_that_it_was_sampled_with(store: Path, sampled: Path, tmp_path: Path) -> None:
    """But for the rounding to grey levels."""
    files = [str(sampled / f"{k:05d}.png") for k in range(4)]
    report = attribute(store, tmp_path, "--sources", "all", *files)
    expected = json.loads((sampled / "credits.json").read_text())["images"]
    assert [row["image"] for row in report["images"]] == files
    for row, known in zip(report["images"], expected, strict=True):
        assert row["credits"] == pytest.approx(known["credits"], abs=0.02)
        assert sum(row["credits"].values()) == pytest.approx(1, abs=1e-5)
        assert row["credited"] == max(known["credits"], key=known["credits"].__getitem__)
        assert all(low <= row["value"][s] <= high for s, (low, high) in row["interval"].items())
    assert report["network_evaluations_per_image"] == 0
    assert report["informative"] is True
    assert report["heldout"]["cross_entropy"] < 1.0986


@pytest.mark.parametrize("method", ["weights", "gaussians", "network", "loo", "shapley"])
@pytest.mark.parametrize("utility", ["gaussians", "network"])
def test_every_method_says_what_it_cost(method: str, utility: str, store: Path, sampled: Path, tmp_path: Path) -> None:
    """`network`: 8 levels, a pair of draws each. A game by networks: those of 12 levels that lie below the switch."""
    if utility == "network" and method not in ("loo", "shapley"):
        return
    image, csv_file = str(sampled / "00000.png"), tmp_path / "c.csv"
    options = ["--method", method, "--utility", utility, "--draws", "2", "--csv", str(csv_file)]
    report = attribute(store, tmp_path, "--sources", "all", image, *options)
    (row,) = report["images"]
    below = [s for s in _levels(report["sigma"]) if s < report["sigma_switch"]]
    expected = {("network", "gaussians"): 3 * 2 * 2 * 8, ("shapley", "network"): 4 * 2 * len(below)}
    expected["loo", "network"] = expected["shapley", "network"]
    assert report["network_evaluations_per_image"] == expected.get((method, utility), 0)
    assert report["unit"] == ("nats" if method in ("loo", "shapley") else "share")
    if method == "shapley":
        assert row["total"] == pytest.approx(sum(row["value"].values()), abs=1e-4)
    lines = list(csv.DictReader(csv_file.open()))
    assert [line["source"] for line in lines] == SOURCES
    assert [float(line["value"]) for line in lines] == list(row["value"].values())
    assert {line["informative"] for line in lines} == {"true"}


def _levels(floor: float) -> list[float]:
    return [floor * (80 / floor) ** ((k + 0.5) / 12) for k in range(12)]


def png(levels: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_folders_and_tars_are_read_and_what_is_no_image_is_named(
    store: Path, sampled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Colour and size are those of the store, as in `restore`; the others are credited; the exit code is 2."""
    folder, tar = tmp_path / "folder", tmp_path / "some.tar"
    folder.mkdir()
    shutil.copy(sampled / "00000.png", folder / "a.png")
    colour = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    (folder / "b.jpg").write_bytes(b"no image")
    with tarfile.open(tar, "w") as file:
        for name, data in (("x/c.png", png(colour)), ("x/c.json", b"{}"), ("d.png", b"no image")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    cut = tmp_path / "cut.tar"
    cut.write_bytes(tar.read_bytes()[:700])
    given = [str(folder), str(tar), str(cut), str(tmp_path / "none.png")]
    report = attribute(store, tmp_path, "--sources", "all", *given, code=2)
    assert [row["image"] for row in report["images"]] == [f"{folder}/a.png", f"{tar}:x/c.png"]
    assert set(report["refused"]) == {f"{folder}/b.jpg", f"{tar}:d.png", str(cut), str(tmp_path / "none.png")}
    said = capsys.readouterr().err
    head, *reasons = said[said.index("4 of the images could not be used:") :].splitlines()
    assert head == "4 of the images could not be used:"
    assert [sum(name in reason for reason in reasons) for name in report["refused"]] == [1] * 4 == [1] * len(reasons)
    assert "there is no such file" in report["refused"][given[3]]
    assert main(["attribute", "--store", str(store), "--sources", "all", given[3]]) == 2
    assert "no image can be used: " in capsys.readouterr().err


def test_the_nearest_training_images_are_those_of_a_loop(store: Path, sampled: Path, workplace: Path) -> None:
    where, files = str(workplace / "shards"), [str(sampled / f"{k:05d}.png") for k in range(4)]
    options = ["--sources", "all", "--root", where, "--extractor", "effnet-lite0", "--nearest", "2"]
    report = attribute(store, sampled, *options, *files)
    data = ShardDataModule(where, image_size=8, channels=1)
    for row in report["images"]:
        keys, training, _ = data.images(row["credited"], "train")
        own = decode_image(Path(row["image"]).read_bytes(), (1, 8, 8))
        distances = (own.double() - training.double()).square().flatten(1).mean(1).sqrt().tolist()
        slow = sorted(zip(distances, keys, strict=True))
        assert [one["distance"] for one in row["nearest"]["pixels"]] == pytest.approx([d for d, _ in slow[:2]])
        assert row["nearest"]["pixels"][0]["key"] == slow[0][1]
        assert len(row["nearest"]["effnet-lite0"]) == 2


def test_a_training_image_is_its_own_nearest(store: Path, workplace: Path, tmp_path: Path) -> None:
    keys, training, _ = ShardDataModule(str(workplace / "shards"), image_size=8, channels=1).images("digit0", "train")
    (tmp_path / "own.png").write_bytes(encode_png(training[3]))
    options = ["--sources", "digit0", "--root", str(workplace / "shards"), "--extractor", "effnet-lite0"]
    report = attribute(store, tmp_path, *options, str(tmp_path / "own.png"))
    for space in ("pixels", "effnet-lite0"):
        assert report["images"][0]["nearest"][space][0] == {"key": keys[3], "distance": 0.0}
    assert report["images"][0]["credits"] == {"digit0": 1.0}
    assert report["informative"] is False  # one source: nothing can be known


@pytest.mark.parametrize("rows", [2048, 3])
def test_the_k_nearest_are_those_of_a_sorted_loop(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdm_lightning.near_copies.ROWS", rows)
    images, training = pictures(5, 0), pictures(8, 1)
    found = nearest(images, training, 4)
    for image, index, distance in zip(images, found.index, found.distance, strict=True):
        slow = sorted((float((image.double() - t.double()).square().mean().sqrt()), k) for k, t in enumerate(training))
        assert index.tolist() == [k for _, k in slow[:4]]
        assert distance.tolist() == pytest.approx([d for d, _ in slow[:4]], rel=1e-12)
    assert nearest(images, training, 20).index.shape == (5, 8)


def test_a_file_may_have_any_name(store: Path, sampled: Path, tmp_path: Path) -> None:
    """Also one that is no UTF-8, as in old archives."""
    name = os.fsdecode(b"\xe9.png")
    shutil.copy(sampled / "00000.png", tmp_path / name)
    where = ["--store", str(store), "--sources", "all", str(tmp_path / name)]
    assert main(["attribute", *where, "--nearest", "0", "--csv", str(tmp_path / "c.csv")]) == 0
    assert b"\xe9.png," in (tmp_path / "c.csv").read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--nearest", "-1"], "--nearest is -1; expected a number of images"),
        (["--csv", "nowhere/x.csv"], "--csv nowhere/x.csv is no place for a file"),
        (["--picture", "."], "--picture . is no place for a file"),
        (["--root", "nowhere"], "--root, 'nowhere', is no folder"),
        (["--batch_size", "0"], "--batch_size is 0"),
        (["--draws", "1"], "--draws is 1"),
        (["--csv", "one.x", "--json", "./one.x"], "--csv, --picture and --json name the same file twice"),
        (["--csv", "GIVEN"], "is one of the files that are given, and would be lost: name another"),
        (["--picture", "GIVEN"], "is one of the files that are given, and would be lost: name another"),
        (["--json", "GIVEN"], "is one of the files that are given, and would be lost: name another"),
    ],
)
def test_options_that_cannot_be_used(
    options: list[str], said: str, store: Path, sampled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = str(sampled / "00000.png")
    where, before = ["--store", str(store), "--sources", "all", given], (sampled / "00000.png").read_bytes()
    assert main(["attribute", *where, *(option.replace("GIVEN", given) for option in options)]) == 2
    assert said in capsys.readouterr().err
    assert (sampled / "00000.png").read_bytes() == before


def test_what_is_hidden_and_the_sheet_of_samples_are_no_given_images(
    store: Path, sampled: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sampled, tmp_path / "folder"))
    assert (folder / "grid.png").exists()
    for hidden in (".thumbnails/t.png", "._00000.png", "__MACOSX/._a.png"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        shutil.copy(sampled / "00000.png", folder / hidden)
    report = attribute(store, tmp_path, "--sources", "all", "--nearest", "0", str(folder))
    assert [Path(row["image"]).name for row in report["images"]] == sorted(p.name for p in sampled.glob("0*.png"))
    (folder / "credits.json").unlink()
    report = attribute(store, tmp_path, "--sources", "all", "--nearest", "0", str(folder))
    assert [Path(row["image"]).name for row in report["images"]][-1] == "grid.png", "then it is the user's"


def test_shards_that_were_written_again_in_another_size_are_left_alone(
    store: Path, sampled: Path, workplace: Path, tmp_path: Path
) -> None:
    """Nobody has named them: they are where the fit's were."""
    copy = Path(shutil.copytree(store, tmp_path / "store"))
    root = tmp_path / "root"
    assert main(["shards", "--from", "digits", "--out", str(root), "--public-fraction", "0.4", "--size", "16"]) == 0
    for config in copy.glob("runs/**/config.yaml"):
        config.write_text(config.read_text().replace(str(workplace / "shards"), str(root)))
    report = attribute(copy, tmp_path, "--sources", "all", str(sampled / "00000.png"))
    assert report["heldout"] is None


def test_what_credits_are_worth_is_what_validate_says(
    parts: Path, sampled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of many held-out images; and both say that these may have been trained on, as the shards are others."""
    root = tmp_path / "root"
    options = ["--from", "digits", "--out", str(root), "--split", "random:2", "--public-fraction", "0.4"]
    assert main(["shards", *options, "--heldout-fraction", "0.5"]) == 0
    where = ["--sources", "all", "--root", str(root), "--extractor", "none"]
    found = attribute(parts, tmp_path, *where, "--nearest", "0", str(sampled / "00000.png"))
    told = [f"source '{name}' was fitted on other images than {root} has" for name in ("part0", "part1")]
    assert [text in caplog.text for text in told] == [True, True]
    assert main(["validate", "--store", str(parts), *where, "--json", str(tmp_path / "validate.json")]) == 0
    validated = json.loads((tmp_path / "validate.json").read_text())
    assert min(validated["reference_images"].values()) > 64
    for name in ("accuracy", "cross_entropy", "knowing_nothing", "calibration_error"):
        assert found["heldout"][name] == pytest.approx(validated["attribution"][name], abs=1e-5)


def test_why_it_is_not_known_what_credits_are_worth(
    store: Path, sampled: Path, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(sampled / "00000.png")
    keys = ShardDataModule(str(workplace / "shards")).used("digit1", "heldout")
    (tmp_path / "excluded").write_text("\n".join(keys))
    where = ["--root", str(workplace / "shards"), "--exclude", str(tmp_path / "excluded")]
    report = attribute(store, tmp_path, "--sources", "all", *where, image)
    assert (report["informative"], report["without_heldout"]) == (None, ["digit1"])
    assert "there are no held-out images of digit1; leave such sources out of --sources" in capsys.readouterr().out
    attribute(store, tmp_path, "--sources", "[digit1]", *where[:2], image)
    assert "there is one source, which is credited with everything" in capsys.readouterr().out


def test_members_of_a_tar_with_one_name_are_all_credited(store: Path, sampled: Path, tmp_path: Path) -> None:
    tar, pictures = tmp_path / "some.tar", [(sampled / f"0000{k}.png").read_bytes() for k in range(3)]
    with tarfile.open(tar, "w") as file:
        for data in pictures:
            member = tarfile.TarInfo("a.png")
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    found = attribute(store, tmp_path, "--sources", "all", str(tar))["images"]
    assert [row["image"] for row in found] == [f"{tar}:a.png", f"{tar}:a.png (2)", f"{tar}:a.png (3)"]
    alone = attribute(store, tmp_path, "--sources", "all", *(str(sampled / f"0000{k}.png") for k in range(3)))["images"]
    assert [row["value"] for row in found] == [row["value"] for row in alone]


@pytest.mark.parametrize("name", ["grid.png", "credits.json"])
def test_what_sample_left_in_a_given_folder_is_not_written_over(
    name: str, store: Path, sampled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(sampled, tmp_path / "folder"))
    for option in ("--picture", "--json", "--csv"):
        assert (
            main(["attribute", "--store", str(store), "--sources", "all", option, str(folder / name), str(folder)]) == 2
        )
        assert f"{option} {folder / name} is one of the files that are given" in capsys.readouterr().err
    assert (folder / name).read_bytes() == (sampled / name).read_bytes()


def test_sources_have_colours_of_their_own() -> None:
    names = [f"part{k}" for k in range(60)]
    found = colours(names)
    assert len(set(found)) == 60
    assert found[:20] == colours(names[:20])
    assert all(max(later) < max(first) for first, later in zip(sorted(found[:20]), sorted(found[20:40]), strict=True))


def test_bars_are_as_long_as_the_shares_in_the_colours_of_the_sources(store: Path, sampled: Path) -> None:
    images = torch.full((2, 1, 40, 40), 200, dtype=torch.uint8)
    nan = float("nan")
    picture = annotated(images, torch.tensor([[0.25, nan], [0.75, nan], [0.0, nan]]), SOURCES, columns=2)
    first, second = ([round(255 * part) for part in colour] for colour in colours(SOURCES)[:2])
    bar = picture[:, 4 + 40 + 4, 4:44]
    assert bar[:, :10].T.tolist() == [first] * 10
    assert bar[:, 10:].T.tolist() == [second] * 30
    assert 225 in picture[:, 48, picture.shape[2] // 2 :].unique().tolist()  # grey: there are no shares
    assert (picture[:, 4:44, 4:44] == 200).all()


def test_samples_are_annotated(store: Path, sampled: Path, tmp_path: Path) -> None:
    """The picture has the colours of the sources; the images and credits are those without it."""
    plain = ["--store", str(store), "--out", str(tmp_path / "s"), "--steps", "4", "--n", "4", "--sources", "all"]
    assert main(["sample", *plain]) == 0
    for name in ("00000.png", "credits.json"):
        assert (sampled / name).read_bytes() == (tmp_path / "s" / name).read_bytes()
    grid = Image.open(sampled / "grid.png")
    assert (grid.mode, Image.open(tmp_path / "s" / "grid.png").mode) == ("RGB", "L")
    found = {colour for _, colour in grid.getcolors(100000)}
    assert {tuple(round(255 * part) for part in colour) for colour in colours(SOURCES)} <= found


def test_a_picture_of_credits_is_written_and_noted(store: Path, sampled: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    options = ["--sources", "all", "--method", "shapley", "--picture", str(picture), str(sampled)]
    attribute(store, tmp_path, *options)
    assert Image.open(picture).mode == "RGB"
    noted = (store / "runs" / "outputs.jsonl").read_text()
    assert str(picture) in noted
    assert str(tmp_path / "report.json") in noted

"""`audit`. Oracles: a sampler that gives training images, one of held-out images, hashes of cards, text by hand."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.backbones import copy_backbone
from cdm_lightning.audit import chosen, closed_forms, verdict
from cdm_lightning.audit_table import table
from cdm_lightning.cli import main
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.extractors import FeatureExtractor
from cdm_lightning.generation import Settings
from cdm_lightning.line_up import opened_models
from cdm_lightning.outputs import outputs_of
from cdm_lightning.store import Store
from datamodules import ShardDataModule
from datamodules.names import HELDOUT, TRAIN
from tests.conftest import Fit
from tests.dummy_extractor import DummyExtractor

QUICK = ("--n", "6", "--steps", "3", "--draws", "1")
SOURCES = ["digit0", "digit1", "digit2"]


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Put an extractor of few features in the place of EfficientNet-Lite0."""

    def opened(name: str, weights: str | None) -> FeatureExtractor:
        return DummyExtractor(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cdm_lightning.audit_command.open_extractor", opened)
        yield


@pytest.fixture(scope="module")
def store(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the shared store, in which audits note their outputs."""
    return Path(shutil.copytree(store, tmp_path_factory.mktemp("audit") / "store"))


@pytest.fixture(scope="module")
def digits(workplace: Path, store: Path) -> ShardDataModule:
    """Return the shards of the shared store."""
    assert store.is_dir()
    return ShardDataModule(str(workplace / "shards"))


@pytest.fixture(scope="module")
def report(store: Path, workplace: Path) -> dict[str, Any]:
    """Return the audit of three digits by two rows, and the backbone alone."""
    return run(store, workplace / "audit.json", *QUICK, "--strategies", "routed", "closed_form", "public")


def run(store: Path, out: Path, *options: str, sources: str = "all") -> dict[str, Any]:
    assert main(["audit", "--store", str(store), "--sources", sources, "--json", str(out), *options]) == 0
    return json.loads(out.read_text())  # type: ignore[no-any-return]


def sampler_of(images: Tensor) -> Callable[..., Tensor]:
    """Return a sampler that gives these images, again from the first one after the last one."""

    def sampled(composed: ComposedDenoiser, shape: tuple[int, int, int], settings: Settings) -> Tensor:
        return images[torch.arange(settings.n) % len(images)]

    return sampled


def pooled(digits: ShardDataModule, part: Any) -> Tensor:
    return torch.cat([digits.images(source, part)[1] for source in SOURCES])


def test_planted_copies_are_flagged(
    store: Path, digits: ShardDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdm_lightning.audit.sampled_images", sampler_of(pooled(digits, TRAIN)))
    found = run(store, tmp_path / "a.json", *QUICK, "--n", "200", "--strategies", "closed_form")
    composed = found["rows"][0]["groups"]["composed"]["memorization"]
    assert {composed[space]["near_copies"]["value"] for space in ("pixels", "features")} == {1.0}
    flagged = found["rows"][0]["verdict"]["near_copies"]
    assert [one for one in flagged if one["group"] == "composed"] == [
        {"group": "composed", "space": "pixels"},
        {"group": "composed", "space": "features"},
    ]
    keys = {source: digits.images(source, TRAIN)[0] for source in SOURCES}
    for pair in found["closest"]:
        assert pair["distance"] == pair["ratio"] == 0.0
        assert pair["training"] in keys[pair["source"]]


def test_the_training_image_of_a_pair_is_named_by_its_key(
    store: Path, digits: ShardDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, images, _ = digits.images("digit1", TRAIN)
    monkeypatch.setattr("cdm_lightning.audit.sampled_images", sampler_of(images[4:5]))
    found = run(store, tmp_path / "a.json", *QUICK, "--strategies", "closed_form", "--extractor", "none")
    named = {(pair["source"], pair["training"]) for pair in found["closest"] if pair["group"] in ("composed", "digit1")}
    assert named == {("digit1", keys[4])}


def test_held_out_images_are_not_flagged(
    store: Path, digits: ShardDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heldout = pooled(digits, HELDOUT)
    monkeypatch.setattr("cdm_lightning.audit.sampled_images", sampler_of(heldout))
    found = run(store, tmp_path / "a.json", *QUICK, "--n", str(len(heldout)), "--strategies", "closed_form")
    copies = found["rows"][0]["groups"]["composed"]["memorization"]
    for space in ("pixels", "features"):
        assert copies[space]["near_copies"] == copies[space]["heldout_near_copies"]
        assert copies[space]["median"] == copies[space]["heldout_median"]
        assert copies[space]["chance"] > 0.05


def test_the_report_says_how_to_repeat_it(
    report: dict[str, Any], store: Path, digits: ShardDataModule, workplace: Path
) -> None:
    assert report["images"] == {
        source: {"training": len(digits.used(source, TRAIN)), "heldout": len(digits.used(source, HELDOUT))}
        for source in SOURCES
    }
    assert (report["root"], report["exclude"], report["extractor"]) == (str(workplace / "shards"), None, "effnet-lite0")
    assert [report[name] for name in ("n", "steps", "draws", "members", "seed", "sampler")] == [6, 3, 1, 200, 0, "heun"]
    assert report["sigmas"] == [2.0, 1.0, 0.5, 0.2, 0.1]
    assert {"torch", "cdm_lightning", "scikit-learn"} <= set(report["versions"])
    backbone = Store.open(store).info.backbone_sha256
    assert {row["model"]["backbone_sha256"] for row in report["rows"]} == {backbone}


def test_groups_are_the_composed_model_and_every_source(report: dict[str, Any]) -> None:
    groups = {row["name"]: list(row["groups"]) for row in report["rows"]}
    every = sorted(["composed", *SOURCES])
    assert groups == {"routed": every, "closed_form": every, "public": ["composed"]}


def test_only_a_closed_form_has_a_density(store: Path) -> None:
    names = ["routed", "closed_form", "routed@0.05"]
    for row, (_, opened) in opened_models(Store.open(store), SOURCES, names, [], "cpu", by_class=False).items():
        forms, prior = closed_forms(opened.compartments, ["digit0", "digit2"])
        if row == "routed":
            assert forms == prior == []
        else:
            n = [opened.compartments.compartments[source].n for source in ("digit0", "digit2")]
            assert prior == pytest.approx([n[0] / sum(n), n[1] / sum(n)])
            assert forms == [opened.compartments.closed_forms[source] for source in ("digit0", "digit2")]


def test_a_source_has_as_many_members_as_others_in_the_composed_model(
    report: dict[str, Any], digits: ShardDataModule
) -> None:
    balanced = sum(min(200, *(len(digits.used(source, part)) for part in (TRAIN, HELDOUT))) for source in SOURCES)
    for row in report["rows"]:
        found = row["groups"]["composed"]["membership"]
        assert found["members"] == found["others"] == balanced - balanced // 2


def test_a_row_does_not_depend_on_the_others(report: dict[str, Any], store: Path, tmp_path: Path) -> None:
    alone = run(store, tmp_path / "a.json", *QUICK, "--strategies", "closed_form")
    assert alone["rows"] == report["rows"][1:2]


def test_a_source_alone_is_audited_as_in_the_composed_model(
    report: dict[str, Any], store: Path, tmp_path: Path
) -> None:
    alone = run(store, tmp_path / "a.json", *QUICK, "--strategies", "closed_form", sources="[digit1]")
    assert alone["rows"][0]["groups"] == {"composed": report["rows"][1]["groups"]["digit1"]}


def test_images_are_chosen_by_seed_and_purpose() -> None:
    images = torch.arange(50)
    first = chosen(images, 10, 0, "a", "training")
    assert torch.equal(first, chosen(images, 10, 0, "a", "training"))
    assert len(set(first.tolist())) == 10
    assert not torch.equal(first, chosen(images, 10, 0, "b", "training"))
    assert sorted(chosen(images, 99, 0, "a").tolist()) == images.tolist()


def test_a_verdict_allows_for_all_comparisons() -> None:
    def group(copies: float, told: float) -> dict[str, Any]:
        return {"memorization": {"pixels": {"chance": copies}}, "membership": {"chance": told}}

    found = verdict({"composed": group(0.02, 0.03), "a": group(0.03, 0.02)})
    assert found["near_copies"] == [{"group": "composed", "space": "pixels"}]
    assert found["told_apart"] == ["a"]
    assert (found["near_copies_comparisons"], found["told_apart_least_chance"]) == (2, 0.02)


def test_the_table_says_what_was_found() -> None:
    share = {"value": 0.25, "low": 0.1, "high": 0.5}
    space = {"near_copies": share, "chance": 0.001, "median": 30.0, "heldout_median": 40.0}
    attack = {"auc": {"value": 0.7, "low": 0.6, "high": 0.8}, "true_positives": share, "false_positives": share}
    groups = {"composed": {"memorization": {"pixels": space}, "membership": attack | {"statistic": "likelihood"}}}
    found = {"near_copies": [{"group": "composed", "space": "pixels"}], "told_apart": ["composed"]}
    counts = {f"{kind}_{what}": 1 for kind in ("near_copies", "told_apart") for what in ("comparisons", "least_chance")}
    report = {
        "rows": [{"name": "routed", "groups": groups, "verdict": found | counts}],
        "images": {"a": {"training": 9, "heldout": 5}},
        **{"n": 4, "sampler": "heun", "steps": 18, "seed": 0, "extractor": "none", "members": 7, "draws": 2},
        **{"sigmas": [2.0, 0.1], "root": "data"},
    }
    assert table(report).splitlines() == [
        "row     group     near-copies, pixels  median / held-out  AUC                found at 1 %         "
        "falsely              by",
        "routed  composed  25.0 % [10.0, 50.0]  30.0 / 40.0        0.70 [0.60, 0.80]  25.0 % [10.0, 50.0]  "
        "25.0 % [10.0, 50.0]  likelihood",
        "",
        "routed: MORE near-copies than among new images: composed (pixels) [1 comparisons, least chance 1]; members "
        "ARE told from held-out images: composed [1 comparisons, least chance 1]",
        "n 4, heun 18 steps, seed 0, extractor none; 7 members of a source at most, 2 draws, sigma 2, 0.1; 9 training "
        "and 5 held-out images of data",
    ]


def test_a_folder_gets_report_and_picture_and_is_noted(store: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(store, tmp_path / "store"))
    found = run(mine, tmp_path / "a.json", *QUICK, "--out", str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "audit.json").read_text()) == found
    assert (tmp_path / "out" / "closest.png").stat().st_size > 10_000
    assert len(list((tmp_path / "out" / "features" / "digit0").iterdir())) == 2
    assert {tmp_path / "a.json", tmp_path / "out"} <= set(outputs_of(mine / "runs", "digit0"))
    assert [row["name"] for row in found["rows"]] == ["routed", "closed_form"]


@pytest.fixture(scope="module")
def monolith(parts: Path, workplace: Path, fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of the same backbone as that of two owners, whose one source is the images of both."""
    path = tmp_path_factory.mktemp("monolith") / "store"
    copy_backbone(parts, path)
    options = ("--data.root", str(workplace / "union"), "--data.split", "random:1")
    assert fit(path, "all", *options) == 0
    return path


def test_a_monolith_is_audited_beside_it(parts: Path, monolith: Path, tmp_path: Path) -> None:
    options = ("--strategies", "closed_form", "--against", f"mono={monolith}", f"same={parts}")
    mine = Path(shutil.copytree(parts, tmp_path / "store"))
    found = {row["name"]: row for row in run(mine, tmp_path / "a.json", *QUICK, *options)["rows"]}
    assert list(found["mono"]["groups"]) == ["composed"]
    assert sorted(found["same"]["groups"]) == ["composed", "part0", "part1"]
    sizes = {row["groups"]["composed"]["membership"]["members"] for row in found.values()}
    assert len(sizes) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--members", "3"), "--members is 3; expected at least 4"),
        (("--draws", "0"), "--draws is 0; expected at least 1"),
        (("--n", "0"), "--n is 0; expected at least 1"),
        (("--seed", "-1"), "--seed is -1; expected 0 to"),
        (("--strategies", "classifier"), "unknown row 'classifier': expected one of closed_form, public, routed"),
        (("--strategies", "rooted"), "did you mean 'routed'?"),
        (("--strategies", "routed@x"), "expected a noise level above"),
        (("--root", "/nowhere"), "'/nowhere', is no folder"),
        (("--against", "mono"), "--against 'mono' is not LABEL=STORE"),
    ],
)
def test_bad_options_are_told(
    store: Path, options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "--store", str(store), "--sources", "all", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_other_images_than_those_of_the_fit_are_refused(
    store: Path, digits: ShardDataModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").write_text(digits.images("digit1", TRAIN)[0][0] + "\n")
    options = ["--root", str(digits.root), "--exclude", str(tmp_path / "keys")]
    assert main(["audit", "--store", str(store), "--sources", "all", *options]) == 2
    assert "source 'digit1' was fitted on other images than" in capsys.readouterr().err


def test_a_root_without_a_source_is_refused(
    store: Path, digits: ShardDataModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(digits.root / "digit0", tmp_path / "root" / "digit0")
    assert main(["audit", "--store", str(store), "--sources", "all", "--root", str(tmp_path / "root")]) == 2
    assert "has no shards of source 'digit1'" in capsys.readouterr().err


def test_too_few_held_out_images_are_told(
    store: Path, digits: ShardDataModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").write_text("\n".join(digits.images("digit0", HELDOUT)[0][3:]) + "\n")
    options = ["--root", str(digits.root), "--exclude", str(tmp_path / "keys")]
    assert main(["audit", "--store", str(store), "--sources", "all", *options]) == 2
    assert "source 'digit0' has 3 held-out images in" in capsys.readouterr().err


def test_an_opponent_of_other_images_is_refused(
    store: Path, parts: Path, monolith: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for other in (parts, monolith):
        options = ["--against", f"mono={other}"]
        assert main(["audit", "--store", str(store), "--sources", "all", *options]) == 2
        assert "opponent 'mono' was fitted on other training images" in capsys.readouterr().err


def test_an_opponent_of_more_sources_of_the_same_store_is_refused(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--sources", "[digit0, digit1]", "--against", f"same={store}"]
    assert main(["audit", "--store", str(store), *options]) == 2
    assert "opponent 'same' was fitted on other training images" in capsys.readouterr().err


def test_a_policy_is_kept(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "policy.yaml").write_text("users:\n  alice: {allow: [digit1]}\n")
    policy = ["--user", "alice", "--policy", str(tmp_path / "policy.yaml")]
    out = tmp_path / "a.json"
    assert main(["audit", "--store", str(store), *policy, "--json", str(out), *QUICK, "--extractor", "none"]) == 0
    assert json.loads(out.read_text())["sources"] == ["digit1"]
    assert main(["audit", "--store", str(store), *policy, "--against", f"mono={store}"]) == 2
    assert "--against reads other stores" in capsys.readouterr().err


def test_a_backbone_of_another_public_is_refused(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(parts, tmp_path / "other"))
    info = json.loads((other / "store.json").read_text())
    (other / "store.json").write_text(json.dumps(info | {"public_data_sha256": "0" * 64}))
    assert main(["audit", "--store", str(parts), "--sources", "all", "--against", f"mono={other}"]) == 2
    assert "opponent 'mono' has a backbone of another public" in capsys.readouterr().err

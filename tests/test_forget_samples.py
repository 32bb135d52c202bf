"""`forget --sample`. Oracles: bytes of a fit that excludes it, a search for key and hash, manifests made by hand."""

import hashlib
import hmac
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cdm_lightning.cli import main
from cdm_lightning.collaboration import export_backbone
from cdm_lightning.errors import BadInput
from cdm_lightning.forget_samples_command import find
from cdm_lightning.store import Store
from cdm_lightning.validate_command import heldout_images
from cdm_lightning.verification import faults
from datamodules.exclusions import add_forgotten, forgotten_keys
from datamodules.manifest import ImageShape, Manifest, Sample, read_manifest, usable
from tests.conftest import Fit
from tests.faults import Fault, failing_at, lose_power, operations_of
from tests.test_forget import tree

KINDS = {"none": (), "tokens": ("--model.compartment", "tokens", "--trainer.max_steps", "5")}
SOURCES = ("digit0", "digit1")


@pytest.fixture(scope="module")
def stores(store: Path, fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a store of two digits of every kind; read them, do not change them."""
    made = {}
    for kind, options in KINDS.items():
        made[kind] = export_backbone(Store.open(store), tmp_path_factory.mktemp(kind) / "store").path
        assert fit(made[kind], "[digit0, digit1]", *options) == 0
    return made


@pytest.fixture
def mine(stores: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(stores["none"], tmp_path / "mine"))


def keys_of(workplace: Path, source: str, part: Any) -> list[str]:
    return list(usable(read_manifest(workplace / "shards" / source), part, frozenset()))


def forget(store: Path, workplace: Path, *options: str) -> int:
    return main(["forget", "--store", str(store), "--root", str(workplace / "shards"), *options])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_has_never_learned_it(
    kind: str, stores: dict[str, Path], store: Path, fit: Fit, workplace: Path, tmp_path: Path
) -> None:
    mine, key = Path(shutil.copytree(stores[kind], tmp_path / "mine")), keys_of(workplace, "digit1", "train")[4]
    assert forget(mine, workplace, "--sample", key, "--json", str(tmp_path / "receipt.json")) == 0
    (tmp_path / "excluded").write_text(key + "\n")
    never = export_backbone(Store.open(store), tmp_path / "never").path
    options = ("--data.exclude", str(tmp_path / "excluded"), *KINDS[kind])
    assert fit(never, "[digit0, digit1]", *options) == 0
    assert tree(mine / "compartments") == tree(never / "compartments")
    assert tree(mine / "compartments" / "digit0") == tree(stores[kind] / "compartments" / "digit0")
    assert tree(mine / "compartments" / "digit1") != tree(stores[kind] / "compartments" / "digit1")
    assert faults(Store.open(mine)) == []
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    assert (receipt["samples"], list(receipt["sources"])) == ({"digit1": [key]}, ["digit1"])
    hashes = Store.open(stores[kind]).compartments_sha256(), Store.open(mine).compartments_sha256()
    assert [receipt["sources"]["digit1"][when] for when in ("before", "after")] == [one["digit1"] for one in hashes]
    sha256 = read_manifest(workplace / "shards" / "digit1").samples[key].sha256
    assert [name for name, data in tree(mine).items() if key.encode() in data or sha256.encode() in data] == []
    before = tree(mine / "compartments")
    assert fit(mine, "[digit0, digit1]", *KINDS[kind]) == 0
    assert tree(mine / "compartments") == before, "no later fit learns it again"


def test_a_held_out_sample_is_no_longer_measured_with(mine: Path, workplace: Path, tmp_path: Path) -> None:
    key, before = keys_of(workplace, "digit1", "heldout")[0], tree(mine / "compartments")
    features = mine / "runs" / "sources" / "digit1" / "effnet-lite0-0.safetensors"
    features.write_bytes(b"features")
    count = len(heldout_images(Store.open(mine), ["digit1"], workplace / "shards", None)["digit1"])
    assert forget(mine, workplace, "--sample", key, "--json", str(tmp_path / "receipt.json")) == 0
    assert tree(mine / "compartments") == before
    assert not features.exists()
    assert len(heldout_images(Store.open(mine), ["digit1"], workplace / "shards", None)["digit1"]) == count - 1
    done = json.loads((tmp_path / "receipt.json").read_text())["sources"]["digit1"]
    assert done["before"] == done["after"] is not None


def test_without_any_image_the_compartment_goes(mine: Path, workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("\n".join(keys_of(workplace, "digit1", "train")))
    options = ("--list", str(tmp_path / "list"), "--json", str(tmp_path / "receipt.json"))
    assert forget(mine, workplace, *options) == 0
    assert Store.open(mine).sources() == ["digit0"]
    done = json.loads((tmp_path / "receipt.json").read_text())["sources"]["digit1"]
    assert (done["before"] is None, done["after"]) == (False, None)
    assert faults(Store.open(mine)) == []
    assert [path.name for path in (mine / "exclusions").iterdir()] == ["digit1.json"]


def test_a_list_of_samples_of_two_sources(mine: Path, workplace: Path, tmp_path: Path) -> None:
    keys = [keys_of(workplace, source, "train")[7] for source in SOURCES]
    (tmp_path / "list").write_text("\n".join(keys))
    before = Store.open(mine).compartments_sha256()
    assert forget(mine, workplace, *(word for key in keys for word in ("--sample", key)), "--dry-run") == 0
    assert Store.open(mine).compartments_sha256() == before
    assert not (mine / "exclusions").exists()
    assert forget(mine, workplace, "--list", str(tmp_path / "list")) == 0
    after = Store.open(mine).compartments_sha256()
    assert all(before[source] != after[source] for source in SOURCES)
    again = tree(mine, "runs")
    assert forget(mine, workplace, "--list", str(tmp_path / "list")) == 0
    assert tree(mine, "runs") == again, "a second time it does nothing"


def test_nothing_is_lost_wherever_it_is_cut(mine: Path, workplace: Path, tmp_path: Path) -> None:
    key = keys_of(workplace, "digit1", "train")[4]
    whole = Path(shutil.copytree(mine, tmp_path / "whole"))
    operations = operations_of(lambda: forget(whole, workplace, "--sample", key))
    assert operations > 20
    for k in range(0, operations, 5):
        cut = Path(shutil.copytree(mine, tmp_path / f"cut{k}"))
        with failing_at(k), pytest.raises(Fault):
            forget(cut, workplace, "--sample", key)
        assert faults(Store.open(cut)) == []
        assert set(Store.open(cut).sources()) >= {"digit0"}
        assert forget(cut, workplace, "--sample", key) == 0
        assert tree(cut / "compartments") == tree(whole / "compartments")
        assert [path.name for path in (cut / "exclusions").iterdir() if "tmp" not in path.name] == ["digit1.json"]
        assert faults(Store.open(cut)) == []
        shutil.rmtree(cut)


def test_an_unfinished_training_on_the_image_goes(
    store: Path, fit: Fit, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = export_backbone(Store.open(store), tmp_path / "mine").path
    checkpoints = ("--trainer.enable_checkpointing", "true", "--checkpoint_every", "2")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_compartment", lose_power)
        with pytest.raises(RuntimeError, match="lost power"):
            fit(place, "[digit1]", *KINDS["tokens"], *checkpoints)
    own = place / "runs" / "sources" / "digit1"
    assert list(own.glob("*.ckpt"))
    key = keys_of(workplace, "digit1", "train")[4]
    assert forget(place, workplace, "--sample", key, "--json", str(tmp_path / "receipt.json")) == 0
    assert not [path for path in own.rglob("*") if path.is_file()]
    removed = json.loads((tmp_path / "receipt.json").read_text())["sources"]["digit1"]["removed"]
    assert "runs/sources/digit1/last.ckpt" in [one["path"] for one in removed]


@pytest.mark.parametrize("missing", ["README.md", "card.json", "compartment.safetensors"])
def test_what_lacks_a_file_is_taken_for_having_learned_it(
    missing: str, mine: Path, stores: dict[str, Path], workplace: Path, tmp_path: Path
) -> None:
    """And damage in another source is no obstacle."""
    (mine / "compartments" / "digit1" / missing).unlink()
    (mine / "compartments" / "digit0" / "compartment.safetensors").unlink()
    key = keys_of(workplace, "digit1", "train")[4]
    assert forget(mine, workplace, "--sample", key) == 0
    whole = Path(shutil.copytree(stores["none"], tmp_path / "whole"))
    assert forget(whole, workplace, "--sample", key) == 0
    assert tree(mine / "compartments" / "digit1") == tree(whole / "compartments" / "digit1")


@pytest.mark.parametrize("written", ["sample: {key}", "sample: [{key}]"])
def test_a_configuration_names_samples(
    written: str, mine: Path, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = keys_of(workplace, "digit1", "train")[4]
    (tmp_path / "f.yaml").write_text(written.format(key=key))
    options = ("--config", str(tmp_path / "f.yaml"), "--dry-run", "--json", str(tmp_path / "receipt.json"))
    assert forget(mine, workplace, *options) == 0
    assert json.loads((tmp_path / "receipt.json").read_text())["samples"] == {"digit1": [key]}
    (tmp_path / "f.yaml").write_text("sample: [12]")
    assert forget(mine, workplace, "--config", str(tmp_path / "f.yaml")) == 2
    assert "sample 12 is no text: write it in quotes" in capsys.readouterr().err


def test_an_empty_list_names_nothing(
    mine: Path, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list").write_text("\n")
    assert forget(mine, workplace, "--list", str(tmp_path / "list")) == 2
    assert "no sample is named" in capsys.readouterr().err
    assert forget(mine, workplace, "--list", str(tmp_path / "none")) == 2
    assert "--list: '" in capsys.readouterr().err


def test_nothing_is_taken_away_that_could_not_be_fitted_again(
    store: Path, fit: Fit, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, excluded = export_backbone(Store.open(store), tmp_path / "mine").path, tmp_path / "excluded"
    first, key = keys_of(workplace, "digit1", "train")[:2]
    excluded.write_text(first)
    assert fit(mine, "[digit1]", "--data.exclude", str(excluded)) == 0
    excluded.unlink()
    before = tree(mine)
    assert forget(mine, workplace, "--sample", key) == 2
    assert f"exclude: '{excluded}' is no file" in capsys.readouterr().err
    assert tree(mine) == before
    excluded.write_text(first)
    assert forget(mine, workplace, "--sample", key) == 0


def test_a_source_is_fitted_again_from_the_shards_that_it_was_fitted_from(
    store: Path, fit: Fit, workplace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Oracle: the bytes of a fit without the image on the same shards; elsewhere there are others of the same name."""
    mine, other = export_backbone(Store.open(store), tmp_path / "mine").path, tmp_path / "other"
    shutil.copytree(workplace / "shards", other)
    assert fit(mine, "[digit1]") == fit(mine, "[digit0]", "--data.root", str(other)) == 0
    key = keys_of(workplace, "digit1", "train")[4]
    assert main(["forget", "--store", str(mine), "--sample", key, "--source", "digit1"]) == 0
    (tmp_path / "excluded").write_text(key)
    never = export_backbone(Store.open(store), tmp_path / "never").path
    assert fit(never, "[digit1]", "--data.exclude", str(tmp_path / "excluded")) == 0
    assert tree(mine / "compartments" / "digit1") == tree(never / "compartments" / "digit1")
    assert Store.open(mine).read_card("digit1").data_sha256 == Store.open(never).read_card("digit1").data_sha256
    (tmp_path / "fewer").write_text("\n".join(keys_of(workplace, "digit1", "train")[6:9]))
    assert fit(never, "[digit1]", "--data.exclude", str(tmp_path / "fewer")) == 0
    (tmp_path / "fewer").write_text("\n".join(keys_of(workplace, "digit1", "train")[6:8]))
    assert forget(never, workplace, "--sample", key) == 0
    assert f"'digit1' was fitted on other images than {workplace / 'shards'} has; it is fitted again" in caplog.text


def test_where_several_folders_hold_the_shards_they_are_named(
    store: Path, fit: Fit, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, other = export_backbone(Store.open(store), tmp_path / "mine").path, tmp_path / "other"
    shutil.copytree(workplace / "shards", other)
    assert fit(mine, "[digit1]") == fit(mine, "[digit0]", "--data.root", str(other)) == 0
    before = tree(mine)
    assert main(["forget", "--store", str(mine), "--sample", keys_of(workplace, "digit1", "train")[4]]) == 2
    said = capsys.readouterr().err
    assert "were fitted from shards in" in said
    assert str(other) in said
    assert str(workplace / "shards") in said
    assert tree(mine) == before


def test_what_was_cut_goes_on_without_a_word_of_where_the_shards_are(
    mine: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, whole = keys_of(workplace, "digit1", "train")[4], Path(shutil.copytree(mine, tmp_path / "whole"))
    assert forget(whole, workplace, "--sample", key) == 0
    shutil.rmtree(mine / "runs" / "composed")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_compartment", lose_power)
        with pytest.raises(RuntimeError, match="lost power"):
            forget(mine, workplace, "--sample", key, "--source", "digit1")
    assert not (mine / "compartments" / "digit1").exists()
    assert main(["forget", "--store", str(mine), "--sample", key, "--source", "digit1"]) == 0
    assert tree(mine / "compartments") == tree(whole / "compartments")


def test_an_unknown_sample(mine: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, key = tree(mine), keys_of(workplace, "digit1", "train")[0]
    assert forget(mine, workplace, "--sample", f"{key}x") == 2
    assert f"sample '{key}x' is not in any source of digit0, digit1, " in capsys.readouterr().err
    assert forget(mine, workplace, "--sample", key, "--source", "digit0") == 2
    assert f"sample '{key}' is not in source 'digit0'" in capsys.readouterr().err
    assert main(["forget", "--store", str(mine)]) == 2
    assert "nothing to forget is named" in capsys.readouterr().err
    assert tree(mine) == before


# --- where a sample is


def manifest(source: str, contents: dict[str, str]) -> Manifest:
    samples = {key: Sample(content, "x", "train") for key, content in contents.items()}
    return Manifest(source, "", ImageShape(8, 1), {}, samples)


MANIFESTS = {
    "ann": manifest("ann", {"a1": "sun", "a2": "moon", "a3": "sun"}),
    "bob": manifest("bob", {"b1": "sun", "b2": "star"}),
    "cid": manifest("cid", {"a1": "rain"}),
    "public": manifest("public", {"p1": "moon", "p2": "moon"}),
}


def test_the_same_image_goes_under_every_key_of_its_source() -> None:
    found = find(MANIFESTS, frozenset({"a3"}), None, everywhere=False)
    assert found.keys == {"ann": {"a1", "a3"}}
    assert found.elsewhere == {"bob": {"b1"}}
    assert found.public == 0
    everywhere = find(MANIFESTS, frozenset({"a3"}), None, everywhere=True)
    assert everywhere.keys == {"ann": {"a1", "a3"}, "bob": {"b1"}}
    assert everywhere.elsewhere == {}


def test_a_key_that_two_sources_have_means_both_unless_one_is_named() -> None:
    assert find(MANIFESTS, frozenset({"a1"}), None, False).keys == {"ann": {"a1", "a3"}, "cid": {"a1"}}
    named = find(MANIFESTS, frozenset({"a1"}), "cid", False)
    assert (named.keys, named.elsewhere) == ({"cid": {"a1"}}, {})


def test_images_of_public_are_counted_and_its_keys_are_none() -> None:
    assert find(MANIFESTS, frozenset({"a2"}), None, True).public == 2
    with pytest.raises(BadInput, match="sample 'p1' is not in any source of ann, bob, cid"):
        find(MANIFESTS, frozenset({"p1"}), None, True)


def test_the_list_is_of_keyed_hashes(tmp_path: Path) -> None:
    add_forgotten(tmp_path, "ann", ["a1"])
    add_forgotten(tmp_path, "ann", ["a3", "a1"])
    add_forgotten(tmp_path, "bob", ["a1"])
    lists = [json.loads((tmp_path / f"{source}.json").read_text()) for source in ("ann", "bob")]
    for values, keys in zip(lists, (["a1", "a3"], ["a1"]), strict=True):
        secret = bytes.fromhex(values["secret"])
        assert sorted(values["samples"]) == sorted(
            hmac.new(secret, key.encode(), hashlib.sha256).hexdigest() for key in keys
        )
    assert lists[0]["secret"] != lists[1]["secret"]
    assert forgotten_keys(tmp_path, "ann", ["a1", "a2", "a3"]) == {"a1", "a3"}
    assert forgotten_keys(tmp_path, "cid", ["a1"]) == frozenset()
    whole = json.loads((tmp_path / "ann.json").read_text())
    unsealed = {name: whole[name] for name in ("secret", "samples")}
    (tmp_path / "ann.json").write_text(json.dumps(unsealed))
    assert forgotten_keys(tmp_path, "ann", ["a1", "a2", "a3"]) == {"a1", "a3"}
    flipped = whole["samples"][0][:-1] + ("0" if whole["samples"][0][-1] != "0" else "1")
    for damaged in ({"samples": [flipped, *whole["samples"][1:]]}, {"samples": whole["samples"][1:]}, {"x": 1}):
        (tmp_path / "ann.json").write_text(json.dumps(whole | damaged))
        with pytest.raises(BadInput, match="ann.json is damaged .it is not as it was written"):
            forgotten_keys(tmp_path, "ann", ["a1"])
    for other in ({"secret": "", "samples": ["ab"]}, {"secret": "00" * 32, "samples": "abc"}, "x", 5, None):
        (tmp_path / "ann.json").write_text(json.dumps(other))
        with pytest.raises(BadInput, match="ann.json is damaged"):
            forgotten_keys(tmp_path, "ann", ["a1"])
    (tmp_path / "ann.json").write_text("{}")
    with pytest.raises(BadInput, match="ann.json is damaged .* would be learned again"):
        forgotten_keys(tmp_path, "ann", ["a1"])

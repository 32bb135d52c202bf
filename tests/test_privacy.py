"""Private sources by command line: what is stored, what is not, what adds up, and what is refused."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cdm_lightning import private_fitting
from cdm_lightning import refit as refit_module
from cdm_lightning.card import Card, model_card
from cdm_lightning.cli import main
from cdm_lightning.collaboration import export_backbone
from cdm_lightning.errors import BadInput, StoreError
from cdm_lightning.gaussian_mechanism import composed, epsilon_of, mu_of
from cdm_lightning.packing import open_compartments, unpack_backbone
from cdm_lightning.privacy import Privacy, together
from cdm_lightning.private_runs import MARK, RECORD
from cdm_lightning.releases import RELEASES, Cost, Spent, cost_of, note_release, released
from cdm_lightning.report import cards_of
from cdm_lightning.seeding import generator
from cdm_lightning.store import COMPARTMENT, CONFIG, Store
from cdm_lightning.store_commands import listing, listing_data
from cdm_lightning.tensor_files import unpack
from cdm_lightning.verify_forgotten import comparison, fitted_again
from datamodules.manifest import FILTERED, read_manifest
from tests.conftest import Fit

PRIVATE = ("--privacy.epsilon", "8", "--privacy.delta", "1e-4")
LOGGED = ("--trainer.logger", "true")


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return the option that names a file with a secret."""
    path = tmp_path_factory.mktemp("secret") / "secret"
    path.write_text("0123456789abcdef0123456789abcdef\n")
    return "--privacy.secret_file", str(path)


@pytest.fixture(scope="module")
def private(store: Path, fit: Fit, secret: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of three plain sources and a private one, digit4; read it, do not change it."""
    path = Path(shutil.copytree(store, tmp_path_factory.mktemp("private") / "store"))
    assert fit(path, "[digit0, digit4]", *PRIVATE, *secret, "--privacy.sources", "[digit4]", *LOGGED) == 0
    return path


@pytest.fixture
def copy(private: Path, tmp_path: Path) -> Path:
    """Return a copy of that store, to be changed."""
    return Path(shutil.copytree(private, tmp_path / "copy"))


@pytest.fixture
def plain(store: Path, tmp_path: Path) -> Path:
    """Return a store of three plain sources, to be changed."""
    return Path(shutil.copytree(store, tmp_path / "plain"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def published(store: Path) -> dict[str, bytes]:
    """Return the files of a store that may be published, but for locks and for what has the dates of today."""
    return {name: data for name, data in shown(store).items() if not name.endswith(".jsonl")}


def shown(store: Path) -> dict[str, bytes]:
    """Return the files of a store that may be published, ledger and releases too."""
    kept = {name: data for name, data in files(store).items() if not name.startswith(("runs/", "exclusions/"))}
    return {name: data for name, data in kept.items() if not name.endswith(".lock")}


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip()


def test_private_and_plain_sources_share_a_store(private: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store.open(private)
    plain, own = store.read_card("digit0"), store.read_card("digit4")
    assert (plain.epsilon, plain.delta) == (None, None)
    assert (own.epsilon, own.delta, own.settings["releases"]) == (8.0, 1e-4, 1)
    assert (own.class_counts, own.data_sha256) == ({}, "")
    assert main(["store", "list", "--store", str(private)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {row[0]: row[6] for row in rows[1:5]} == {f"digit{k}": "-" for k in range(3)} | {"digit4": "8"}
    assert main(["store", "verify", "--store", str(private)]) == 0
    opened = open_compartments(store, ["digit0", "digit4"], sigma_switch=None, device="cpu")
    assert opened.prior()["digit4"] == pytest.approx(own.n / (own.n + plain.n))
    x = torch.randn(2, *store.info.image_shape, generator=generator("x"))
    assert bool(opened["digit4"](x, torch.full((2,), 0.5)).isfinite().all())


def test_up_to_date_is_no_new_release(copy: Path, fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    before = published(copy)
    caplog.set_level("INFO")
    assert fit(copy, "[digit4]", *PRIVATE, "--seed", "5") == 0
    (copy / "runs" / "sources" / "digit4" / RECORD).unlink()
    assert fit(copy, "[digit4]", *PRIVATE) == 0
    assert len([record for record in caplog.records if "up to date" in record.message]) == 2
    assert published(copy) == before
    assert len(released(copy, "digit4").mus) == 1


def test_changed_images_are_noticed_though_the_fit_was_cut_before_its_record(
    copy: Path, fit: Fit, tmp_path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(private_fitting, "keep_record", interrupted)
        assert fit(copy, "[digit4]", *PRIVATE, "--refit") == 130
    assert fit(copy, "[digit4]", *PRIVATE) == 0
    assert len(released(copy, "digit4").mus) == 2, "up to date"
    (tmp_path / "exclude").write_text(f"{next(iter(read_manifest(workplace / 'shards' / 'digit4').samples))}\n")
    assert fit(copy, "[digit4]", *PRIVATE, "--data.exclude", str(tmp_path / "exclude")) == 0
    assert len(released(copy, "digit4").mus) == 3


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_what_another_store_has_released_counts_once_it_is_added(private: Path, fit: Fit, tmp_path: Path) -> None:
    central = export_backbone(Store.open(private), tmp_path / "central").path
    assert fit(Path(shutil.copytree(central, tmp_path / "home")), "[digit4]", *PRIVATE) == 0
    for place in (private, private, tmp_path / "home"):
        add = ["store", "add", "--store", str(central), str(place / "compartments" / "digit4"), "--replace"]
        assert main(add) == 0
    assert released(central, "digit4").mus == pytest.approx((mu_of(8, 1e-4), mu_of(8, 1e-4)))
    both = epsilon_of(mu_of(8, 1e-4) * 2**0.5, 1e-4)
    assert Store.open(central).read_card("digit4").epsilon == 8.0, "as its owner has made it"
    (row,) = listing_data(Store.open(central))
    assert row["epsilon"] == pytest.approx(both)
    assert f"together: epsilon {both:.4g} at delta 0.0001" in listing(Store.open(central))
    assert cards_of(Store.open(central), ["digit4"])["digit4"]["epsilon"] == pytest.approx(both)
    policy = tmp_path / "policy.yaml"
    for most, code in ((8, 2), (13, 0)):
        policy.write_text(
            f"max_epsilon: {most}\nroles: {{all: {{allow: [digit4]}}}}\nusers: {{ann: {{roles: [all]}}}}\n"
        )
        asked = ["--user", "ann", "--policy", str(policy), "--n", "1", "--steps", "2", "--out", str(tmp_path / "out")]
        assert main(["sample", "--store", str(central), *asked]) == code
    assert fit(central, "[digit4]", *PRIVATE, "--refit") == 0
    card = Store.open(central).read_card("digit4")
    assert (card.settings["releases"], card.epsilon) == (3, pytest.approx(epsilon_of(mu_of(8, 1e-4) * 3**0.5, 1e-4)))


def test_what_is_released_again_adds_up(copy: Path, fit: Fit, secret: tuple[str, str]) -> None:
    """Again by force, with another epsilon, and after forgetting: the releases are out, whatever became of them."""
    first = (copy / "compartments" / "digit4" / COMPARTMENT).read_bytes()
    assert fit(copy, "[digit4]", *PRIVATE, *secret, "--refit") == 0
    again = (copy / "compartments" / "digit4" / COMPARTMENT).read_bytes()
    tensors = [unpack(data, copy)[0] for data in (first, again)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0]), "one secret, one noise"
    assert main(["forget", "--store", str(copy), "--source", "digit4"]) == 0
    assert fit(copy, "[digit4]", "--privacy.epsilon", "1", "--privacy.delta", "1e-4", *secret) == 0
    card = Store.open(copy).read_card("digit4")
    mus = [mu_of(8, 1e-4), mu_of(8, 1e-4), mu_of(1, 1e-4)]
    assert released(copy, "digit4").mus == pytest.approx(mus)
    assert card.settings["releases"] == 3
    assert card.epsilon == pytest.approx(epsilon_of(composed(mus), 1e-4))
    assert "in 3 releases together" in model_card(card)
    assert main(["store", "verify", "--store", str(copy)]) == 0


def test_a_forgotten_image_costs_a_second_release(
    copy: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = workplace / "shards"
    samples = read_manifest(root / "digit4").samples
    key = next(key for key in sorted(samples) if samples[key].part == "train")
    assert main(["forget", "--store", str(copy), "--sample", key, "--root", str(root)]) == 0
    card = Store.open(copy).read_card("digit4")
    assert card.settings["releases"] == 2
    assert card.epsilon is not None
    assert 8 < card.epsilon < 16
    assert (copy / "exclusions" / MARK).exists(), "the list of what was forgotten is the owner's"
    assert main(["store", "verify", "--store", str(copy)]) == 0


def test_neighbours_have_the_same_files_sizes_and_keys(
    private: Path, plain: Path, fit: Fit, workplace: Path, secret: tuple[str, str], tmp_path: Path
) -> None:
    """Without one image of the private source: as many files, as long, with the same names of numbers in them."""
    samples = read_manifest(workplace / "shards" / "digit4").samples
    (tmp_path / "exclude").write_text(next(key for key in samples if samples[key].part == "train") + "\n")
    assert fit(plain, "[digit4]", *PRIVATE, *secret, "--data.exclude", str(tmp_path / "exclude")) == 0
    one, two = published(private), published(plain)
    assert one.keys() == two.keys()
    for name, data in one.items():
        if name.endswith(".safetensors"):
            assert len(data) == len(two[name])
            assert sorted(unpack(data, private)[0]) == sorted(unpack(two[name], private)[0])
        if name.endswith("card.json"):
            cards = [json.loads(text) for text in (data, two[name])]
            assert cards[0].keys() == cards[1].keys()
            assert {key: cards[0][key] for key in cards[0] if key != "n"} == {
                key: cards[1][key] for key in cards[1] if key != "n"
            }
    noised = [unpack(data["compartments/digit4/" + COMPARTMENT], private)[0] for data in (one, two)]
    apart = (noised[0]["fine.mean"] - noised[1]["fine.mean"]).norm(dim=1).min()
    assert float(apart) > 0.1, "other images have other noise, even under one secret"


def test_the_secret_makes_the_bytes_and_stays_where_it_is(
    private: Path, plain: Path, fit: Fit, secret: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(plain, "[digit4]", *PRIVATE, *secret) == 0
    assert published(private) == published(plain)
    said, needle = capsys.readouterr(), Path(secret[1]).read_bytes().strip()
    for name, data in files(plain).items():
        assert needle not in data, name
    assert needle.decode() not in said.out + said.err


def test_without_a_file_the_noise_is_another_each_time(plain: Path, private: Path, fit: Fit) -> None:
    assert fit(plain, "[digit4]", *PRIVATE) == 0
    name = f"compartments/digit4/{COMPARTMENT}"
    assert (plain / name).read_bytes() != (private / name).read_bytes()


def test_nothing_else_of_a_private_source_is_stored(private: Path, workplace: Path) -> None:
    """No hash or key of an image, no exact number, no log of its held-out images, but in what is marked as private."""
    manifest = read_manifest(workplace / "shards" / "digit4")
    told = [*manifest.samples, *(one.sha256 for one in manifest.samples.values())]
    told += [json.loads((private / "runs" / "sources" / "digit4" / RECORD).read_text())["data_sha256"]]
    assert {"ledger.jsonl", RELEASES} < shown(private).keys()
    for name, data in shown(private).items():
        assert not [text for text in told if text.encode() in data], name
    releases = [json.loads(line) for line in (private / RELEASES).read_text().splitlines()]
    assert [sorted(line) for line in releases] == [["date", "mu", "source"]]
    exact = len([sample for sample in manifest.samples.values() if sample.part == "train"])
    assert Store.open(private).read_card("digit4").n != exact, "noise of this secret, which is not 0"
    own = [name for name in files(private) if name.startswith("runs/sources/digit4/")]
    assert {Path(name).name for name in own} == {MARK, RECORD, "config.yaml"}
    assert (private / "runs" / MARK).exists()
    history = json.loads((private / "runs" / "composed" / "forgetting.json").read_text())
    assert "digit4" not in json.dumps(history), "its held-out images are not looked at"


def test_an_empty_private_source_does_not_show(plain: Path, fit: Fit, workplace: Path, tmp_path: Path) -> None:
    samples = read_manifest(workplace / "shards" / "digit4").samples
    (tmp_path / "exclude").write_text("".join(f"{key}\n" for key in samples))
    options = ("--data.exclude", str(tmp_path / "exclude"))
    assert fit(plain, "[digit4]", *PRIVATE, *options) == 0
    assert Store.open(plain).read_card("digit4").n < 60


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model.compartment", "lora"), "only tokens are trained with privacy so far"),
        (("--model.class_labels", "true"), "its classes would be released without privacy"),
        (("--privacy.epsilon", "0"), "privacy.epsilon is 0.0; expected a number above 0"),
        (("--privacy.delta", "0"), "privacy.delta is 0.0; expected"),
        (("--privacy.sources", "[digit44]"), "unknown source 'digit44': privacy.sources has"),
        (("--privacy.secret_file", "/nowhere"), "privacy.secret_file /nowhere cannot be read"),
        (("--privacy.delta", "0.5"), "privacy.delta is 0.5, above 1 / n of source 'digit4'"),
    ],
)
def test_what_cannot_be_private_is_refused(
    options: tuple[str, ...], said: str, plain: Path, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    before = published(plain)
    assert fit(plain, "[digit4]", *PRIVATE, *options) == 2
    assert said in error_of(capsys)
    assert published(plain) == before
    assert (plain / RELEASES).exists() == ("above 1 / n" in said), "the released number of images is told"


def test_secret_or_sources_without_epsilon_are_refused() -> None:
    with pytest.raises(BadInput, match=r"privacy\.epsilon is missing"):
        Privacy(sources=["cat"])


def test_a_private_source_does_not_become_plain_by_omission(
    copy: Path, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(copy, "[digit4]") == 2
    assert "is private" in error_of(capsys)
    assert Store.open(copy).read_card("digit4").epsilon == 8.0
    (copy / "compartments" / "digit4" / "README.md").unlink()
    assert fit(copy, "[digit4]") == 2, "nor by a file that is gone"
    assert "is private" in error_of(capsys)
    assert fit(copy, "[digit4]", *PRIVATE) == 0
    assert main(["forget", "--store", str(copy), "--source", "digit4"]) == 0
    assert fit(copy, "[digit4]") == 0, "who forgets a source begins anew"
    assert Store.open(copy).read_card("digit4").epsilon is None


def test_nor_while_an_image_of_it_is_being_forgotten(
    copy: Path, fit: Fit, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forget = ["forget", "--store", str(copy), "--sample", training_keys(workplace)[0], "--root"]
    forget.append(str(workplace / "shards"))
    with monkeypatch.context() as patch:
        patch.setattr(refit_module, "refit", interrupted)
        assert main(forget) == 130
    assert not Store.open(copy).has_compartment("digit4")
    capsys.readouterr()
    assert fit(copy, "[digit4]") == 2
    assert "is private" in error_of(capsys)
    assert main(forget) == 0
    assert Store.open(copy).read_card("digit4").epsilon is not None


def test_nor_by_the_recipe_of_the_plain_fit_that_it_has_replaced(
    private: Path, plain: Path, fit: Fit, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which `store add` takes away; an earlier version left it there."""
    assert fit(plain, "[digit4]") == 0
    home, recipe = private / "compartments" / "digit4", plain / "runs" / "sources" / "digit4" / CONFIG
    of_the_plain_fit = recipe.read_text()
    assert main(["store", "add", "--store", str(plain), str(home), "--replace"]) == 0
    assert not recipe.exists()
    recipe.write_text(of_the_plain_fit)
    before = published(plain)
    capsys.readouterr()
    forget = ["forget", "--store", str(plain), "--sample", training_keys(workplace)[0], "--root"]
    assert main([*forget, str(workplace / "shards")]) == 2
    assert "is of a fit without privacy: fit it with privacy.epsilon and --refit first" in error_of(capsys)
    assert published(plain) == before


def training_keys(workplace: Path) -> list[str]:
    """Return the keys of digit4's training images."""
    samples = read_manifest(workplace / "shards" / "digit4").samples
    return [key for key in sorted(samples) if samples[key].part == "train"]


def test_that_no_image_is_left_does_not_show(copy: Path, workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "all").write_text("".join(f"{key}\n" for key in training_keys(workplace)))
    forget = ["forget", "--store", str(copy), "--list", str(tmp_path / "all"), "--root", str(workplace / "shards")]
    assert main(forget) == 0
    card = Store.open(copy).read_card("digit4")
    assert (card.settings["releases"], card.n < 60) == (2, True)


def test_other_code_has_other_noise_under_one_secret(
    private: Path, plain: Path, fit: Fit, secret: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it the same, the difference of two releases would be that of the bare sums."""
    monkeypatch.setattr(private_fitting, "code_sha256", lambda: "another")
    assert fit(plain, "[digit4]", *PRIVATE, *secret) == 0
    forms = [unpack((path / "compartments/digit4" / COMPARTMENT).read_bytes(), path)[0] for path in (private, plain)]
    assert not torch.allclose(forms[0]["fine.mean"], forms[1]["fine.mean"], atol=1e-2)


def test_a_filtered_public_is_refused(
    plain: Path, fit: Fit, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(workplace / "shards", tmp_path / "shards"))
    (tmp_path / "exclude").write_text(next(iter(read_manifest(root / "public").samples)) + "\n")
    excluded = ("--data.exclude", str(tmp_path / "exclude"))
    assert fit(plain, "[digit4]", *PRIVATE, "--data.root", str(root), *excluded) == 2
    assert "public was filtered (shards --drop-from-public, or data.exclude" in error_of(capsys)
    (root / "public" / FILTERED).write_text("")
    assert fit(plain, "[digit4]", *PRIVATE, "--data.root", str(root)) == 2
    assert "public was filtered (shards --drop-from-public, or data.exclude of public images)" in error_of(capsys)
    made = tmp_path / "made"
    written = ["shards", "--from", "digits", "--out", str(made), "--public-fraction", "0.4"]
    assert main([*written, "--drop-from-public"]) == 0
    assert (made / "public" / FILTERED).exists()
    assert main(written) == 0
    assert not (made / "public" / FILTERED).exists()


def test_a_backbone_is_trained_on_private_drafts(
    fit: Fit, tmp_path: Path, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so, and expects larger errors of drafts than the plain one; a store may have private sources only."""
    caplog.set_level("INFO")
    assert fit(tmp_path / "fresh", "[digit4]", *PRIVATE, *LOGGED, "--model.backbone_steps", "2") == 0
    assert "[2/2] composed model: every source is private" in caplog.text
    assert not (tmp_path / "fresh" / "runs" / "composed" / "forgetting.json").exists()
    (_, public), (_, plain) = (unpack_backbone(*Store.open(p).read_backbone()) for p in (tmp_path / "fresh", store))
    noted = Store.open(tmp_path / "fresh").read_backbone()[1]
    assert noted["privacy"] == {"epsilon": 8.0, "delta": 1e-4}
    assert "privacy" not in Store.open(store).read_backbone()[1]
    assert torch.equal(public.closed_form.mean, plain.closed_form.mean)
    levels = (public.error.sigma > 0.2) & (public.error.sigma < 2)
    assert bool((public.error.error[:, levels] > plain.error.error[:, levels]).all())


def test_verify_forgotten_does_not_ask_for_the_noise(private: Path, tmp_path: Path) -> None:
    """To fit a private source again would be a release; what is fitted again are the others."""
    asked: list[str] = []
    again = fitted_again(Store.open(private), tmp_path / "again", lambda config, store, source: asked.append(source))
    assert asked == ["digit0", "digit1", "digit2"]
    said = {check.said: check.holds for check in comparison(Store.open(private), again, "digit9")}
    assert said["digit4: private (epsilon 8): nobody has its noise, so its bytes are not compared"]


def test_a_compartment_of_home_is_taken(private: Path, plain: Path) -> None:
    assert main(["store", "add", str(private / "compartments" / "digit4"), "--store", str(plain)]) == 0
    assert Store.open(plain).read_card("digit4").epsilon == 8.0


def card(source: str, epsilon: float | None, delta: float | None) -> Card:
    """Return a card with this budget."""
    own: dict[str, Any] = {} if epsilon is None else {"spent_epsilon": epsilon, "delta": delta, "releases": 1}
    return Card(source, 9, {}, "", 0, 0, "none", 0, None, own, "", (1, 2, 2), "", "", 1)


def test_disjoint_sources_compose_in_parallel_and_shared_images_add_up() -> None:
    assert together([None]) is None
    one = together([Cost(2.0, 1e-6, 0.0), Cost(4.0, 1e-5, 0.0), None])
    assert one is not None
    assert (one.epsilon, one.delta) == (4.0, 1e-5)
    mus = composed([mu_of(2.0, 1e-6), mu_of(4.0, 1e-5)])
    assert one.epsilon_of_all == pytest.approx(epsilon_of(mus, 1e-5))
    alone = together([Cost(4.0, 1e-5, 0.0)])
    assert alone is not None
    assert alone.epsilon_of_all == pytest.approx(4.0)
    for unbounded in ([Cost(math.inf, 1e-5, 0.0), Cost(2.0, 1e-5, 0.0)], [Cost(2.0, 1e-5, 6e-6)] * 2):
        assert together(unbounded).epsilon_of_all == math.inf


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, "8", True])
def test_a_damaged_budget_is_told(value: Any) -> None:
    with pytest.raises(StoreError, match="card of source 'a' is damaged"):
        _ = card("a", value, 1e-5).epsilon


def test_releases_are_kept_by_source_and_damage_is_told(tmp_path: Path) -> None:
    assert released(tmp_path, "a") == Spent((), 0.0)
    for source, mu, slack in (("a", 1.5, 0.0), ("b", 2.0, 0.1), ("a", 0.5, 2.0**-18), ("a", 1.0, 2.0**-17)):
        note_release(tmp_path, source, mu, slack)
    slack = 3 * 2.0**-18
    assert released(tmp_path, "a") == Spent((1.5, 0.5, 1.0), slack)
    assert released(tmp_path, "a").epsilon(1e-4) == epsilon_of(composed([1.5, 0.5, 1.0]), 1e-4 - slack)
    assert released(tmp_path, "a").epsilon(slack) == math.inf
    with (tmp_path / RELEASES).open("a") as file:
        file.write('{"source": "a", "mu": -1}\n')
    with pytest.raises(StoreError, match="line 5"):
        released(tmp_path, "a")


def test_the_slack_of_a_card_from_elsewhere_counts(tmp_path: Path) -> None:
    own = card("a", 8.0, 1e-4)
    own = replace(own, settings=own.settings | {"slack": 2e-6})
    assert own.slack == 2e-6
    assert cost_of(tmp_path, own) == Cost(8.0, 1e-4, 2e-6)
    note_release(tmp_path, "a", 0.1, 5e-6)
    assert cost_of(tmp_path, own) == Cost(8.0, 1e-4, 5e-6)

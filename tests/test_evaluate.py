"""`evaluate`. Oracles: denoisers composed by hand, `validate`, the same store as its own opponent, equal bytes."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from cdm_lightning import cost
from cdm_lightning.cli import main
from cdm_lightning.comparison import Comparison
from cdm_lightning.comparison_table import cost as cost_table
from cdm_lightning.comparison_table import interval, proportions, quality, terminal
from cdm_lightning.composition import ComposedDenoiser
from cdm_lightning.contenders import Contender, Opened
from cdm_lightning.evidence import Calibration, GaussianEvidence
from cdm_lightning.extractors import FeatureExtractor
from cdm_lightning.fidelity import images_of_batches, sampled_images
from cdm_lightning.generation import Settings, sample_batch
from cdm_lightning.line_up import contender, default_names
from cdm_lightning.packing import open_compartments
from cdm_lightning.proportions import confusion_of
from cdm_lightning.proportions import proportions as judged_proportions
from cdm_lightning.store import Store
from cdm_lightning.tensor_files import read_tensors
from datamodules import ShardDataModule
from tests.conftest import Fit
from tests.dummy_extractor import DummyExtractor
from tests.made_shards import content
from tests.test_validate import copied

N, STEPS = 8, 5
SETTINGS = Settings(n=N, steps=STEPS)
SAMPLED = ("--n", str(N), "--steps", str(STEPS))
MEMORY = 2**20
MEASURED = ("scores", "intervals", "frechet_ratio", "proportions", "near_copies", "network_evaluations_per_image")


@pytest.fixture(autouse=True, scope="module")
def extractor() -> Iterator[DummyExtractor]:
    """Put extractors of few features in the place of the real ones, and leave out the process for the memory."""
    dummy = DummyExtractor("effnet-lite0")

    def opened(name: str, weights: str | None) -> FeatureExtractor:
        return dummy if name == dummy.name else DummyExtractor(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cdm_lightning.evaluate_command.open_extractor", opened)
        patch.setattr("cdm_lightning.validate_command.open_extractor", opened)
        patch.setattr("cdm_lightning.comparison.peak_memory", lambda *_: MEMORY)
        patch.setattr("cdm_lightning.cost.TURNS", 1)
        yield dummy


@pytest.fixture(scope="module")
def all_rows(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an evaluation of every row; read it, do not change it."""
    out = tmp_path_factory.mktemp("evaluate") / "out"
    evaluate(store, out, "--against", f"twin={store}", f"twin@inf={store}")
    return out


def evaluate(store: Path, out: Path, *options: str) -> dict[str, Any]:
    """Evaluate a store and return its rows by name."""
    assert main(["evaluate", "--store", str(store), "--sources", "all", "--out", str(out), *SAMPLED, *options]) == 0
    return rows_of(out)


def rows_of(out: Path) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads((out / "table.json").read_text())["rows"]}


def tables(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("table.json", "table.md", "samples.png")}


def images(out: Path, name: str) -> torch.Tensor:
    return read_tensors(out / "rows" / f"{name}.safetensors")[0]["images"]


# --- what is sampled


def test_every_row_that_the_store_allows_is_there(all_rows: Path) -> None:
    own = ["closed_form", "public", "uniform", "posterior", "routed", "assign", "draft"]
    assert list(rows_of(all_rows)) == [*own, "twin", "twin@inf"]


def test_a_plain_store_has_no_draft(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdm_lightning.compartments.Compartments.obstacle", "the backbone is not guided")
    assert "draft" not in default_names(Store.open(store), ["digit0"], "cpu")


def test_closed_form_is_the_composition_of_closed_forms(store: Path, all_rows: Path) -> None:
    parts = open_compartments(Store.open(store), "all", sigma_switch=None, device="cpu")
    forms = {source: own.closed_form for source, own in parts.compartments.items()}
    composed = ComposedDenoiser(
        {source: form.denoise for source, form in forms.items()},
        {source: GaussianEvidence(form, Calibration.none(), 0.0) for source, form in forms.items()},
        parts.prior(),
        "posterior",
        0.0,
    )
    found, expected = images(all_rows, "closed_form"), sampled_images(composed, forms["digit0"].shape, SETTINGS)
    apart = (found.int() - expected.int()).abs()  # sums in another order
    assert apart.max() <= 1
    assert (apart > 0).double().mean() < 0.01
    assert rows_of(all_rows)["closed_form"]["network_evaluations_per_image"] == 0


def test_strategies_are_those_of_sample(store: Path, all_rows: Path) -> None:
    parts = open_compartments(Store.open(store), "all", sigma_switch=None, device="cpu")
    for strategy in ("uniform", "posterior", "routed", "assign", "draft"):
        composed = parts.composed(strategy)  # type: ignore[arg-type]
        assert torch.equal(images(all_rows, strategy), sampled_images(composed, (1, 8, 8), SETTINGS))


def test_public_depends_on_no_source(store: Path, all_rows: Path) -> None:
    opened = contender(Store.open(store), ["digit2"], "public").open("cpu")
    assert torch.equal(images(all_rows, "public"), sampled_images(opened.composed, (1, 8, 8), SETTINGS))
    assert 0 < opened.compartments.evaluations < N * (2 * STEPS - 1)


def test_the_draft_of_public_is_its_closed_form(store: Path) -> None:
    opened = contender(Store.open(store), ["digit2"], "public").open("cpu")
    x, sigma = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((3,), 4.0)
    expected = opened.compartments.public.closed_form.denoise(x, sigma)
    assert torch.equal(opened.composed(x, sigma), expected)
    assert not torch.equal(
        opened.composed(x, sigma / 20), opened.compartments.public.closed_form.denoise(x, sigma / 20)
    )


def test_inf_runs_the_network_at_every_level(store: Path, all_rows: Path) -> None:
    sources = ["digit0", "digit1", "digit2"]
    for name in ("routed@inf", "public@inf"):
        opened = contender(Store.open(store), sources, name).open("cpu")
        sampled_images(opened.composed, (1, 8, 8), SETTINGS)
        assert opened.compartments.evaluations == N * (2 * STEPS - 1)
    twin = rows_of(all_rows)["twin@inf"]
    assert (twin["network_evaluations_per_image"], twin["sigma_switch"]) == (2 * STEPS - 1, "inf")


def test_a_row_may_have_a_switch_of_its_own(store: Path, tmp_path: Path) -> None:
    rows = evaluate(store, tmp_path, "--strategies", "routed@0.25", "--against", f"twin@0.25={store}")
    composed = open_compartments(Store.open(store), "all", sigma_switch=0.25, device="cpu").composed("routed")
    for name in ("routed@0.25", "twin@0.25"):
        assert torch.equal(images(tmp_path, name), sampled_images(composed, (1, 8, 8), SETTINGS))
        assert rows[name]["sigma_switch"] == 0.25


# --- what is measured


def test_the_same_store_as_opponent_has_the_same_numbers(all_rows: Path) -> None:
    rows = rows_of(all_rows)
    assert {name: rows["twin"][name] for name in MEASURED} == {name: rows["routed"][name] for name in MEASURED}
    assert rows["twin"]["frechet_ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_a_monolith_is_a_store_of_the_union(store: Path, workplace: Path, fit: Fit, tmp_path: Path) -> None:
    """Its images are those of all sources, held out alike; its backbone is the same, its closed form its own."""
    mono, place = copied(store, tmp_path / "mono", []), ("--data.root", str(tmp_path / "shards"))
    assert fit(mono, "all", *place, "--data.split", "random:1") == 0
    apart, joint = (ShardDataModule(str(root)) for root in (workplace / "shards", tmp_path / "shards"))
    for part in ("train", "heldout"):
        keys = sorted(key for source in apart.available_sources() for key in apart.used(source, part))
        assert sorted(joint.used("part0", part)) == keys
    rows = evaluate(store, tmp_path / "out", "--strategies", "closed_form", "--against", f"mono={mono}")
    assert list(rows["mono"]["model"]["compartments_sha256"]) == ["part0"]
    assert set(rows["mono"]["proportions"]["corrected"]) == {"digit0", "digit1", "digit2"}


def test_sources_of_samples_are_judged_by_those_of_each_source_alone(store: Path, all_rows: Path) -> None:
    parts = open_compartments(Store.open(store), "all", sigma_switch=None, device="cpu")
    batch = sample_batch(parts.composed("assign"), (1, 8, 8), range(N), SETTINGS)
    assigned = contender(Store.open(store), list(parts), "assign").open("cpu")
    assert assigned.drawn(N, SETTINGS.seed) == batch.drawn
    named = {
        path.name.split(".")[0]: json.loads(path.read_text())["named"]
        for path in (all_rows / "rows").glob("*.json")
        if "named" in path.read_text()
    }
    true = torch.tensor([list(parts).index(source) for source in batch.drawn or []])
    confusion, rows = confusion_of(true, torch.tensor(named["assign"]), len(parts)), rows_of(all_rows)
    judged = {name for name, row in rows.items() if row["proportions_alone"] is not None}
    assert judged == {"uniform", "posterior", "routed", "draft", "twin"}
    for name in judged:
        expected = asdict(judged_proportions(torch.tensor(named[name]), confusion, parts.prior()))
        assert rows[name]["proportions_alone"] == expected


def test_scores_are_those_of_validate(store: Path, all_rows: Path, tmp_path: Path) -> None:
    options = ("--sources", "all", *SAMPLED, "--json", str(tmp_path / "v.json"))
    own = copied(store, tmp_path / "store", ["digit0", "digit1", "digit2"])
    assert main(["validate", "--store", str(own), *options]) == 0
    validated, row = json.loads((tmp_path / "v.json").read_text()), rows_of(all_rows)["routed"]
    assert row["scores"] == validated["scores"]["composed"]
    assert row["network_evaluations_per_image"] == validated["network_evaluations_per_image"]


def test_intervals_hold_their_values(all_rows: Path) -> None:
    for row in rows_of(all_rows).values():
        for name, own in row["intervals"].items():
            assert own["low"] < own["value"] == row["scores"][name] < own["high"]
        ratio = row["frechet_ratio"]
        assert ratio["low"] <= ratio["value"] <= ratio["high"]
    frechet = f"frechet@{N}_effnet-lite0"
    rows = rows_of(all_rows)
    expected = rows["uniform"]["scores"][frechet] / rows["routed"]["scores"][frechet]
    assert rows["uniform"]["frechet_ratio"]["value"] == expected


def test_the_table_says_how_to_repeat_it(store: Path, workplace: Path, all_rows: Path) -> None:
    report = json.loads((all_rows / "table.json").read_text())
    assert {name: report[name] for name in ("base", "split", "extractor", "n", "steps", "sampler", "seed")} == {
        "base": "routed",
        "split": "heldout",
        "extractor": "effnet-lite0",
        "n": N,
        "steps": STEPS,
        "sampler": "heun",
        "seed": 0,
    }
    data = ShardDataModule(str(workplace / "shards"))
    counts = {part: sum(len(data.used(s, part)) for s in report["sources"]) for part in ("train", "heldout")}
    assert (report["training_images"], report["reference_images"]) == (counts["train"], counts["heldout"])
    assert sum(report["prior"].values()) == pytest.approx(1)
    assert set(report["versions"]) >= {"cdm_lightning", "torch", "torch-fidelity", "scikit-learn", "python"}
    assert report["threads"] == 1
    model = report["rows"][0]["model"]
    assert model["backbone_sha256"] == Store.open(store).info.backbone_sha256
    assert set(model["compartments_sha256"]) == set(report["sources"])


def test_the_store_gets_nothing_but_a_note_of_the_output(store: Path, tmp_path: Path) -> None:
    before = content(store)
    evaluate(store, tmp_path / "out", "--strategies", "closed_form")
    after = content(store)
    noted = "runs/outputs.jsonl"
    assert str(tmp_path / "out") in after[noted].decode()
    assert {name: data for name, data in after.items() if name != noted} == {
        name: data for name, data in before.items() if name != noted
    }


def test_the_order_in_which_sources_are_named_does_not_matter(store: Path, tmp_path: Path) -> None:
    """Kept rows have draws of sources and numbers of sources in them."""
    options, sources = ("--strategies", "assign", "posterior"), Store.open(store).sources()
    orders = [("--sources", f"[{', '.join(order)}]") for order in (sources, sources[::-1])]
    evaluate(store, tmp_path / "kept", *options, *orders[0])
    kept, anew = (evaluate(store, tmp_path / out, *options, *orders[1]) for out in ("kept", "anew"))
    for name, row in anew.items():
        assert {key: kept[name][key] for key in (*MEASURED, "proportions_alone")} == {
            key: row[key] for key in (*MEASURED, "proportions_alone")
        }


def test_a_source_that_was_never_drawn_leaves_the_others_unjudged_by_samples_alone(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Opened, "drawn", lambda opened, n, seed: list(opened.compartments)[:1] * n)
    rows = evaluate(store, tmp_path, "--strategies", "assign", "posterior")
    assert rows["posterior"]["proportions_alone"] is None
    assert rows["posterior"]["proportions"] is not None


def test_one_source_has_no_proportions(store: Path, tmp_path: Path) -> None:
    options = ("--store", str(store), "--sources", "[digit1]", "--strategies", "closed_form", *SAMPLED)
    assert main(["evaluate", *options, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "table.json").read_text())
    assert (report["judge"], report["rows"][0]["proportions"]) == (None, None)
    assert "not judged, there is one source" in terminal(report)


def test_a_judge_learns_from_as_many_images_as_are_asked_for(
    store: Path, tmp_path: Path, all_rows: Path, extractor: DummyExtractor
) -> None:
    """None, and nothing is judged; few, and it sees those; what it learned from is no part of the other scores."""
    rows = {}
    for images, seen in ((0, 0), (7, 3 * 7)):
        calls = extractor.calls
        rows = evaluate(store, tmp_path / str(images), "--strategies", "closed_form", "--judge_images", str(images))
        report = json.loads((tmp_path / str(images) / "table.json").read_text())
        assert rows["closed_form"]["scores"] == rows_of(all_rows)["closed_form"]["scores"]
        assert extractor.calls - calls == seen + report["reference_images"] + N
        if not images:
            assert (report["judge"], rows["closed_form"]["proportions"]) == (None, None)
            assert "not judged, --judge_images is 0" in terminal(report)
        else:
            assert report["judge"]["training_images"] == images


# --- resuming


def test_the_same_again_computes_nothing_and_gives_equal_bytes(
    store: Path, tmp_path: Path, extractor: DummyExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(store, tmp_path, "--strategies", "closed_form", "routed")
    before, calls = tables(tmp_path), extractor.calls
    monkeypatch.setattr("cdm_lightning.comparison.images_of_batches", refuse)
    monkeypatch.setattr("cdm_lightning.evaluate_command.EvaluationImages.yardstick", refuse)
    evaluate(store, tmp_path, "--strategies", "[closed_form, routed]")
    assert tables(tmp_path) == before
    assert extractor.calls == calls


def test_another_extractor_samples_nothing_and_measures_no_time(
    store: Path, tmp_path: Path, extractor: DummyExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of each extractor stays, and is resumed without the other."""
    first = evaluate(store, tmp_path, "--strategies", "closed_form", "routed")
    before, calls = tables(tmp_path), extractor.calls
    for name in ("images_of_batches", "seconds_in_turns", "peak_memory"):
        monkeypatch.setattr(f"cdm_lightning.comparison.{name}", refuse)
    evaluate(store, tmp_path, "--strategies", "closed_form", "routed", "--extractor", "inception")
    report = json.loads((tmp_path / "table-inception.json").read_text())
    assert report["extractor"] == "inception"
    assert (tmp_path / "table-inception.md").read_text().startswith(f"| row | FID@{N} |")
    for row in report["rows"]:
        assert list(row["intervals"]) == [f"fid@{N}_inception", f"kid@{N}_inception"]
        kept = ("seconds_per_image", "seconds_ratio", "peak_memory", "network_evaluations_per_image", "model")
        assert {name: row[name] for name in kept} == {name: first[row["name"]][name] for name in kept}
    assert tables(tmp_path) == before
    monkeypatch.setattr("cdm_lightning.evaluate_command.EvaluationImages.yardstick", refuse)
    for name in ("effnet-lite0", "inception"):
        evaluate(store, tmp_path, "--strategies", "closed_form", "routed", "--extractor", name)
    assert tables(tmp_path) == before
    assert json.loads((tmp_path / "table-inception.json").read_text()) == report
    assert extractor.calls == calls


def test_other_weights_of_an_extractor_make_other_features_of_the_same_samples(
    store: Path, tmp_path: Path, extractor: DummyExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(store, tmp_path, "--strategies", "closed_form")
    calls = extractor.calls
    monkeypatch.setattr(extractor, "fingerprint", "another")
    monkeypatch.setattr("cdm_lightning.comparison.images_of_batches", refuse)
    evaluate(store, tmp_path, "--strategies", "closed_form")
    heldout = json.loads((tmp_path / "table.json").read_text())["reference_images"]
    assert extractor.calls >= calls + N + heldout


def refuse(*_: object) -> None:
    raise AssertionError("this was computed before")


def test_another_number_is_computed_anew(store: Path, tmp_path: Path, extractor: DummyExtractor) -> None:
    evaluate(store, tmp_path, "--strategies", "closed_form")
    calls = extractor.calls
    rows = evaluate(store, tmp_path, "--strategies", "closed_form", "--n", "6")
    assert extractor.calls == calls + 6
    assert list(rows["closed_form"]["intervals"]) == ["frechet@6_effnet-lite0", "kid@6_effnet-lite0"]


def test_another_row_or_base_samples_only_what_is_new(store: Path, tmp_path: Path, extractor: DummyExtractor) -> None:
    first = evaluate(store, tmp_path, "--strategies", "routed", "closed_form")
    calls = extractor.calls
    evaluate(store, tmp_path, "--strategies", "routed", "closed_form", "assign")
    assert extractor.calls == calls + N
    other = evaluate(store, tmp_path, "--strategies", "routed", "closed_form", "--base", "closed_form")
    assert extractor.calls == calls + N
    ratios = first["closed_form"]["frechet_ratio"]["value"], other["routed"]["frechet_ratio"]["value"]
    assert ratios[0] * ratios[1] == pytest.approx(1)
    assert other["closed_form"]["seconds_ratio"] == first["routed"]["seconds_ratio"] == 1.0


def test_another_compartment_is_computed_anew(
    store: Path, tmp_path: Path, fit: Fit, extractor: DummyExtractor, workplace: Path
) -> None:
    own = copied(store, tmp_path / "store", ["digit0", "digit1"])
    evaluate(own, tmp_path / "out", "--strategies", "public", "closed_form")
    calls = extractor.calls
    for name in ("card.json", "compartment.safetensors", "README.md"):
        shutil.copy(store / "compartments" / "digit1" / name, tmp_path / name)
    (tmp_path / "keys").write_text(ShardDataModule(str(workplace / "shards")).images("digit1", "train")[0][0])
    assert fit(own, "[digit1]", "--data.exclude", str(tmp_path / "keys"), "--data.sources", "[digit1]") == 0
    evaluate(own, tmp_path / "out", "--strategies", "public", "closed_form", "--root", str(workplace / "shards"))
    assert extractor.calls == calls + N  # public's samples do not depend on it


ROW = "routed.effnet-lite0.json"


@pytest.mark.parametrize("name", [ROW, "routed.effnet-lite0.safetensors", "routed.safetensors", "routed.cost.json"])
def test_a_damaged_file_is_made_again(name: str, all_rows: Path, store: Path, tmp_path: Path) -> None:
    before = rows_of(all_rows)["routed"]
    evaluate(store, tmp_path, "--strategies", "routed")
    for damaged in {name, ROW}:
        (tmp_path / "rows" / damaged).write_bytes(b"{}")
    after = evaluate(store, tmp_path, "--strategies", "routed")["routed"]
    assert {name: after[name] for name in MEASURED} == {name: before[name] for name in MEASURED}


def test_an_interruption_loses_one_row(
    store: Path, tmp_path: Path, extractor: DummyExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("cdm_lightning.comparison.images_of_batches", interrupt_at(2))
        where = ["--store", str(store), "--sources", "all", "--out", str(tmp_path), *SAMPLED]
        assert main(["evaluate", *where, "--strategies", "routed", "closed_form"]) == 130
    kept = [
        f"routed.{ending}" for ending in ("cost.json", "effnet-lite0.json", "effnet-lite0.safetensors", "safetensors")
    ]
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == kept
    calls = extractor.calls
    evaluate(store, tmp_path, "--strategies", "routed", "closed_form")
    assert extractor.calls == calls + N


def interrupt_at(call: int) -> Any:
    calls = []

    def sampled(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return images_of_batches(*arguments)

    return sampled


# --- cost


def test_seconds_are_medians_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "TURNS", 3)
    clock = iter([4.0, 1.0, 2.0, 2.0, 3.0, 1.0])  # per image; mine, the base's, mine, ...
    monkeypatch.setattr(cost, "_seconds", lambda *_: next(clock))
    seconds, ratio = cost.seconds_in_turns(None, None, Settings(n=100))  # type: ignore[arg-type]
    assert (seconds, ratio) == (3.0, 3.0)


def test_memory_is_that_of_a_process_of_its_own(store: Path) -> None:
    """Ballast of the process that asks is not counted; its pages are touched, so that they are there."""
    ballast = torch.ones(2**28)
    measured = cost.peak_memory(Contender("routed", store, ("digit0",), "routed"), SETTINGS)
    own = cost.peak_of_process()
    assert measured is not None
    assert own is not None
    assert 100 * 2**20 < measured < own - ballast.nbytes // 2


# --- text


def test_stdout_is_the_table(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(store, tmp_path / "out", "--strategies", "closed_form", "--json", str(tmp_path / "r.json"))
    report = json.loads((tmp_path / "r.json").read_text())
    assert (tmp_path / "r.json").read_bytes() == (tmp_path / "out" / "table.json").read_bytes()
    place = f"table.md, table.json and samples.png are in {tmp_path / 'out'}"
    assert capsys.readouterr().out.endswith(f"{terminal(report)}\n{place}\n")


def made_report() -> dict[str, Any]:
    def row(name: str, frechet: float, memory: int | None) -> dict[str, Any]:
        return {
            "name": name,
            "model": {"parts": "routed"},
            "scores": {"precision@64_inception": 0.5, "recall@64_inception": 1.0},
            "intervals": {
                "fid@64_inception": {"value": frechet, "low": frechet - 10, "high": frechet + 10.5},
                "kid@64_inception": {"value": -0.25, "low": -0.5, "high": 0.125},
            },
            "frechet_ratio": {"value": 1.0, "low": 0.9, "high": 1.1},
            "network_evaluations_per_image": 14.0,
            "seconds_per_image": 0.25,
            "seconds_ratio": 2.0,
            "peak_memory": memory,
            "proportions": {"corrected": {"cat": 0.5, "dog": 0.5}, "distance": 0.125, "p_value": 0.03125},
            "proportions_alone": {"distance": 0.25, "p_value": 0.5} if name == "routed" else None,
            "near_copies": {"value": 0.0, "low": 0.0, "high": 0.25},
            "by_class": name == "routed",
        }

    return {
        "base": "routed",
        "prior": {"cat": 0.75, "dog": 0.25},
        "rows": [row("routed", 1234.5, 2**20), row("a-very-long-name@inf", 34.25, None)],
        "judge": {"accuracy": 0.75},
        "near_copies_heldout": {"value": 0.01, "low": 0.0, "high": 0.02},
        "near_copies_threshold": 7.25,
        "training_images": 100,
        "reference_images": 10,
        **{
            "n": 64,
            "by_class": False,
            "extractor": "inception",
            "sampler": "heun",
            "steps": 9,
            "seed": 4,
            "root": "data/pets",
        },
    }


def test_the_tables_by_hand() -> None:
    report = made_report()
    assert quality(report) == [
        ["row", "FID@64", "/ routed", "KID@64", "precision", "recall"],
        ["routed", "1234 [1224, 1245]", "1.000 [0.900, 1.100]", "-0.2500 [-0.5000, 0.1250]", "0.500", "1.000"],
        ["a-very-long-name@inf", "34.25 [24.25, 44.75]", "1.000 [0.900, 1.100]", "-0.2500 [-0.5000, 0.1250]"]
        + ["0.500", "1.000"],
    ]
    assert cost_table(report)[1:] == [
        ["routed", "14.0", "0.250", "2.00", "1", "0.125", "0.031", "0.250", "0.5", "0.0 % [0.0, 25.0]"],
        ["a-very-long-name@inf", "14.0", "0.250", "2.00", "-", "0.125", "0.031", "-", "-", "0.0 % [0.0, 25.0]"],
    ]
    assert proportions(report)[:3] == [
        ["row", "cat", "dog"],
        ["prior", "0.750", "0.250"],
        ["routed", "0.500", "0.500"],
    ]
    lines = terminal(report).splitlines()
    assert max(map(len, lines)) <= 112
    assert lines[-1] == "n 64, heun 9 steps, seed 4, extractor inception, 10 held-out images of data/pets"
    lines = terminal(report | {"by_class": True}).splitlines()
    assert lines[-2:] == [
        "a-very-long-name@inf: sampled without a class",
        "n 64 by class, heun 9 steps, seed 4, extractor inception, 10 held-out images of data/pets",
    ]


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((0.0123, 0.01, 0.02), "0.012 [0.010, 0.020]"),
        ((-2.0, -20.0, 3.0), "-2.0 [-20.0, 3.0]"),
        ((9.9944, 9.9, 9.9999), "9.99 [9.90, 10.00]"),
        ((123456.0, 1000.0, 234567.0), "123456 [1000, 234567]"),
        ((0.0, 0.0, 0.0), "0.000 [0.000, 0.000]"),
    ],
)
def test_digits_of_an_interval(ends: tuple[float, float, float], said: str) -> None:
    assert interval(dict(zip(("value", "low", "high"), ends, strict=True)), 3) == said


# --- bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--strategies", "route"), "unknown row 'route': expected one of closed_form, public, routed, assign"),
        (("--strategies", "closed_form@inf"), "closed_form@inf is no row"),
        (("--strategies", "routed@high"), "row 'routed@high': expected a noise level above 0.002 after the @, or inf"),
        (("--strategies", "routed@0.001"), "row 'routed@0.001': expected a noise level above 0.002"),
        (("--against", "twin@=stores/x"), "row 'twin@': expected a noise level"),
        (("--strategies", "routed,assign,routed"), "row 'routed' is named twice"),
        (("--strategies", "routed", "--base", "rooted"), "--base 'rooted' is none of the rows, routed; did you mean"),
        (("--against", "twin"), "--against 'twin' is not LABEL=STORE"),
        (("--against", "../x=stores/x"), "is not LABEL=STORE"),
        (("--against", "x=none/there"), "no store in none/there"),
        (("--n", "3"), "--n is 3; expected at least 4"),
        (("--steps", "1"), "--steps is 1; expected at least 2"),
        (("--judge_images", "-1"), "--judge_images is -1; expected how many, or 0 for no judge"),
        (("--seed", "-1"), "--seed is -1; expected 0 to 4294967295"),
        (("--json", "none/r.json"), "--json none/r.json is no place for a file"),
        (("--root", "none"), "--root, 'none', is no folder"),
    ],
)
def test_bad_input(
    options: tuple[str, ...], said: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--store", str(store), "--sources", "all", "--out", str(tmp_path / "out"))
    assert main(["evaluate", *where, *SAMPLED, *options]) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert found.out == ""
    assert not (tmp_path / "out").exists()


def test_an_opponent_is_not_named_like_a_row(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--store", str(store), "--sources", "all", "--out", str(tmp_path / "out"))
    assert main(["evaluate", *where, "--against", f"routed={store}"]) == 2
    assert "row 'routed' is named twice" in capsys.readouterr().err


def test_a_file_is_no_folder(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("")
    where = ("--store", str(store), "--sources", "all", "--out", str(tmp_path / "out"))
    assert main(["evaluate", *where]) == 2
    assert "is no folder; name one, or a new one" in capsys.readouterr().err


def test_what_prompts_do_not_allow_is_told(
    store: Path, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = copied(store, tmp_path / "store", [])
    options = ("--model.compartment", "tokens", "--trainer.max_steps", "1")
    assert fit(own, "[digit0]", *options) == fit(own, "[digit1]") == 0
    assert "draft" in default_names(Store.open(own), ["digit0"], "cpu")
    assert "draft" not in default_names(Store.open(own), ["digit0", "digit1"], "cpu")
    capsys.readouterr()
    where = ("--store", str(own), "--sources", "all", "--out", str(tmp_path / "out"), *SAMPLED)
    assert main(["evaluate", *where, "--strategies", "draft"]) == 2
    assert "one draft for all sources, but source 'digit1' has no prompt; choose" in capsys.readouterr().err
    assert main(["evaluate", *where, "--strategies", "routed@inf"]) == 2
    assert "sigma_switch inf is above the noise range of source 'digit0'" in capsys.readouterr().err


@pytest.mark.parametrize("left", [0, 1])
def test_too_few_held_out_images_are_told(
    left: int, store: Path, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ShardDataModule(str(workplace / "shards")).images("digit1", "heldout")[0]
    (tmp_path / "keys").write_text("\n".join(keys[left:]))
    where = ("--store", str(store), "--sources", "all", "--out", str(tmp_path / "out"))
    assert main(["evaluate", *where, "--exclude", str(tmp_path / "keys")]) == 2
    assert f"source 'digit1' has {left} held-out images" in capsys.readouterr().err


def test_an_opponent_may_be_labelled_assign(store: Path, tmp_path: Path) -> None:
    rows = evaluate(store, tmp_path, "--strategies", "routed", "--against", f"assign={store}")
    assert rows["routed"]["proportions_alone"] is None


def test_a_source_that_leaves_while_it_is_sampled_is_told(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, original = Path(shutil.copytree(store, tmp_path / "store")), Comparison.row

    def row(*arguments: Any) -> dict[str, Any]:
        found = original(*arguments)
        if Store.open(copy).has_compartment("digit1"):
            assert main(["forget", "--store", str(copy), "--source", "digit1"]) == 0
        return found

    monkeypatch.setattr(Comparison, "row", row)
    where = ("--store", str(copy), "--sources", "all", "--out", str(tmp_path / "out"))
    assert main(["evaluate", *where, "--strategies", "closed_form", *SAMPLED]) == 2
    said = capsys.readouterr()
    assert f"source 'digit1' was forgotten while its rows were made: delete {tmp_path / 'out'}" in said.err
    assert str(tmp_path / "out") in said.out, "the receipt lists it"
    assert not (tmp_path / "out" / "table.json").exists()

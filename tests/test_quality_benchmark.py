"""The quality benchmark. Oracles: what it must be fair in, the order of its steps, a backbone read back."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks import quality
from benchmarks.backbones import LINKED, options_of
from benchmarks.quality import Plan, Step, chosen, run
from benchmarks.quality_stores import BACKBONES, SOURCES, STEPS, STORES
from benchmarks.quality_tables import SECOND, TABLES
from cdm_lightning.evaluate_command import chosen_base, evaluate_parser
from cdm_lightning.fit_command import fit_parser
from cdm_lightning.line_up import with_switch
from cdm_lightning.packing import unpack_backbone
from cdm_lightning.shards_command import shards_parser
from cdm_lightning.store import Store

PLAN = Plan(Path("work"), "images", "weights.pth")
STEPS_OF_PLAN = PLAN.steps()


@pytest.mark.parametrize("name", STORES)
def test_every_store_is_trained_on_as_many_images_with_as_many_clusters(name: str) -> None:
    config, fitted = fit_parser().parse_args(STEPS_OF_PLAN[name].arguments[1:]), STORES[name]
    sources = SOURCES[fitted.split]
    if fitted.kind != "none":
        images = config.trainer.max_steps * config.data.batch_size * sources
        assert images == 64 * STEPS * (3 if name.endswith("-long") else 1)
    by_class = name.startswith("parts")  # then clusters are those of a class, of which every part has some
    together = 10 * (8 if by_class else 5)
    own = 10 if fitted.split in ("parts" if by_class else "", "fifty") else together // sources
    assert config.model.clusters == own
    assert config.model.class_labels == name.startswith("parts")
    assert config.model.guide == ("none" if fitted.backbone == "unet" else "closed_form")
    assert config.seed == int(name.endswith("-1"))


def test_a_backbone_that_is_named_for_a_seed_has_it() -> None:
    for name in BACKBONES:
        given = STEPS_OF_PLAN[f"backbone {name}"].arguments
        assert fit_parser().parse_args(given[1:]).seed == int(name.endswith("-1"))


def test_all_steps_parse_and_need_only_steps() -> None:
    parsers = {"shards": shards_parser, "fit": fit_parser, "evaluate": evaluate_parser}
    for step in STEPS_OF_PLAN.values():
        parsers[step.arguments[0]]().parse_args(step.arguments[1:])
        assert set(step.needs) <= set(STEPS_OF_PLAN)


@pytest.mark.parametrize("name", TABLES)
def test_rows_of_a_table_are_named_once_and_have_a_base(name: str) -> None:
    table = TABLES[name]
    rows = [*table.strategies, *table.against]
    assert len(set(rows)) == len(rows)
    assert chosen_base(table.base, rows) == table.base
    assert all(with_switch(row)[0] for row in rows)


def test_the_backbone_of_a_store_is_fitted_with_the_same_settings() -> None:
    pinned = ("guide", "rank", "sigma_switch", "backbone_steps", "backbone")
    for name, fitted in STORES.items():
        models = [
            fit_parser().parse_args(STEPS_OF_PLAN[step].arguments[1:]).model
            for step in (name, f"backbone {fitted.backbone}")
        ]
        assert [models[0][key] for key in pinned] == [models[1][key] for key in pinned]


def test_steps_come_after_what_they_need_two_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, finished, at_once = list[str](), list[str](), list[int]()

    def one(name: str, step: Step, logs: Path) -> float:
        assert set(step.needs) <= set(finished)
        started.append(name)
        at_once.append(len(started) - len(finished))
        time.sleep(0.02)
        finished.append(name)
        return 2.06

    monkeypatch.setattr(quality, "one", one)
    needs: dict[str, Sequence[str]] = {"a": (), "b": (), "c": ("a",), "d": ("a", "b"), "e": ("d",), "f": ()}
    run({name: Step([], tuple(needs[name])) for name in needs}, tmp_path, 2)
    assert sorted(finished) == sorted(needs)
    assert max(at_once) == 2
    assert json.loads((tmp_path / "times.json").read_text()) == dict.fromkeys(needs, 2.1)


def test_a_step_that_fails_ends_the_run_and_shows_why(tmp_path: Path) -> None:
    steps = {"bad": Step(["stor", "list"]), "never": Step(["store"], ("bad",))}
    with pytest.raises(SystemExit, match=r"bad failed; .*bad.log ends with:\n.*unknown command 'stor'"):
        run(steps, tmp_path, 2)
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["bad.log"]


def test_steps_are_chosen_with_all_that_they_need() -> None:
    expected = {"shards of classes", "shards of union", "backbone uvit", "backbone uvit-inf", "uvit-mono-full-inf"}
    assert set(chosen(STEPS_OF_PLAN, ["uvit-mono-full-inf"])) == expected
    whole = chosen(STEPS_OF_PLAN, [])
    tables = {name for name in whole if name.startswith("table ")}
    assert tables == {name for name in STEPS_OF_PLAN if name.startswith("table ")} - {
        f"table {name}" for name in SECOND
    }
    assert {"uvit-halves", "uvit-tokens", "fifty"} & set(whole) == set()
    assert all(set(step.needs) <= set(whole) for step in whole.values())
    with pytest.raises(SystemExit, match="there is no step 'mone'"):
        chosen(STEPS_OF_PLAN, ["mone"])


def test_a_backbone_without_switch_is_the_same_network(store: Path, tmp_path: Path) -> None:
    plan = Plan(tmp_path, None, None)
    plan.place("backbone-uvit").parent.mkdir(parents=True)
    plan.place("backbone-uvit").symlink_to(store)
    prepare = plan.steps()["backbone uvit-inf"].prepare
    assert prepare is not None
    prepare()
    (given, public), (network, switchless) = (
        unpack_backbone(*Store.open(place).read_backbone()) for place in (store, plan.place("backbone-uvit-inf"))
    )
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in given.state_dict().items())
    expected = public.tensors()
    expected["scalars"][3] = torch.inf
    assert all(torch.equal(switchless.tensors()[name], tensor) for name, tensor in expected.items())
    assert switchless.sigma_switch == float("inf")


def test_options_make_any_configuration_agree_with_a_backbone(store: Path) -> None:
    model = fit_parser().parse_args(["--config", "fashion_shards.yaml", *options_of(store)]).model
    settings = Store.open(store).read_backbone()[1]
    assert model.backbone.class_path == settings["backbone"]["class_path"]
    sizes = {name: one for name, one in settings["backbone"]["init_args"].items() if name not in LINKED}
    assert {name: model.backbone.init_args[name] for name in sizes} == sizes
    assert (model.guide, model.rank) == (settings["guide"], settings["rank"])
    assert (model.sigma_switch, model.backbone_steps) == (settings["sigma_switch"], settings["steps"])

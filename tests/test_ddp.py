"""Two training processes on one machine. Oracle: the sequence of batches that a single process sees."""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

from cdm_lightning.collaboration import export_backbone
from cdm_lightning.store import Store
from datamodules import ShardDataModule
from datamodules.manifest import read_manifest, usable
from tests.conftest import Fit
from tests.test_forget import tree

RANKS, BATCH = 2, 16


def test_two_processes_share_the_batches_of_one_and_see_every_sample_once(
    store: Path, fit: Fit, workplace: Path, tmp_path: Path
) -> None:
    shards = workplace / "shards"
    manifest = json.loads((shards / "public" / "manifest.json").read_text())
    keys = sorted(key for key, sample in manifest["samples"].items() if sample["part"] == "train")
    steps, over = divmod(len(keys), RANKS * BATCH)
    (tmp_path / "excluded.txt").write_text("\n".join(keys[:over]))
    data = ShardDataModule(str(shards), exclude=str(tmp_path / "excluded.txt"), batch_size=BATCH)
    used = data.used("public", "train").keys()
    (tmp_path / "log.yaml").write_text(
        f"trainer: {{callbacks: [{{class_path: tests.key_log.KeyLog, init_args: {{folder: {tmp_path}}}}}]}}\n"
    )
    options = ["--data.root", str(shards), "--data.exclude", str(tmp_path / "excluded.txt"), "--data.sources", "[]"]
    options += ["--model.backbone_steps", str(steps), "--trainer.devices", str(RANKS), "--trainer.accelerator", "cpu"]
    options += ["--trainer.logger", "true"]
    configs = ["--config", str(workplace / "tiny.yaml"), "--config", str(tmp_path / "log.yaml")]
    done = subprocess.run(
        [sys.executable, "-m", "cdm_lightning", "fit", *configs, "--store", str(tmp_path / "store"), *options],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CDM_ALLOW": "tests"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("training steps") == done.stdout.count("store: ") == 1, "only the first process speaks"
    data.open("public")
    single = [batch["key"] for batch in islice(iter(data.train_dataloader()), steps * RANKS)]
    for rank in range(RANKS):
        lines = (tmp_path / f"rank{rank}.txt").read_text().splitlines()
        assert [line.split() for line in lines] == single[rank::RANKS]
    assert sorted(key for batch in single for key in batch) == sorted(used), "each sample once"
    assert Store.open(tmp_path / "store").read_backbone()[1]["ranks"] == RANKS
    assert len(list((tmp_path / "store" / "runs" / "backbone").glob("events*"))) == 1, "the first process logs"


def test_a_source_of_two_processes_is_isolated_and_forgets_an_image(
    store: Path, workplace: Path, tmp_path: Path
) -> None:
    """Without OMP_NUM_THREADS: every card names the number of threads that each process has in the end."""
    key = next(iter(usable(read_manifest(workplace / "shards" / "digit1"), "train", frozenset())))

    def command(mine: Path, *words: str) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        done = subprocess.run(
            [sys.executable, "-m", "cdm_lightning", words[0], "--store", str(mine), *words[1:]],
            cwd=Path(__file__).parents[1],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def fitted(name: str, sources: str) -> Path:
        mine = export_backbone(Store.open(store), tmp_path / name).path
        where = ["--config", str(workplace / "tiny.yaml"), "--data.root", str(workplace / "shards")]
        prompt = ["--model.compartment", "tokens", "--trainer.max_steps", "3", "--trainer.devices", str(RANKS)]
        command(mine, "fit", *where, *prompt, "--trainer.accelerator", "cpu", "--data.sources", sources)
        return mine

    both, alone = fitted("both", "[digit0, digit1]"), fitted("alone", "[digit1]")
    assert tree(both / "compartments" / "digit1") == tree(alone / "compartments" / "digit1")
    before = Store.open(alone).read_card("digit1")
    command(alone, "forget", "--sample", key)
    assert Store.open(alone).read_card("digit1").inputs() == before.inputs() | {
        "n": before.n - 1,
        "class_counts": {"digit1": before.n - 1},
        "data_sha256": Store.open(alone).read_card("digit1").data_sha256,
    }
    assert before.settings["ranks"] == RANKS

"""The command line of `fit`, and the recipe that makes module, data and trainer of each phase from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks import AttributionMatrix, PhaseProgressBar, SampleGrid
from cdm_lightning.errors import BadInput
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.parser import Parser, new_parser
from cdm_lightning.phase import Phase
from datamodules import ShardDataModule

TRAINER_DEFAULTS = {
    "max_steps": 500,
    "gradient_clip_val": 1.0,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 10,
}
TRAINING_KEYS = ("precision", "gradient_clip_val", "gradient_clip_algorithm")
REFUSED = {
    "max_time": "a phase must end after a fixed number of steps, whatever the others took; use max_steps",
    "max_epochs": "the stream of a source has no epochs; use max_steps",
    "fast_dev_run": "it would store a compartment that was not trained; use --config debug.yaml",
    "overfit_batches": "it would leave most of the source out",
    "limit_train_batches": "it would leave most of the source out",
    "accumulate_grad_batches": "noise is drawn per step; use a larger data.batch_size",
}


@dataclass(frozen=True)
class Sampling:
    """How validation samples.

    Args:
        name: the sampler.
        steps: sampler steps.
    """

    name: Literal["heun"] = "heun"
    steps: int = 18


def fit_parser() -> Parser:
    """Return the parser of `fit`."""
    parser = new_parser(
        "fit", "Train the backbone on public if the store has none, then fit every source into the store."
    )
    parser.add_argument("--store", type=str, default="stores/default", help="the store; made if it is not there")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--refit", action="store_true", help="fit the chosen sources again even if nothing changed")
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    parser.add_class_arguments(CompartmentalizedDiffusion, "model", skip={"seed"}, instantiate=False)
    parser.add_argument(
        "--data.from",
        type=Literal["cifar10", "fashion_mnist", "digits", "folder", "list"],
        default="digits",
        help="where the images come from, if shards are to be written",
    )
    parser.add_class_arguments(ShardDataModule, "data", skip={"seed", "from_"}, instantiate=False)
    parser.add_class_arguments(Sampling, "sampling", instantiate=False)
    parser.link_arguments("data.image_size", "model.backbone.init_args.image_size")
    parser.link_arguments("data.channels", "model.backbone.init_args.channels")
    parser.link_arguments("model.guide", "model.backbone.init_args.guided", compute_fn=lambda guide: guide != "none")
    parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})
    parser.set_defaults({"model.backbone": {"class_path": "cdm_lightning.backbone.UViT"}})
    return parser


def check_trainer(trainer: Namespace) -> None:
    """Raise BadInput if a Trainer option would couple the sources, or store what was not trained."""
    for key, reason in REFUSED.items():
        if trainer[key] not in (None, False, 0, 1, -1):
            raise BadInput(f"trainer.{key} is refused: {reason}")
    if trainer.precision in ("16-mixed", "16-true", 16, "16"):
        raise BadInput("trainer.precision 16 is refused: its loss scale is found by trial; use 32-true or bf16-mixed")


class ConfiguredRecipe:
    """Makes every phase's objects afresh from a parsed configuration; see `cdm_lightning.recipe.Recipe`."""

    def __init__(self, parser: Parser, config: Namespace) -> None:
        self.parser, self.config = parser, config
        check_trainer(config.trainer)
        self.max_steps: int = config.trainer.max_steps
        self.training: dict[str, Any] = {key: config.trainer[key] for key in TRAINING_KEYS}
        self.training |= {"batch_size": config.data.batch_size, "shards_per_source": config.data.shards_per_source}

    def module(self) -> CompartmentalizedDiffusion:
        """Return a new module."""
        settings = self.parser.instantiate(self.config).model
        return CompartmentalizedDiffusion(**vars(settings), seed=self.config.seed)

    def data(self) -> ShardDataModule:
        """Return a new data module."""
        settings = dict(vars(self.config.data))
        return ShardDataModule(from_=settings.pop("from"), **settings, seed=self.config.seed)

    def trainer(self, phase: Phase, folder: Path, max_steps: int) -> Trainer:
        """Return a new Trainer that logs and saves into `folder`."""
        settings = dict(vars(self.parser.instantiate(self.config).trainer))
        settings |= {"max_steps": max_steps, "default_root_dir": str(folder)}
        if settings["logger"] in (None, True):
            settings["logger"] = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
        callbacks = settings["callbacks"] or []
        if phase.kind == "composed":
            callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoint | ProgressBar)]
            settings |= {"enable_checkpointing": False, "enable_progress_bar": False}
            own: list[Callback] = [SampleGrid(self.config.sampling.steps), AttributionMatrix()]
        else:
            settings["limit_val_batches"] = 0
            own = [] if settings["enable_progress_bar"] is False else [PhaseProgressBar()]
        settings["callbacks"] = [*callbacks, *own]
        return Trainer(**settings)

    def save_config(self, phase: Phase, folder: Path) -> None:
        """Write the resolved configuration, which names no source but this phase's."""
        config = self.config.clone()
        config.data.sources = [phase.source] if phase.kind == "source" else []
        self.parser.save(config, folder / "config.yaml", overwrite=True)

"""The command line of `fit`, and the recipe that makes module, data and trainer of each phase from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from callbacks import Attribution, Dashboard, Forgetting, PhaseProgressBar, Quality, SampleGrid, TrainingMonitor
from cdm_lightning.errors import BadInput
from cdm_lightning.extractors import open_extractor
from cdm_lightning.module import CompartmentalizedDiffusion
from cdm_lightning.parser import Parser, new_parser
from cdm_lightning.phase import Phase
from cdm_lightning.privacy import Privacy
from cdm_lightning.sampling import Method
from cdm_lightning.seeding import SEEDS
from cdm_lightning.store import EXCLUSIONS
from cdm_lightning.trainer_checks import accelerator_of, check_trainer, precision_of
from cdm_lightning.training import CHECKPOINT
from datamodules import ShardDataModule
from datamodules.image_defaults import image_shape

TRAINER_DEFAULTS = {
    "max_steps": 500,
    "gradient_clip_val": 1.0,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 10,
}
IMAGE_KEYS = ("root", "from", "image_size", "channels")  # of `data`, that say how large images are
TRAINING_KEYS = ("precision", "gradient_clip_val", "gradient_clip_algorithm")


@dataclass(frozen=True)
class Sampler:
    """How validation samples.

    Args:
        name: `heun` evaluates the model twice a step; `dpmpp_2m` and `ancestral` once.
        steps: sampler steps.
    """

    name: Method = "heun"
    steps: int = 18

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise BadInput(f"sampler.steps is {self.steps}; expected at least 2")


@dataclass(frozen=True)
class Metrics:
    """What is measured of the composed model, and of the newest source, after every source.

    Args:
        extractor: `effnet-lite0` is quick and needs no download; with `inception` the Frechet distance is the FID;
            `none` turns the measuring off.
        inception: file of Inception's weights; by default torch-fidelity's download.
        n: sampled images.
        every: steps between measurements of the source whose prompt (or of `public`, whose backbone) is being trained,
            with the running average that would be stored; 0 measures after a source only.
    """

    extractor: Literal["effnet-lite0", "inception", "none"] = "effnet-lite0"
    inception: str | None = None
    n: int = 96
    every: int = 0

    def __post_init__(self) -> None:
        if self.every < 0:
            raise BadInput(f"metrics.every is {self.every}; expected a number of steps, or 0")
        if self.every and self.extractor == "none":
            raise BadInput(f"metrics.every is {self.every}, but metrics.extractor is none: choose effnet-lite0")
        if self.n < 2:
            raise BadInput(f"metrics.n is {self.n}; expected at least 2 images")


def fit_parser() -> Parser:
    """Return the parser of `fit`."""
    parser = new_parser(
        "fit", "Train the backbone on public if the store has none, then fit every source into the store."
    )
    add_fit_options(parser)
    parser.add_argument("--refit", action="store_true", help="fit the chosen sources again even if nothing changed")
    return parser


def add_fit_options(parser: Parser) -> None:
    """Add all that says what is fitted, on what, and how it is measured."""
    parser.add_argument("--store", type=str, default="stores/default", help="the store; made if it is not there")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument(
        "--checkpoint_every", type=int, default=100, help="steps; an interrupted phase goes on from there"
    )
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    parser.add_class_arguments(CompartmentalizedDiffusion, "model", skip={"seed"}, instantiate=False)
    parser.add_argument(
        "--data.from",
        type=Literal["cifar10", "fashion_mnist", "digits", "folder", "list"],
        default="digits",
        help="where the images come from, if shards are to be written",
    )
    parser.add_class_arguments(ShardDataModule, "data", skip={"seed", "from_"}, instantiate=False)
    parser.add_class_arguments(Sampler, "sampler", instantiate=False)
    parser.add_class_arguments(Metrics, "metrics", instantiate=False)
    parser.add_class_arguments(Privacy, "privacy", instantiate=False)
    images, backbone = tuple(f"data.{key}" for key in IMAGE_KEYS), "model.backbone.init_args"
    parser.link_arguments(images, f"{backbone}.image_size", compute_fn=lambda *given: image_shape(*given).size)
    parser.link_arguments(images, f"{backbone}.channels", compute_fn=lambda *given: image_shape(*given).channels)
    parser.link_arguments("model.guide", "model.backbone.init_args.guided", compute_fn=lambda guide: guide != "none")
    parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})
    parser.set_defaults({"model.backbone": {"class_path": "cdm_lightning.conv_net.ConvNet"}})


def quality_of(config: Namespace) -> list[Quality]:
    """Return what measures samples, if anything shall."""
    metrics = Metrics(**vars(config.metrics))
    if metrics.extractor == "none":
        return []
    extractor = open_extractor(metrics.extractor, metrics.inception)
    sampled = (metrics.n, Path(config.store) / "runs" / "sources", config.sampler.steps, config.sampler.name)
    return [Quality(extractor, *sampled)]


def places_of(loggers: Any) -> list[Path]:
    """Return the folders into which loggers write that a configuration names."""
    each = loggers if isinstance(loggers, list) else [loggers]
    return [Path(logger.save_dir) for logger in each if isinstance(logger, Logger) and logger.save_dir is not None]


class ConfiguredRecipe:
    """Makes every phase's objects afresh from a parsed configuration; see `cdm_lightning.recipe.Recipe`."""

    def __init__(self, parser: Parser, config: Namespace) -> None:
        self.parser, self.config = parser, config
        if not 0 <= config.seed < SEEDS:
            raise BadInput(f"seed is {config.seed}; expected 0 to {SEEDS - 1}")
        if config.checkpoint_every < 1:
            raise BadInput(f"checkpoint_every is {config.checkpoint_every}; expected at least 1 step")
        Sampler(**vars(config.sampler))
        image = image_shape(*(config.data[key] for key in IMAGE_KEYS))
        config.data.image_size, config.data.channels = image.size, image.channels
        self.quality = quality_of(config)
        history = Path(config.store) / "runs" / "composed" / "forgetting.json"
        self.watching = [
            SampleGrid(config.sampler.steps, config.sampler.name),
            Attribution(),
            Forgetting(history),
            *self.quality,
        ]
        settings = self._trainer_settings()
        self.outside = places_of(settings["logger"])
        check_trainer(config.trainer, settings["callbacks"] or [], self.outside, Path(config.store))
        self.max_steps: int = config.trainer.max_steps
        self.privacy = Privacy(**vars(config.privacy))
        self.watched = config.trainer.logger is not False or bool(config.trainer.callbacks)
        self.training: dict[str, Any] = {key: config.trainer[key] for key in TRAINING_KEYS}
        self.training["precision"] = precision_of(config.trainer.precision)
        processes = self._processes()
        self.processes_here: int = processes.num_devices
        self.training["ranks"] = processes.world_size
        self.device = str(processes.strategy.root_device)
        self.training |= {"batch_size": config.data.batch_size, "shards_per_source": config.data.shards_per_source}

    def _processes(self) -> Trainer:
        """Return a Trainer that is not used, to see on what it would run, and that one can be made.

        Raises:
            BadInput: it cannot.
        """
        try:
            return ConfiguredRecipe.trainer(self, Phase("backbone", "public", 1, 1), Path("."), self.max_steps)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise BadInput(f"trainer: {' '.join(str(error).split())}") from error

    def module(self) -> CompartmentalizedDiffusion:
        """Return a new module."""
        settings = self.parser.instantiate(self.config).model
        return CompartmentalizedDiffusion(**vars(settings), seed=self.config.seed)

    def data(self) -> ShardDataModule:
        """Return a new data module."""
        settings = dict(vars(self.config.data))
        data = ShardDataModule(from_=settings.pop("from"), **settings, seed=self.config.seed)
        data.forgotten = Path(self.config.store) / EXCLUSIONS
        return data

    def trainer(self, phase: Phase, folder: Path, max_steps: int) -> Trainer:
        """Return a new Trainer that logs and saves into `folder`."""
        settings = self._trainer_settings()
        settings |= {"max_steps": max_steps, "default_root_dir": str(folder)}
        if settings["logger"] in (None, True):
            settings["logger"] = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
        callbacks = settings["callbacks"] or []
        if phase.kind == "composed":
            callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoint | ProgressBar)]
            settings |= {"enable_checkpointing": False, "enable_progress_bar": False}
            settings |= {"devices": 1, "num_nodes": 1, "strategy": "auto"}
            own = [Dashboard(self.quality), *self.watching]
        else:
            private = phase.kind == "source" and self.privacy.covers(phase.source)
            own = [Dashboard(self.quality)]
            settings |= {"limit_val_batches": 0} if private else self._measuring()
            if settings["limit_val_batches"]:
                own += [SampleGrid(self.config.sampler.steps, self.config.sampler.name), *self.quality]
            if settings["log_every_n_steps"] and not private:
                own.append(TrainingMonitor(settings["log_every_n_steps"]))  # after what takes its time in a validation
            if settings["enable_progress_bar"] is not False:
                own.append(PhaseProgressBar())
            if settings["enable_checkpointing"] is not False:
                own.append(self._checkpoint(folder))
        settings["callbacks"] = [*callbacks, *own]
        return Trainer(**settings)

    def _measuring(self) -> dict[str, Any]:
        """Return the options of the Trainer that say how often a source in training is measured."""
        every = self.config.metrics.every if self.quality else 0
        if not every:
            return {"limit_val_batches": 0}
        return {"limit_val_batches": 1, "val_check_interval": every, "check_val_every_n_epoch": None}

    def _trainer_settings(self) -> dict[str, Any]:
        """Return the options of the Trainer, with new objects where they are objects; no network is built for them.

        Raises:
            BadInput: one of the objects cannot be made.
        """
        config = self.config.clone()
        config.pop("model")
        try:
            settings = dict(vars(self.parser.instantiate(config).trainer))
        except ValueError as error:
            reason: BaseException = error
            while (cause := reason.__cause__ or reason.__context__) is not None:
                reason = cause
            raise BadInput(f"trainer: an object that the configuration names cannot be made: {reason}") from error
        return settings | {"accelerator": accelerator_of(settings["accelerator"])}

    def _checkpoint(self, folder: Path) -> ModelCheckpoint:
        """Return the callback that keeps the newest state of a phase in `cdm_lightning.training.CHECKPOINT`."""
        name, every = CHECKPOINT.removesuffix(ModelCheckpoint.FILE_EXTENSION), self.config.checkpoint_every
        return ModelCheckpoint(
            folder,
            name,
            every_n_train_steps=every,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def save_config(self, phase: Phase, file: Path) -> None:
        """Write the resolved configuration, which names no source but this phase's."""
        config = self.config.clone()
        config.data.sources = [phase.source] if phase.kind == "source" else []
        if phase.kind == "source" and not self.privacy.covers(phase.source):
            config.privacy.epsilon = config.privacy.secret_file = None
        config.privacy.sources = None
        self.parser.save(config, file, overwrite=True)

"""Command lines: configs that are found by their bare name, errors of one sentence with the nearest option."""

import os
import re
import sys
from pathlib import Path
from site import getuserbase
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

from cdm_lightning.errors import did_you_mean

AROUND = Path(__file__).parent.parent
CHECKOUT_CONFIGS = AROUND / "configs"
INSTALLED_CONFIGS = [
    Path(place) / "share" / "cdm_lightning" / "configs" for place in (sys.prefix, getuserbase(), AROUND)
]
MERGE = "tag:yaml.org,2002:merge"  # of the key <<
ALLOWED_PACKAGES = ["cdm_lightning", "datamodules", "callbacks", "lightning.pytorch"]


def config_folders() -> list[Path]:
    """Return where a bare config name is looked for: here, `$CDM_CONFIG_PATH`, `configs/`, checkout, installation."""
    named = os.environ.get("CDM_CONFIG_PATH")
    return [Path("."), *([Path(named)] if named else []), Path("configs"), CHECKOUT_CONFIGS, *INSTALLED_CONFIGS]


class StrictLoader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML in which no key may stand twice: the second would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping that a node stands for."""
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value if key.tag != MERGE]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is there twice", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


class FoundConfig(ActionConfigFile):
    """`--config NAME`: a path, or a bare name that is found in `config_folders`."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Apply the config that `values` names."""
        found = next((folder / values for folder in config_folders() if (folder / values).is_file()), None)
        if found is None and "\n" not in values and ":" not in values:
            known = {path.name for folder in config_folders() for path in folder.glob("*.yaml")}
            places = ", ".join(str(folder) for folder in config_folders() if folder.is_dir())
            parser.error(f"no config '{values}': looked in {places}{did_you_mean(values, known)}")
        if found is not None and (fault := config_fault(found)):
            parser.error(f"config {found} {fault}")
        super().__call__(parser, cfg, str(found) if found else values, option_string)  # type: ignore[no-untyped-call]


def config_fault(path: Path) -> str | None:
    """Return what is wrong with a config as a file, or None: it must be a YAML mapping of keys in UTF-8."""
    try:
        contents = yaml.load(path.read_text(encoding="utf-8"), Loader=StrictLoader)  # noqa: S506 it is a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        return f"cannot be read ({error}): expected a YAML file in UTF-8"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        return f"is no YAML: {error.problem} in {where}"
    except yaml.YAMLError as error:
        return f"is no YAML: {' '.join(str(error).split())}"
    if not isinstance(contents, dict):
        return f"must hold keys with values, such as `seed: 0`, but holds {repr(contents)[:40]}"
    empty = [
        key
        for key in ("data", "model", "trainer", "sampler", "metrics", "privacy")
        if key in contents and contents[key] is None
    ]
    return f"has no value for the key '{empty[0]}': give it keys of its own, or leave it out" if empty else None


class Parser(ArgumentParser):
    """A parser whose errors are one sentence, with exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and the option that may have been meant, and exit."""
        text = _plain(message)
        known = sorted({option.lstrip("-") for action in self._actions for option in action.option_strings})
        sys.stderr.write(f"{self.prog}: error: {text}{self._hint(text, known)}\n")
        sys.exit(2)

    def _hint(self, text: str, known: list[str]) -> str:
        for word in re.findall(r"--([\w.]+)|ption '([\w.]+)'|key '([\w.]+)'", text):
            name = next(part for part in word if part)
            leaves = {option.rsplit(".", 1)[-1] for option in known}
            if hint := did_you_mean(name, known) or did_you_mean(name.rsplit(".", 1)[-1], leaves):
                return hint
        return ""


def _plain(message: str) -> str:
    """Return a message of jsonargparse in one line, without the names of Python types."""
    text = re.sub(r"\s+", " ", message).strip()
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text).replace("typing.Literal", "one of ")
    denied = r"Importing '([\w.]+)' is not allowed.*"
    text = re.sub(denied, r"'\1' is outside the allowed packages; if you trust it, set CDM_ALLOW to its package", text)
    return re.sub(r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: ", "", text)


def new_parser(command: str, description: str) -> Parser:
    """Return a parser for one command, with `--config` and `--print_config`; class paths outside ours are refused."""
    extra = [name for name in os.environ.get("CDM_ALLOW", "").split(",") if name]
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=ALLOWED_PACKAGES + extra)
    parser = Parser(prog=f"cdm_lightning {command}", description=description, allow_abbrev=False)
    parser.add_argument("-c", "--config", action=FoundConfig, help="a YAML file, or the bare name of one in configs/")
    return parser

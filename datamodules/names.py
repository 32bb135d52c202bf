"""Names of sources and labels, and keys of samples: which characters they have, and which names are taken."""

import re

from cdm_lightning.errors import BadInput

PUBLIC = "public"
RESERVED = frozenset({PUBLIC, "monolith", "none", "all", "composed", "backbone"})


def slug(name: str) -> str:
    """Return `name` in lower case, every run of characters outside [a-z0-9_] as one '-', none at either end."""
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")


def check_source(name: str) -> str:
    """Return `name` if it can name a source.

    Raises:
        BadInput: it does not match [a-z][a-z0-9_-]*, or it is reserved.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise BadInput(
            f"'{name}' cannot name a source: it must start with a letter a-z and go on with a-z, 0-9, _ or -"
        )
    if name in RESERVED:
        raise BadInput(
            f"'{name}' cannot name a source: {', '.join(sorted(RESERVED))} are reserved; choose another name"
        )
    return name


def check_label(name: str, origin: str) -> str:
    """Return the slug of the class name `name`.

    Raises:
        BadInput: nothing of the name is left, with the `origin` it stands in.
    """
    label = slug(name)
    if not label:
        raise BadInput(f"{origin}: '{name}' cannot name a class: it needs a letter a-z, a digit or _")
    return label


def sample_key(text: str) -> str:
    """Return the key of a sample: every run of characters outside [A-Za-z0-9_-] as one '-'."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text)


def is_key(text: str) -> bool:
    """Tell whether `text` can be the key of a sample."""
    return re.fullmatch(r"[A-Za-z0-9_-]+", text) is not None

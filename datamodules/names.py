"""Names of sources, labels, samples and shards: which characters they have, and which names are taken."""

import hashlib
import re
import unicodedata
from typing import Final, Literal

from cdm_lightning.errors import BadInput

Part = Literal["train", "heldout"]
TRAIN: Final = "train"
HELDOUT: Final = "heldout"
PUBLIC = "public"
HASH = 12  # hex digits of the hash in a key
LONGEST = 100  # characters of a name of a source, which names folders and files
RESERVED = frozenset({PUBLIC, "monolith", "none", "all", "composed", "backbone", "null", "true", "false"})


def slug(name: str) -> str:
    """Return `name` in lower case, every run of characters outside [a-z0-9_] as one '-', none at either end.

    Letters outside a-z are such characters: `Zoë` becomes `zo`, and nothing is left of a name without any a-z, 0-9, _.
    """
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")


def checked_slug(name: str, what: str, origin: str) -> str:
    """Return the slug of `name`; `what` it names and the `origin` it stands in are told if that is not possible.

    Raises:
        BadInput: nothing of the name is left.
    """
    if not slug(name):
        raise BadInput(f"{origin}: '{name}' cannot name a {what}: it needs a letter a-z, a digit or _; rename it")
    return slug(name)


def check_source(name: str, origin: str) -> str:
    """Return `name` if it can name a source; the `origin` that names it is told if it cannot.

    Raises:
        BadInput: it does not match [a-z][a-z0-9_-]*, or it is reserved.
    """
    if name in RESERVED:
        raise BadInput(
            f"{origin}: '{name}' cannot name a source: {', '.join(sorted(RESERVED))} are reserved; rename it"
        )
    if len(name) > LONGEST:
        raise BadInput(f"{origin}: '{name}' is too long to name a source: at most {LONGEST} characters; rename it")
    if not is_source(name):
        raise BadInput(
            f"{origin}: '{name}' cannot name a source: it must start with a letter a-z and go on with a-z, 0-9, _ or "
            "-; rename it"
        )
    return name


def is_source(text: str) -> bool:
    """Tell whether `text` can name the folder of a source or of `public`."""
    return text == PUBLIC or (re.fullmatch(r"[a-z][a-z0-9_-]*", text) is not None and text not in RESERVED)


def sample_key(text: str) -> str:
    """Return the key of a sample: every run of characters outside [A-Za-z0-9_-] as one '-'.

    If there are letters of other alphabets among them, of which nothing would be left, a hash of the text follows.
    """
    same = unicodedata.normalize("NFC", text)  # some systems write a letter and its accent apart
    key = re.sub(r"[^A-Za-z0-9_-]+", "-", same)
    if same.isascii():
        return key
    return f"{key.strip('-')}-{hashlib.sha256(same.encode(errors='surrogateescape')).hexdigest()[:HASH]}".lstrip("-")


def is_key(text: str) -> bool:
    """Tell whether `text` can be the key of a sample."""
    return re.fullmatch(r"[A-Za-z0-9_-]+", text) is not None


def is_shard(text: str) -> bool:
    """Tell whether `text` can be the file name of a shard, NNNNN.tar."""
    return re.fullmatch(r"[0-9]{5,9}\.tar", text) is not None


def is_label(text: str) -> bool:
    """Tell whether `text` can be the label of a sample: one line, not empty; shards of others may have any letters."""
    return text != "" and text.isprintable()

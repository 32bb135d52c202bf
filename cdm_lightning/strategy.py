"""The names of the strategies; `composition` says what each does."""

from typing import Literal

Strategy = Literal["routed", "assign", "draft", "posterior", "uniform"]

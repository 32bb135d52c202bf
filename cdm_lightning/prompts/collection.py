"""The prompts by source."""

from torch import nn

from cdm_lightning.prompts.prompt import Prompt


class Prompts(nn.ModuleDict):
    """The prompts by source. Inner keys carry a prefix, since `train`, `type` or `half` are names of module methods."""

    PREFIX = "source_"

    def put(self, source: str, prompt: Prompt) -> None:
        """Insert or replace the prompt of a source."""
        self[self.PREFIX + source] = prompt

    def find(self, source: str) -> Prompt | None:
        """Return the prompt of a source, or None if it has none."""
        key = self.PREFIX + source
        return self[key] if key in self else None  # type: ignore[return-value]  # noqa: SIM401

"""A copy of the guide's convolutions per source: what a full copy of a guided backbone learns, in few numbers."""

from collections.abc import Sequence
from copy import deepcopy
from typing import ClassVar, Self

import torch
from torch import Tensor

from cdm_lightning.backbone import Backbone, UViT
from cdm_lightning.denoiser import Network
from cdm_lightning.errors import BadInput
from cdm_lightning.guide_head import GuideHead
from cdm_lightning.prompts.copied import Copied, by_source
from cdm_lightning.prompts.prompt import label_tokens


class Head(Copied):
    """A copy of the backbone's `GuideHead`, trained; transformer and backbone's own head stay as they were.

    Attributes:
        copy: the head of this source.

    Raises:
        BadInput: the backbone has no such head.
    """

    kind: ClassVar[str] = "head"
    learning_rate: ClassVar[float] = 1e-3

    def __init__(self, backbone: Backbone, classes: int, generator: torch.Generator) -> None:
        super().__init__(backbone, classes, generator)
        self.copy = deepcopy(head_of(backbone)).requires_grad_()

    @classmethod
    def network(cls, backbone: Backbone, prompts: Sequence[Self], row: Tensor, label: Tensor) -> Network:
        """Return F with every row's own source's head on one transformer; see `Prompt.network`."""
        labels = label_tokens(prompts, row, label)

        def head(seen: Tensor, embedding: Tensor) -> Tensor:
            added = torch.empty_like(seen[:, : seen.shape[1] // 3])
            return by_source(lambda i, *mine: prompts[i].copy(*mine), row, added, seen, embedding)

        def run(x: Tensor, time: Tensor, *, guide: Tensor | None = None) -> Tensor:
            output: Tensor = backbone(x, time, guide=guide, prompt=labels, head=head)
            return output

        return run


def head_of(backbone: Backbone) -> GuideHead:
    """Return a backbone's own head.

    Raises:
        BadInput: it has none.
    """
    if not isinstance(backbone, UViT) or backbone.guide_head is None:
        raise BadInput(
            "model.compartment head trains a copy of the convolutions of a guided UViT, and this backbone has none: "
            "choose model.compartment full, or model.guide closed_form"
        )
    return backbone.guide_head

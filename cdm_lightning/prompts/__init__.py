"""What is trained per source: the kinds of it, the average of several, and the named collection."""

from cdm_lightning.prompts.average import averaged, unlike
from cdm_lightning.prompts.collection import Prompts
from cdm_lightning.prompts.full import Full
from cdm_lightning.prompts.head import Head
from cdm_lightning.prompts.lora import LoRA
from cdm_lightning.prompts.prompt import NO_LABEL, Prompt
from cdm_lightning.prompts.tokens import Tokens

KINDS: dict[str, type[Prompt]] = {kind.kind: kind for kind in (Tokens, LoRA, Head, Full)}

__all__ = ["KINDS", "NO_LABEL", "Full", "Head", "LoRA", "Prompt", "Prompts", "Tokens", "averaged", "unlike"]

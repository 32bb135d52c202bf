"""Data of several sources as shards."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.shard_datamodule import ShardDataModule

__all__ = ["ShardDataModule"]


def __getattr__(name: str) -> Any:
    """Import `ShardDataModule` when it is asked for: who only reads manifests needs neither torch nor lightning."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from datamodules.shard_datamodule import ShardDataModule

    return ShardDataModule

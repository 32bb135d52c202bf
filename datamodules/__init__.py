"""Data of several sources as shards."""

from datamodules.shard_datamodule import ShardDataModule

__all__ = ["ShardDataModule"]

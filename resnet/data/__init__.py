"""Datasets: get_dataset(config, data_dir, split)."""

from resnet.data.get_dataset import get_dataset, splits

__all__ = ["get_dataset", "splits"]

"""Datasets: get_dataset(config, data_dir, split)."""

from resnet.data.get_dataset import EvaluationData, get_dataset, splits

__all__ = ["EvaluationData", "get_dataset", "splits"]

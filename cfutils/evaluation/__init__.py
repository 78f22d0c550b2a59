"""Takes a model and makes item-level scores: retained tasks through lm-eval, the target, probes, KL estimates."""

ITEM = ["group", "task", "metric", "item", "value", "weight"]
"""Columns of the frame of item-level scores."""

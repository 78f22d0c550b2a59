"""Takes a model and makes item-level scores: retained tasks through lm-eval, the target, probes, KL estimates."""

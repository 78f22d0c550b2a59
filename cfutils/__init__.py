"""Fine-tune an open-weights language model without it forgetting what it knew, and prove it."""

__version__ = "0.1.0"

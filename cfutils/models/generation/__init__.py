"""Sampling from causal language models: token-id prompts and seeds in, completions and samples out."""

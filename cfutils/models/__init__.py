"""Takes a base (a package's, a hub's, a folder's) and makes a model that computes packed rows of tokens.

`bases` and `precision` are light; `loading`, `lm_head`, `packing`, `prefix_trees` and `generation` need torch.
"""

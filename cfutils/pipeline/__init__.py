"""Takes a profile and makes its artifacts: what there is to build, what builds it, where it is kept.

`steps` lists the artifacts of a profile with their keys, `builders` hold one function per kind, `session` keeps
models and the sampling engine loaded between builds, `store` keeps what was built, `results` is its read-only
layer that ships, and `parallel` builds with several processes.
"""

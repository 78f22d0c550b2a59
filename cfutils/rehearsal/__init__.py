"""Takes a profile of a base on the hub; runs it whole on this machine, small, against a hub of its own.

`shrink` makes the profile and the environment, `hub` serves, `models` and `records` make what is served.
"""

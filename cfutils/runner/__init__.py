"""Takes a command line (profile, notebooks, parameters); executes notebooks through papermill and reports.

`notebook` reads sources and parameters, `batch` executes them in order, `execute` runs one, `ahead` builds what
they need meanwhile, `fresh` decides which need not be repeated, `doctor` checks the machine, `clean` frees disk.
"""

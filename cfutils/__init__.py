"""Fine-tune an open-weights language model without it forgetting what it knew, and prove it."""

import os

__version__ = "0.1.0"

# Threads of a parallel loop wait for each other asleep, not spinning. On a busy or shared machine spinning can slow
# small models a hundredfold, because the thread that is waited for does not get its core. torch reads it when loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

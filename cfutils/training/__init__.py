"""Takes a base, target sequences and a replay pool; makes tuned weights and a log. Pretrains the tiny base too."""

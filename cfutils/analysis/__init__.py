"""Statistics and figures from tidy frames of results; needs neither models nor torch.

Takes item-level results (one row per run, task, metric and item), training logs, samples and estimates;
makes drops with intervals (`forgetting`), scores with intervals (`forgetting.levels`), verdicts (`verdicts`) on
declared claims (`claims`), areas under frontiers (`frontier`), comparisons of two sets of results (`agreement`), and
figures (`plots`).
"""

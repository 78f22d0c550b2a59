"""From a base and a file of one's own to a tuned model, a recommendation and a report: `cfutils adapt`.

Takes what a user has (`check`), fits a small declared study into a time (`sizes`), runs it through the Lab, and writes
the recommended model with its card and report (`deliver`, `report`).
"""

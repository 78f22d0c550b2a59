"""For people with a training loop of their own: samples in the files that other trainers read (`exports`), replay in
TRL's SFTTrainer (`trl`), and forgetting in the log of transformers' Trainer (`transformers`).

Nothing here is imported by the suite's own tuning; TRL is needed by `trl` alone.
"""

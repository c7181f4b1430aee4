"""From labelled rows to the best weights: rows, steps, the schedule, snapshots, presets.

Nothing is imported here, so that a setting's type costs no torch.
"""

"""What is measured of a network: accuracy, calibration, comparison with another, drift, faithfulness of attention.

Nothing is imported here. Apart from `held_out` and `faithfulness`, which are given engines, it knows numpy only.
"""

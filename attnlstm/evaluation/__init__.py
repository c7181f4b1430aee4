"""What is measured of a network: accuracy, calibration, comparison with another, drift, faithfulness of attention.

Nothing is imported here. Apart from scoring held-out rows (`metrics.probabilities_of`), it knows numpy only.
"""

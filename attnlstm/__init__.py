"""The model: configuration, network, batching, inference engines, training, metrics, calibration.

Nothing is imported here, so that `import attnlstm.config` costs no torch. Knows nothing about Parquet or
Prefect: ragged data comes and goes as numpy `values` (all rows' tokens end to end) and `offsets` (int64,
rows + 1).
"""

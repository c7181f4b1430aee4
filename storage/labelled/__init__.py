"""Labelled rows for training, and which side of the split each is on."""

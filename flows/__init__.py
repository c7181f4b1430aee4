"""Prefect flows and tasks, what they show, and the command line.

Flows resolve their settings, call `storage` and `attnlstm`, and report. Tasks exchange paths and counts.
"""

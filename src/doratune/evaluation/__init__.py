"""Evaluation: loading a run, adapter or model, asking it by a protocol, and counting its answers."""

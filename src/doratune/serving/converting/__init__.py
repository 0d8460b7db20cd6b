"""Converts an adapter into LoRA: the best of a rank, or an exact one on a base that is written too."""

"""Merges an adapter into its base: a plain model folder."""

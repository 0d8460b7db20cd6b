"""Writes a base with its adapter as a GGUF file."""

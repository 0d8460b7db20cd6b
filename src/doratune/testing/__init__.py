"""Helps to test other projects' code on the engine.

``everywhere`` is a pytest plugin that enables the engine in every PEFT model; ``calls`` counts its calls.
"""

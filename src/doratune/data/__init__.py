"""Data: tasks and their wording as YAML, readers, the prompt, and examples ready to be encoded.

Importing this package, or any of its modules but ``encode``, imports no torch, transformers or datasets.
"""

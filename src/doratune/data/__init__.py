"""Tasks and their wording as YAML, readers of rows, the prompt, examples, and their encoding as tokens.

Importing this package, or any of its modules but ``encode``, imports no torch, transformers or datasets.
"""

"""What comes after training: a wing each for merging, converting, exporting and what servers load.

The files here are shared: the adapter on its base (``adapted``), new weights, files and folders that appear
whole, and the comparison of what was written with base and adapter (``check``).
"""

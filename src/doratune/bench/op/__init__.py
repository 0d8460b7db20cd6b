"""What one layer costs.

The cases of ``cases.yaml`` go through ``providers``: a check against the float64 reference (``gate``),
interleaved timing, memory.
"""

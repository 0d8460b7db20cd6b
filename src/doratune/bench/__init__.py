"""What layers cost: time and memory of frozen, LoRA and DoRA layers, measured beside one another.

``op`` runs the cases of ``cases.yaml`` through the providers of ``providers``: a check against the float64
reference, interleaved timing, memory. ``table`` shows the record.
"""

"""What DoRA and LoRA cost: time and memory, measured beside one another.

``op`` is about single layers. It runs the cases of ``cases.yaml`` through the providers of ``providers``: a
check against the float64 reference, interleaved timing, memory. ``step`` is about whole optimizer steps. It
runs the cases of ``cases.yaml`` through the training loops of ``step_loops``: processes that take turns
(``turns``), and whose losses are compared. ``table`` shows the records.
"""

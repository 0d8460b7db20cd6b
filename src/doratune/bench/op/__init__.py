"""Time and memory of one layer: ``doratune bench op``.

Each provider (``providers``) of each case in ``cases.yaml`` is checked against the float64 reference
(``gate``), then timed in turn with the others (``timing``) and measured for memory (``memory``).
"""

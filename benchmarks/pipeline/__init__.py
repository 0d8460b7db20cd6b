"""Training and evaluation as a whole, compared with the original study's way; see ``__main__``.

``bench`` runs the commands of both sides in turn, each in a process. ``commands`` has the command lines,
``process`` measures time and memory, and ``results`` reads the files they leave and derives ratios and
verdicts. ``table`` shows the ``record``.
"""

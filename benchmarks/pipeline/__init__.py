"""Training and evaluating as a whole, compared with the original study's way; see ``__main__``.

``bench`` gives the commands of both sides in turn, each in a process: ``commands`` has their words,
``process`` their time and memory, ``results`` what they left, with ratios and verdicts. ``table`` shows the
``record``.
"""

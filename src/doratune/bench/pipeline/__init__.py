"""What fine-tuning and evaluating cost as a whole, beside the original study's way of computing.

``bench`` gives the commands of both sides in turn, each a process of its own: ``commands`` has their words,
``process`` their time and memory, ``results`` what they left, ``figures`` ratios and verdicts. ``table``
shows the record.
"""

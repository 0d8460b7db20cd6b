"""Measures how training moved the magnitude and direction of the weights (arXiv 2402.09353, section 3.2).

``runs`` and ``base`` read the runs and their base model, ``change`` measures one weight, and ``analyze``
makes the record.
"""

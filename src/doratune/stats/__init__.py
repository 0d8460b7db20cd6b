"""Statistics of rows: accuracies with intervals, paired differences, the sizes a study needs. No torch.

``accuracy`` treats one run. ``seeds`` compares methods over several seeds with the intervals of ``spread``,
for accuracy and any other measure with a ``scale``. ``needed`` tells how many rows or seeds a difference
would take, ``telling`` whether the arms learned anything to compare, and ``outliers`` which runs ended far
below the others.
"""

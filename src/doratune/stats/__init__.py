"""Statistics of rows: accuracies with intervals, paired differences, the sizes a study needs. No torch.

``accuracy`` treats one run. ``seeds`` compares the accuracy of methods over several seeds, and ``measures``
their likelihood and Brier score, with the intervals of ``spread``. ``needed`` tells how many rows or seeds a
difference would take, ``telling`` whether the arms learned anything to compare, and ``outliers`` which runs
ended far below the others.
"""

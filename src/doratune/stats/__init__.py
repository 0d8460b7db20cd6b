"""Statistics of answers: accuracies with intervals, paired differences, the sizes a study needs. No torch.

``accuracy`` treats one run, ``seeds`` compares methods over several seeds by ``resampling``, and ``needed``
tells how many rows or seeds a difference would take.
"""

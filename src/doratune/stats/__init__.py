"""What can be told from answers: accuracies with intervals, paired differences, and the sizes a study needs.

Knows no torch.
"""

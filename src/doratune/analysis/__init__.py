"""How training moved the magnitude and the direction of the weights (arXiv 2402.09353, section 3.2)."""

"""What makes a model's own forward pass cheaper without changing what it computes."""

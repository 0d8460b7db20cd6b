"""How a model is asked and how its answers are counted: protocols, answer extraction, accuracy."""

"""Training methods as data: each is a YAML file, checked strictly; the shipped ones are in ``shipped/``."""

"""Exact."""


def convert_exactly(*a):
    raise NotImplementedError

"""A row's candidate answers as a tree of tokens, so that their common prefixes are run once.

Slot 0 is the prompt's last token and slot i > 0 the i-th token of the tree. The distribution at a slot
predicts the tokens that follow it. Nothing is predicted from a candidate's last token, so it is not in the
tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass
class CandidateTree:
    """The tokens to run after a prompt, and the slots with each candidate's token probabilities.

    Attributes:
        tokens: Token id of each tree node; node i sits in slot i + 1.
        parents: Slot of each node's parent, always smaller than the node's own slot.
        depths: Number of tokens between the prompt and each node: 0 directly after the prompt.
        paths: For each candidate, a (slot, token id) pair per token; the slot gives the token's probability.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    paths: list[list[tuple[int, int]]] = field(default_factory=list)


def candidate_tree(candidates: Sequence[Sequence[int]]) -> CandidateTree:
    """Merge the candidates' token ids (each at least one) into a tree."""
    tree = CandidateTree()
    slots: dict[tuple[int, int], int] = {}
    for ids in candidates:
        slot = 0
        path = [(slot, ids[0])]
        for depth, (token, following) in enumerate(pairwise(ids)):
            if (slot, token) not in slots:
                tree.tokens.append(token)
                tree.parents.append(slot)
                tree.depths.append(depth)
                slots[slot, token] = len(tree.tokens)
            slot = slots[slot, token]
            path.append((slot, following))
        tree.paths.append(path)
    return tree

"""Write the pages of docs/results from the committed records.

    python benchmarks/results_pages

Reads benchmarks/results/*.json and the records under docs/results; writes docs/results/*.md and the plots in
docs/results/plots. The templates in ``pages`` hold the sentences, and every figure in them is computed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # this package's folder, where Python puts the package itself

from results_pages.write import OUTPUT, results_pages

if __name__ == "__main__":
    for name, text in results_pages().items():
        path = OUTPUT / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(OUTPUT.parents[1]))

"""``doratune run`` as a module, for ``accelerate launch -m`` and ``torchrun -m``.

python -m doratune.run SCRIPT [ARGS...]
"""

import sys

from doratune.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["run", *sys.argv[1:]]))

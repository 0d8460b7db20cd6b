"""``python -m doratune``."""

from doratune.cli.main import main

raise SystemExit(main())

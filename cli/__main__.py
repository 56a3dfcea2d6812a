"""``python -m cli``: the same as ``leadstream``."""

from cli.main import main

main()

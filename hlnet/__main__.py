"""``python -m hlnet``."""

from hlnet.cli.main import main

main()

"""`python -m modelnet.cli`: the `modelnet` command."""

from modelnet.cli import main

main()

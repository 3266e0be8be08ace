"""`python -m minflux` is the same as `minflux`."""

from minflux.cli import main

main()

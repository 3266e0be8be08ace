"""`python -m minflux` is the same as `minflux`."""

from minflux.commands.main import main

main()

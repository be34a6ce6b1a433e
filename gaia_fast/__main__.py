"""`python -m gaia_fast`: the command line."""

from gaia_fast.cli import main

main(prog_name="python -m gaia_fast")

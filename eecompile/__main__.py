"""`python -m eecompile`."""

from eecompile.cli import main

if __name__ == "__main__":
    main(prog_name="eecompile")

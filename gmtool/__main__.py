"""``python -m gmtool``: the command line, also under ``torchrun -m gmtool``."""

from gmtool.cli.app import run

if __name__ == "__main__":
    run()

"""`python -m alignscope` is the command `alignscope`."""

from .cli.main import main

if __name__ == "__main__":
    main()

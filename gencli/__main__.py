"""`python -m gencli` is `gencli`."""

from gencli.cli.main import main

if __name__ == "__main__":
    main()

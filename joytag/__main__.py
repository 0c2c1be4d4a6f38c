"""`python -m joytag` is the `joytag` command."""

from joytag.cli.command import main

if __name__ == "__main__":
    main()

"""`joytag app`."""

from joytag.cli.command import run

if __name__ == "__main__":
    run("app")

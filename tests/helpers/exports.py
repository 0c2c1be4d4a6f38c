"""A model of five tags with an evaluation, and its export in every layout."""

from pathlib import Path

import colours

from joytag.cli import evaluate, export


def write_release(directory: Path) -> Path:
    """Write data/ and release/, which holds the reports of an evaluation on it; return the latter."""
    colours.write_dataset(directory / "data")
    colours.train(directory / "data", {150: directory / "release"})
    evaluate.main(["--model", str(directory / "release"), "--data", str(directory / "data"), "--device", "cpu"])
    return directory / "release"


def write_exports(release: Path) -> Path:
    """Write all layouts of the release of `write_release` to exports/ beside it, and return that."""
    output, data = release.with_name("exports"), release.with_name("data")
    export.main(["--model", str(release), "--to", "all", "--output", str(output), "--data", str(data)])
    return output

"""Publishing of exports on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from joytag.core import files
from joytag.core.errors import first_line
from joytag.core.lock import sole_writer
from joytag.core.settings import SettingsError
from joytag.export import card, manifest
from joytag.export.card import About
from joytag.export.layouts import LAYOUTS
from joytag.export.manifest import Manifest


class NoExport(ValueError):
    """A directory that holds no export."""


class Unreachable(ValueError):
    """Raised when the hub refuses an upload or cannot be reached; the directory is ready for another attempt."""


def find_manifests(directory: Path) -> dict[str, Manifest]:
    """Return the manifests of an export by their folders: "", or the layouts' names and a slash.

    Raises NoExport, and SettingsError for a manifest that cannot be used.
    """
    folders = ["", *(f"{name}/" for name in LAYOUTS)]
    found = {folder: directory / folder for folder in folders if (directory / folder / manifest.FILE).is_file()}
    if not found:
        raise NoExport(f"{directory}: no export here ({manifest.FILE} is missing); write one with joytag export")
    manifests = {folder: manifest.read(path) for folder, path in found.items()}
    for folder, described in manifests.items():
        if described.layout not in LAYOUTS:
            raise SettingsError(
                f"{found[folder] / manifest.FILE}: layout: {described.layout!r} is not one of {', '.join(LAYOUTS)}; "
                "export the model again"
            )
    return manifests


def prepare(directory: Path, about: About) -> Path:
    """Write the model card of an export, and return its path. Raises NoExport, InUse and SettingsError."""
    path, text = directory / card.FILE, card.render(find_manifests(directory), about)
    with sole_writer(directory):
        files.write_text(path, text)
    return path


def upload(directory: Path, hub: str, private: bool) -> str:
    """Upload a directory to a model of the hub, created if it is missing, and return the address of the commit.

    Uses the token of `hf auth login` or HF_TOKEN. Raises Unreachable.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        api.create_repo(hub, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=hub, folder_path=directory, commit_message="Export by JoyTag"))
    except Exception as error:  # those of the hub, of its HTTP client and of the system have no common base class
        raise Unreachable(
            f"{hub}: not uploaded ({first_line(error)}); {directory} is ready, so run the same command again"
        ) from None

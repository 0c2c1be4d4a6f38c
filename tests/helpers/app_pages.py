"""The app's page in headless Chromium, by Playwright: opened, watched for problems, and given files."""

import io
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from browser import CHROMIUM
from PIL import Image
from requirements import require

SIZES = [(390, 844), (1280, 900)]
DROP = """async ([files]) => {
  const transfer = new DataTransfer();
  for (const [name, text] of files) {
    const bytes = Uint8Array.from(atob(text), (byte) => byte.charCodeAt(0));
    transfer.items.add(new File([bytes], name, {type: 'image/png'}));
  }
  for (const type of ['dragover', 'drop'])
    document.body.dispatchEvent(new DragEvent(type, {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""
PASTE = DROP.replace("for (const type of ['dragover', 'drop'])", "").replace(
    "new DragEvent(type, {dataTransfer: transfer, bubbles: true, cancelable: true})",
    "new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true})",
)


@contextmanager
def chromium() -> Iterator[Any]:
    """Run a headless Chromium; without it or Playwright the test is skipped."""
    require(find_spec("playwright") is not None, "Playwright: pip install playwright")
    require(CHROMIUM is not None, "Chromium")
    with import_module("playwright.sync_api").sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def visits(browser: Any) -> Iterator[Callable[..., Any]]:
    """Yield a function that opens a page; at the end no console has an error, and no page asked another address."""
    problems: list[str] = []
    contexts: list[Any] = []
    addresses: set[str] = set()

    def note(message: Any) -> None:
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            problems.append(message.text)

    def check(request: Any) -> None:
        if not request.url.removeprefix("blob:").startswith((*addresses, "data:")):
            problems.append(request.url)

    def visit(address: str, width: int = 1280, height: int = 900, dark: bool = False) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            permissions=["clipboard-read", "clipboard-write"],
            has_touch=width < 600,
        )
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", check)
        addresses.add(address)
        page.goto(address)
        page.locator("#about").filter(has_text="tags").wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not problems


def gradients() -> dict[str, bytes]:
    """Encode six gradients as PNG, by name."""
    files = {}
    for number in range(6):
        rng, buffer = np.random.default_rng(number), io.BytesIO()
        colour = rng.integers(0, 256, (2, 3, 3), dtype=np.uint8)
        Image.fromarray(colour).resize((60 + 20 * number, 90), Image.Resampling.BICUBIC).save(buffer, "PNG")
        files[f"image {number}.png"] = buffer.getvalue()
    return files


def coded(files: Mapping[str, bytes]) -> list[list[list[str]]]:
    """Return the argument of the scripts `DROP` and `PASTE`."""
    return [[[name, b64encode(data).decode()] for name, data in files.items()]]


def drop(page: Any, files: Mapping[str, bytes], script: str = DROP) -> None:
    """Drop files on the page, and wait until all are tagged or failed."""
    page.evaluate(script, coded(files))
    page.locator("#done").wait_for(state="hidden")


def drag(page: Any, *paths: Path) -> None:
    """Drag files and folders of the disk onto the page, as from a file manager, and drop them."""
    protocol = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        protocol.send("Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 100, "data": data})


def focused(page: Any, what: str = "id") -> str:
    """Return a property of what has the focus, "nothing" if nothing has it."""
    return page.evaluate(
        f"document.activeElement === document.body ? 'nothing' : String(document.activeElement.{what})"
    )


def check_focus(page: Any, within: str) -> None:
    """Press each button of a part of the page by the keyboard, and check that something has the focus afterwards."""
    buttons = f"{within} :is(button, summary)"
    for number in range(page.locator(buttons).count()):
        button = page.locator(buttons).nth(number)
        if button.is_visible():
            button.focus()
            text = focused(page, "textContent")
            page.keyboard.press("Space")
            page.wait_for_timeout(300)
            assert focused(page) != "nothing", text

"""An export in a browser: onnxruntime-web in Chromium, on a page from this machine."""

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from clients import sigmoid
from paths import ROOT
from PIL import Image
from requirements import require

from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.export.samples import drawn
from joytag.tagging.tagger import Tagger

RUNTIME = ROOT / "build/onnxruntime-web/node_modules/onnxruntime-web/dist"  # `make check-export` installs it
PAGE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<script src="runtime/ort.wasm.min.js"></script>
<script>
const mean = [0.48145466, 0.4578275, 0.40821073], std = [0.26862954, 0.26130258, 0.27577711];

async function pixels(url) {
    const image = await createImageBitmap(await (await fetch(url)).blob());
    const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
    canvas.drawImage(image, 0, 0);
    const {data} = canvas.getImageData(0, 0, image.width, image.height), count = image.width * image.height;
    const planes = new Float32Array(3 * count);
    for (let i = 0; i < count; i++)
        for (let c = 0; c < 3; c++) planes[c * count + i] = (data[4 * i + c] / 255 - mean[c]) / std[c];
    return new ort.Tensor("float32", planes, [1, 3, image.height, image.width]);
}

async function logits(images) {
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = new URL("runtime/", location).href;
    const session = await ort.InferenceSession.create("model/model.onnx"), rows = [];
    for (let i = 0; i < images; i++)
        rows.push([...(await session.run({input: await pixels(`${i}.png`)})).logits.data]);
    return rows;
}
</script>"""


@pytest.fixture
def site(exports, tmp_path) -> Iterator[tuple[str, int]]:
    """The address of a site with the page, the runtime, the model and images of its size; and their number."""
    require((RUNTIME / "ort.wasm.min.js").is_file(), "onnxruntime-web: make check-export")
    for name, target in (("runtime", RUNTIME), ("model", exports / "joytag")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "index.html").write_text(PAGE, encoding="utf-8")
    size = json.loads((exports / "joytag/config.json").read_text(encoding="utf-8"))["image_size"]
    squares = drawn(size).squares
    for number, square in enumerate(squares):
        Image.fromarray(square.transpose(1, 2, 0)).save(tmp_path / f"{number}.png")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html", len(squares)
        server.shutdown()


@pytest.mark.slow
def test_a_browser_finds_the_same_tags(browser, site, exports, tmp_path):
    address, count = site
    page = browser.open(address)
    scores = sigmoid(np.array(page.value(f"logits({count})")))
    assert page.problems == []
    assert all(url.startswith(address.removesuffix("index.html")) for url in page.requests)
    results = [*Tagger.load(exports / "joytag").stream([tmp_path / f"{number}.png" for number in range(count)])]
    expected = np.array([list(result.scores) for result in results])
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert ((scores > DEFAULT_THRESHOLD) == (expected > DEFAULT_THRESHOLD)).all()
    assert 0 < (expected > DEFAULT_THRESHOLD).mean() < 1
    print(f"in a browser: the same decisions, scores at most {np.abs(scores - expected).max():.1e} apart")

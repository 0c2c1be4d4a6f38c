"""Taggers in the WD layout: pixels against a plain reference, and refused layouts and tables."""

import sys

import numpy as np
import pytest
import torch
import wd
from onnx import TensorProto, helper
from PIL import Image

from joytag.data.images import ImageError
from joytag.models.wd_onnx import OnnxError, OnnxTagger, read_tags

SIZE = 8


def bicubic(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resample rows to `size` with Keys' kernel (a = -0.5), widened for reduction, rounded to 8 bits as Pillow does."""
    scale = len(pixels) / size
    width = max(scale, 1.0)
    weights = np.zeros((size, len(pixels)))
    for out in range(size):
        for row in range(len(pixels)):
            x = abs((row + 0.5 - (out + 0.5) * scale) / width)
            if x < 1:
                weights[out, row] = 1.5 * x**3 - 2.5 * x**2 + 1
            elif x < 2:
                weights[out, row] = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights /= weights.sum(axis=1, keepdims=True)
    return np.tensordot(weights, pixels, axes=1).round().clip(0, 255)


def expected_input(path, size: int) -> np.ndarray:
    """The expected model input [size, size, 3], BGR, 0 to 255: on white, centered on a square, resized."""
    rgba = np.asarray(Image.open(path).convert("RGBA"), dtype=np.float64)
    alpha = rgba[..., 3:] / 255
    colours = (rgba[..., :3] * alpha + 255 * (1 - alpha)).round()
    height, width = colours.shape[:2]
    side = max(height, width)
    canvas = np.full((side, side, 3), 255.0)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = colours
    narrow = bicubic(canvas.transpose(1, 0, 2), size).transpose(1, 0, 2)
    return bicubic(narrow, size)[..., ::-1]


@pytest.fixture
def image_paths(tmp_path):
    """Files of images: wide, tall, square, of the model's size, transparent, grey, smaller than the model's size."""
    rng = np.random.default_rng(0)
    shapes = {
        "wide": (13, 31, 3),
        "tall": (40, 9, 3),
        "square": (20, 20, 3),
        "same": (SIZE, SIZE, 3),
        "transparent": (21, 18, 4),
        "grey": (16, 17),
        "small": (5, 4, 3),
    }
    paths = []
    for name, shape in shapes.items():
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(paths[-1])
    return paths


@pytest.mark.parametrize("batch", ["batch", 1, 3])
def test_the_model_input_is_a_bicubic_bgr_square_on_white(tmp_path, image_paths, batch):
    wd.write_copier(tmp_path, SIZE, batch)
    tagger = OnnxTagger.load(tmp_path)
    scores = tagger(np.stack([tagger.read(path) for path in image_paths]))
    assert scores.shape == (len(image_paths), SIZE * SIZE * 3 - 2)
    assert scores.dtype == np.float32
    for row, path in zip(scores, image_paths, strict=True):
        expected = expected_input(path, SIZE).reshape(-1)[2:]
        assert np.abs(row * 255 - expected).max() <= 1.01, path.stem
    exact = np.asarray(Image.open(image_paths[3]))[..., ::-1].reshape(-1)[2:]
    np.testing.assert_array_equal((scores[3] * 255).round(), exact)


def test_scores_do_not_depend_on_the_rest_of_the_batch(tmp_path, image_paths):
    wd.write_copier(tmp_path, SIZE)
    tagger = OnnxTagger.load(tmp_path)
    squares = np.stack([tagger.read(path) for path in image_paths] * 3)  # 21, with 8 computed at once
    together = tagger(squares)
    for row, one in zip(together, squares, strict=True):
        np.testing.assert_array_equal(row, tagger(one[None])[0])
    assert tagger(squares[:0]).shape == (0, SIZE * SIZE * 3 - 2)


def test_ratings_are_skipped_in_any_position(tmp_path):
    weights, biases = np.zeros((3, 4), dtype=np.float32), np.array([-1, 0, 1, 2], dtype=np.float32)
    wd.write_mean_colour(tmp_path, [], weights, biases, SIZE)
    lines = ["1,sensitive,9,1", "2,long hair,0,70", "3,explicit,9,1", '4,"a,b_(c)",4,30']
    (tmp_path / "selected_tags.csv").write_text("\ufeff" + wd.HEADER + "\n".join(lines), encoding="utf-8")
    tagger = OnnxTagger.load(tmp_path)
    assert tagger.tags.names == ["long_hair", "a,b_(c)"]
    assert tagger.tags.categories.tolist() == [0, 4]
    assert tagger.tags.counts.tolist() == [70, 30]
    scores = tagger(np.zeros((1, SIZE, SIZE, 3), dtype=np.uint8))
    np.testing.assert_allclose(scores, [[0.5, 1 / (1 + np.exp(-2))]], rtol=1e-6)


def test_a_file_that_is_not_an_image_is_named(tmp_path):
    wd.write_copier(tmp_path, SIZE)
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(ImageError, match=r"text\.png: not an image"):
        OnnxTagger.load(tmp_path).read(tmp_path / "text.png")


@pytest.mark.parametrize(
    ("inputs", "outputs", "element", "message"),
    [
        ([1, 3, 8, 8], [1, 192], TensorProto.FLOAT, "input images: .* is not float"),
        ([1, 8, 4, 3], [1, 96], TensorProto.FLOAT, "input images: .* is not float"),
        (["n", "h", "w", 3], ["n", "c"], TensorProto.FLOAT, "input images: .* is not float"),
        (["n", 8, 8, 4], ["n", 256], TensorProto.FLOAT, "input images: .* is not float"),
        (["n", 192], ["n", 192], TensorProto.FLOAT, "input images: .* is not float"),
        (["n", 20_000, 20_000, 3], ["n", 192], TensorProto.FLOAT, "images of 20000 pixels; at most 4096 fit"),
        (["n", 8, 8, 3], ["n", 192], TensorProto.FLOAT16, "input images: .* is not float"),
        (["n", 4, 4, 3], ["n", 48], TensorProto.FLOAT, r"output scores: .* is not \[batch, 192\]"),
    ],
)
def test_other_layouts_are_refused_in_one_line(tmp_path, inputs, outputs, element, message):
    wd.write_copier(tmp_path, SIZE)
    wd.write_flattener(tmp_path, inputs, outputs, element)
    with pytest.raises(OnnxError, match=message) as error:
        OnnxTagger.load(tmp_path)
    assert "\n" not in str(error.value)
    assert "model.onnx" in str(error.value)


@pytest.mark.parametrize("columns", [192, "columns"])
def test_outputs_that_are_not_scores_are_refused(tmp_path, columns):
    wd.write_copier(tmp_path, SIZE)
    wd.write_flattener(tmp_path, ["n", 8, 8, 3], ["n", columns])
    tagger = OnnxTagger.load(tmp_path)
    with pytest.raises(OnnxError, match="from 0 to 255, not scores from 0 to 1"):
        tagger(np.full((2, 8, 8, 3), [0, 7, 255], dtype=np.uint8))


def test_the_number_of_outputs_is_checked_when_the_model_does_not_declare_it(tmp_path):
    wd.write_copier(tmp_path, SIZE)
    nodes = [
        helper.make_node("Reshape", ["images", "shape"], ["flat"]),
        helper.make_node("Compress", ["flat", "kept"], ["scores"], axis=1),
    ]
    constants = {"shape": np.array([0, -1]), "kept": np.ones(48, dtype=bool)}
    wd.write_model(tmp_path, nodes, constants, ["n", 4, 4, 3], ["n", "columns"])
    with pytest.raises(OnnxError, match=r"returns \(48,\) values for an image, not 192"):
        OnnxTagger.load(tmp_path)(np.zeros((1, 4, 4, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tag_id,name,count\n1,a,2\n", "category: column missing"),
        ("", "category: column missing"),
        (wd.HEADER, "lists no tags"),
        (wd.HEADER + wd.RATINGS, "lists no tags"),
        (wd.HEADER + "1,a,0,9\n2,a,0,9\n", "row 2: a: must have a name that occurs once"),
        (wd.HEADER + "1,,0,9\n", "row 1: no name"),
        (wd.HEADER + "1,a,general,9\n", "row 1: not a name with"),
        (wd.HEADER + "1,a,300,9\n", "row 1: not a name with"),
        (wd.HEADER + "1,a\n", "row 1: not a name with"),
        (wd.HEADER + '1,"a,0,9\n', "cannot be read as CSV"),
        (b"\xff\xfe\x00", "cannot be read as CSV"),
    ],
)
def test_bad_tables_are_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "selected_tags.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(OnnxError, match=message) as error:
        read_tags(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(OnnxError, match=r"selected_tags\.csv: missing"):
        OnnxTagger.load(tmp_path)
    wd.write_tags(tmp_path, ["a"])
    with pytest.raises(OnnxError, match=r"model\.onnx: missing"):
        OnnxTagger.load(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(OnnxError, match=r"model\.onnx: damaged, or not for onnxruntime") as error:
        OnnxTagger.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_onnxruntime_is_named(tmp_path, monkeypatch):
    wd.write_copier(tmp_path, SIZE)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match="onnxruntime") as error:
        OnnxTagger.load(tmp_path)
    assert error.value.name == "onnxruntime"


def test_a_warning_names_the_cpu_when_no_gpu_is_supported(tmp_path):
    wd.write_copier(tmp_path, SIZE)
    with pytest.warns(
        UserWarning, match=r"model\.onnx: onnxruntime computes on the CPU; for cuda:1 install onnxruntime-gpu"
    ):
        OnnxTagger.load(tmp_path, torch.device("cuda", 1))

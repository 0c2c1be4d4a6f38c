"""`joytag finetune`: mistakes."""

from commands import assert_one_line
from paths import TINY


def test_a_mistake_ends_in_one_line(call, image_folder, tmp_path):
    done = call("finetune", image_folder, "--model", TINY, "--output", tmp_path / "o", "optimizer.lrr=1")
    assert_one_line(done, "did you mean optimizer.lr?")
    assert not (tmp_path / "o").exists()
    (tmp_path / "empty").mkdir()
    assert_one_line(call("finetune", tmp_path / "gone", "--model", TINY, "--output", tmp_path / "o"), "gone")
    assert_one_line(call("finetune", tmp_path / "empty", "--model", TINY, "--output", tmp_path / "o"), "sidecars")
    assert_one_line(call("finetune", tmp_path, "--model", tmp_path / "no", "--output", tmp_path / "o"), "no such")

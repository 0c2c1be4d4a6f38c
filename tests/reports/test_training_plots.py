"""Training curves."""

from PIL import Image

from joytag.reports.training_plots import plot_curves


def test_curves_of_an_unfinished_log_are_an_image(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"samples": 1, "loss": 2, "lr": 1}\n{"samples": 2, "val_micro_f1": 0.5, "val_macro_f1": 0.2}\n{"unfin'
    )
    plot_curves(log, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] > 600

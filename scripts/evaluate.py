"""Measure a model on a dataset's validation split: full-metrics.txt, metrics.json and a table."""

from pathlib import Path

from rich.console import Console

from joytag import data, distributed, quantize, records, release, report
from joytag.cli import Parser, command_line, fraction, positive
from joytag.evaluate import evaluate


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", required=True, type=Path, help="a checkpoint or release directory")
    parser.add_argument("--data", required=True, type=Path, help="a dataset directory")
    parser.add_argument("--split", default="validation", choices=records.SPLITS)
    parser.add_argument("--threshold", type=fraction, default=0.4, help="a tag is predicted above it (default: 0.4)")
    parser.add_argument("--output", type=Path, help="where to write (default: the model's directory)")
    parser.add_argument("--batch-size", type=positive, default=64)
    parser.add_argument("--workers", type=positive, help="decoding processes (default: chosen by device)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp16", "bf16", "fp32"))
    arguments = parser.parse_args()

    dataset = records.Dataset.open(arguments.data)
    model, tags = release.load(arguments.model)
    if tags != dataset.tags.names:
        raise ValueError(f"{arguments.model}: its {len(tags)} tags are not those of {arguments.data}")
    device = distributed.pick_device(arguments.device)
    dtype = distributed.pick_dtype(arguments.precision, device, quantize.width(model))
    workers = data.default_workers(device, 1) if arguments.workers is None else arguments.workers
    pictures = data.Pictures(dataset, arguments.split, model.config.image_size)
    threshold = arguments.threshold
    with data.worker_errors():
        counts = evaluate(model.to(device), pictures, arguments.batch_size, workers, threshold, device, dtype)

    output = arguments.output or arguments.model
    facts = {
        "threshold": threshold,
        "split": arguments.split,
        "image_size": model.config.image_size,
        "dtype": str(dtype),
    }
    summary = report.write_reports(output, counts, dataset, **facts)
    Console().print(report.metrics_table(summary, threshold))
    print(f"Written: {output / 'full-metrics.txt'} and {output / 'metrics.json'}")


if __name__ == "__main__":
    command_line(main)

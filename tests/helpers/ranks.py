"""The program of each process of a test: runs one after the other, with faults, and records their steps.

python ranks.py JOBS.json, a list of

    {"config": PATH, "resume": null, "auto" or PATH, "faults": {SAMPLES: NAME}, "rank": RANK of the faults,
     "double": true to compute in float64}

A fault happens once, before the step at so many samples, trained on or skipped. The records are in the run's directory,
and a process that fails leaves its exit code in exit.RANK beside JOBS.json.
"""

import hashlib
import json
import os
import signal
import sys
import time
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from joytag.cli.command import add_remedies, report_errors
from joytag.cli.train import REMEDIES
from joytag.core import distributed, settings
from joytag.data.dataset import Dataset
from joytag.models import inference
from joytag.training import launch, micro_batch, state, trainer
from joytag.training import step as steps
from joytag.training.config import RunSettings
from joytag.training.run import Run

take_step, loss_of_batch, normalize, new_model = steps.train_step, steps.batch_loss, steps.normalize, state.new_model
clip: Any = nn.utils.clip_grad_norm_


def once(run: Run, position: int) -> bool:
    """Whether this is the first call for the position; a file remembers it after the process ends."""
    mark = Path(run.config.output) / f"fault-{position}"
    first = not mark.exists()
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return first


def boom() -> None:
    raise RuntimeError("boom")


FAULTS = {
    "raise": boom,
    "exit": lambda: os._exit(0),
    "sleep": lambda: time.sleep(1000),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "kill worker": lambda: signal_worker(signal.SIGKILL),
    "stop worker": lambda: signal_worker(signal.SIGSTOP),
}


def signal_worker(number: signal.Signals) -> None:
    """Send a signal to the first decoding process."""
    pid = active_children()[0].pid
    assert pid is not None
    os.kill(pid, number)


def digest(*tensors: torch.Tensor) -> str:
    """Hash the values, without the shapes."""
    return hashlib.sha256(b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


def recorded(job: dict):
    """Wrap `train_step`: inject the job's faults, and record every step in steps.RANK.jsonl."""
    faults = {int(position): name for position, name in job.get("faults", {}).items()}

    def step(state, model, batches, run):
        position, rows, pixels = state.samples + state.skipped, [], []
        here = distributed.rank() == min(job.get("rank", 1), distributed.world_size() - 1)
        name = faults.get(position) if here else None
        steps.batch_loss = poisoned if name == "nan" else loss_of_batch
        if name in FAULTS and once(run, position):
            FAULTS[name]()

        def tap():
            for batch in batches:
                rows.extend(batch.rows.tolist())
                pixels.append(batch.images.clone())  # valid until the next one
                yield batch

        result = take_step(state, model, tap(), run)
        line = {
            "samples": result.start,
            "position": position,
            "skipped": result.skipped,
            "loss": result.loss,
            "lr": state.optimizer.param_groups[0]["lr"],
            "rows": rows,
            "pixels": [digest(image) for batch in pixels for image in batch],
            "weights": digest(*state.model.parameters()),
            "buffers": digest(*state.model.buffers()),
        }
        with (Path(run.config.output) / f"steps.{distributed.rank()}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return result

    return step


def poisoned(*arguments):
    return loss_of_batch(*arguments) * float("nan")


def in_double(output: str) -> None:
    """Compute everything in float64, and write the last step's gradients to gradients.safetensors."""
    steps.normalize = inference.normalize = lambda images: normalize(images).double()
    state.new_model = lambda run: new_model(run).double()

    def keep(parameters: Any, limit: float) -> Any:
        parameters = list(parameters)
        if distributed.rank() == 0:
            values = {str(i): p.grad.clone() for i, p in enumerate(parameters)}
            save_file(values, Path(output) / "gradients.safetensors")
        return clip(parameters, limit)

    vars(nn.utils)["clip_grad_norm_"] = keep


def main(jobs: list[dict]) -> None:
    torch.set_num_threads(1)
    configs = [settings.load(RunSettings, Path(job["config"])) for job in jobs]
    if len(jobs) == 1:
        trainer.train_step = recorded(jobs[0])
        with add_remedies(REMEDIES):
            launch.start(configs[0], jobs[0].get("resume"))
        return
    with distributed.process_group(torch.device("cpu"), 60):
        for job, config in zip(jobs, configs, strict=True):
            trainer.train_step = recorded(job)
            nn.utils.clip_grad_norm_, state.new_model = clip, new_model
            steps.normalize = inference.normalize = normalize
            if job.get("double"):
                in_double(config.output)
            dataset = Dataset.open(Path(config.data.directory))
            run = micro_batch.resolve(Run(config, dataset, torch.device("cpu"), torch.float32))
            trainer.train(run, launch.starting_point(run, job.get("resume")))


if __name__ == "__main__":
    path = Path(sys.argv[1])
    try:
        report_errors(Path(sys.argv[0]).stem, lambda: main(json.loads(path.read_text())))
    except SystemExit as end:  # recorded here, since torchrun may kill the process before it has ended
        path.with_name(f"exit.{os.environ.get('RANK', 0)}").write_text(str(int(end.code or 0)))
        raise

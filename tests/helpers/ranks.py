"""What each process of a test runs: trainings, one after the other, on whose steps it keeps records, with faults.

python ranks.py JOBS.json, a list of

    {"config": PATH, "resume": null, "auto" or PATH, "faults": {SAMPLES: NAME}, "rank": of the faults,
     "double": whether to compute in float64}

A fault happens once, before the step at so many samples, learned or skipped. Records are in the run's directory.
"""

import hashlib
import json
import os
import signal
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from joytag.cli.command import report_errors
from joytag.core import distributed, settings
from joytag.data.dataset import Dataset
from joytag.training import launch, micro_batch, state, trainer
from joytag.training import step as steps
from joytag.training.config import RunSettings
from joytag.training.run import Run

take_step, loss_of_batch, normalize, new_model = steps.train_step, steps.batch_loss, steps.normalize, state.new_model
clip = nn.utils.clip_grad_norm_


def once(run: Run, place: int) -> bool:
    """Whether this is the first time; the mark outlives the process."""
    mark = Path(run.config.output) / f"fault-{place}"
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
    "kill worker": lambda: os.kill(active_children()[0].pid, signal.SIGKILL),
    "stop worker": lambda: os.kill(active_children()[0].pid, signal.SIGSTOP),
}


def digest(*tensors: torch.Tensor) -> str:
    """A hash of the values, without the shapes."""
    return hashlib.sha256(b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


def recorded(job: dict):
    """`train_step` with the job's faults and a line on every step in steps.RANK.jsonl."""
    faults = {int(place): name for place, name in job.get("faults", {}).items()}

    def step(state, model, batches, run):
        place, rows, pixels = state.samples + state.skipped, [], []
        here = distributed.rank() == min(job.get("rank", 1), distributed.world_size() - 1)
        name = faults.get(place) if here else None
        steps.batch_loss = poisoned if name == "nan" else loss_of_batch
        if name in FAULTS and once(run, place):
            FAULTS[name]()

        def tap():
            for batch in batches:
                rows.extend(batch.rows.tolist())
                pixels.append(batch.images.clone())  # valid until the next one
                yield batch

        result = take_step(state, model, tap(), run)
        line = {
            "samples": result.begun,
            "place": place,
            "taken": result.taken,
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
    """Have everything computed in float64, and the last step's gradients left in gradients.safetensors."""
    steps.normalize = lambda images: normalize(images).double()
    state.new_model = lambda run: new_model(run).double()

    def keep(parameters, limit):
        parameters = list(parameters)
        if distributed.rank() == 0:
            values = {str(i): p.grad.clone() for i, p in enumerate(parameters)}
            save_file(values, Path(output) / "gradients.safetensors")
        return clip(parameters, limit)

    nn.utils.clip_grad_norm_ = keep


def main(jobs: list[dict]) -> None:
    torch.set_num_threads(1)
    configs = [settings.load(RunSettings, Path(job["config"])) for job in jobs]
    if len(jobs) == 1:
        trainer.train_step = recorded(jobs[0])
        launch.start(configs[0], jobs[0].get("resume"))
        return
    with distributed.process_group(torch.device("cpu"), 60):
        for job, config in zip(jobs, configs, strict=True):
            trainer.train_step = recorded(job)
            nn.utils.clip_grad_norm_, steps.normalize, state.new_model = clip, normalize, new_model
            if job.get("double"):
                in_double(config.output)
            dataset = Dataset.open(Path(config.data.directory))
            run = micro_batch.settled(Run(config, dataset, torch.device("cpu"), torch.float32))
            trainer.train(run, launch.starting_point(run, job.get("resume")))


if __name__ == "__main__":
    report_errors(Path(sys.argv[0]).stem, lambda: main(json.loads(Path(sys.argv[1]).read_text())))

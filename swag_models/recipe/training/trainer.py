"""The training loop for pre-training, fine-tuning and linear classifiers, on any number of ranks.

`train` sets up a `Trainer`, which resumes, takes steps and saves. Axes: N samples of one forward
pass on one rank, C classes, S pixels.

The folder of a run holds
  run.json      settings, data and versions; a folder is used for one run
  checkpoints/  the last ones and the best one; a run that is started again resumes from the last
  log.jsonl     measurements, one line every few steps; tensorboard/ and curves.png show the same
  bad_loss.json the step whose loss stopped the run, and the ids of its samples
  model/        the result, as `publish.save` writes it: load_model("runs/x/model")
  published.json  settings of model/ and hashes of its files, for a rerun that has nothing to do

Every step sets its own random seed. A checkpoint therefore needs only weights, optimizer state and
data position, and a run that was killed and resumed ends in bit-identical weights.
"""

import math
import os
import threading
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from swag_models.errors import ConfigError, PreemptedError, TrainingError
from swag_models.paths import expand_path
from swag_models.recipe.config import Run
from swag_models.recipe.data.collate import Batch
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.eval_loader import EvalLoader
from swag_models.recipe.data.shards import Shards
from swag_models.recipe.data.stream import hash_seed
from swag_models.recipe.data.train_loader import TrainLoader, merge_states
from swag_models.recipe.training.batch_queue import BatchQueue
from swag_models.recipe.training.checkpointer import Checkpointer
from swag_models.recipe.training.distributed import DistContext, collect_weights, init_distributed
from swag_models.recipe.training.estimate import count_steps
from swag_models.recipe.training.logging import MetricLogger, Throughput
from swag_models.recipe.training.model import (
    PublishInfo,
    is_published,
    publish_model,
)
from swag_models.recipe.training.optimizer import count_stable_steps, schedule_lr, set_lr
from swag_models.recipe.training.run_dir import (
    claim_run_dir,
    discard_unstarted,
    open_run_dir,
    write_bad_loss,
)
from swag_models.recipe.training.setup import set_up
from swag_models.recipe.training.train_state import TrainState
from swag_models.recipe.training.validation import open_validation, validate
from swag_models.recipe.worker_pool import watch_signals
from swag_models.resumable import report_done

MEAN_LOSS_DECAY = 0.98  # of the running mean of the loss, per step
MAX_CONSECUTIVE_SKIPS = 20  # then a run that skips bad losses stops as well


def train(
    run: Run,
    data: Shards | ImageDataset,
    output: str | os.PathLike[str],
    *,
    val: Shards | ImageDataset | None = None,
    embeddings: str | os.PathLike[str] | None = None,
    device: torch.device | None = None,
    tensorboard: bool = True,
    progress: bool = True,
    publish_info: PublishInfo | None = None,
) -> Path:
    """Train a model, or resume its training. Every rank of torchrun calls this alike.

    Args:
        run: the settings.
        data: training data; see `open_train_loader`.
        output: folder of the run; call again with the same arguments to resume.
        val: validation data; see `open_eval_loader`.
        embeddings: a file that `swag-models embed` wrote, to train a head on the embeddings of the
            images instead of the images; `data` may also be labels.parquet.
        device: as for `init_distributed`.
        tensorboard: write files for TensorBoard as well, which must be installed.
        progress: draw a progress bar if stderr is a terminal.
        publish_info: what only the user knows of the model, for its card.

    Returns:
        The folder of the published model, `output`/model.

    Raises:
        ConfigError: run, data and folder do not fit each other.
        TrainingError: the loss is not finite or exploded.
        PreemptedError: SIGTERM or SIGUSR1 arrived; a checkpoint has been written.
    """
    output, publish_info = expand_path(output, "output"), publish_info or PublishInfo()
    with (
        init_distributed(device) as dist,
        open_run_dir(output, dist) as work,
        watch_signals() as stop_requested,
        ExitStack() as stack,
    ):
        setup = set_up(run, data, embeddings, output, dist)
        loader, classes, state = setup.loader, setup.classes, setup.state
        stack.enter_context(closing(loader))
        # the loader counts the classes that occur in shards; a vocabulary may have more
        data_info = {**loader.facts, "classes": len(classes), **setup.facts}
        if val is not None and run.distill:
            raise ConfigError("in distillation there are no labels to validate with; omit val")
        eval_loader = None if val is None else open_validation(val, state, classes)

        # Everything above can fail on wrong input; the folder is claimed for the run only now.
        head_facts = classes.head and classes.head.facts
        claim_run_dir(work, run, data_info, loader.list_local_files(), dist, head_facts)
        val_facts = None if eval_loader is None else eval_loader.facts
        settings = {"info": asdict(publish_info), "val": val_facts}
        if dist.run_on_main(lambda: is_published(output, settings)):
            dist.run_on_main(lambda: report_done(output / "model"))
            return output / "model"
        trainer = Trainer(run, dist, output, loader, eval_loader, state)
        trainer.resume(progress, tensorboard)
        with discard_unstarted(output, dist, lambda: trainer.done > 0), closing(trainer.logger):
            trainer.fit(stop_requested)
        weights = collect_weights(state.final_model)  # last: a published model ends the run
        write, scores = state.publish, trainer.scores
        dist.run_on_main(
            lambda: publish_model(
                output, run, write, classes, weights, data_info, scores, publish_info, settings
            )
        )
        return output / "model"


class StepResult(NamedTuple):
    """Measurements of a step: loss (mean over all ranks), gradient norm before clipping, rate."""

    loss: float
    grad_norm: float
    lr: float


@dataclass
class Trainer:
    """The loop over the steps of a run, and the progress that its checkpoints store.

    Attributes:
        run, dist, output: settings, this process, folder of the run.
        loader, eval_loader: training data; validation data, if there are any.
        state: model, average and optimizer.
        done: number of steps that are done.
        mean_loss: running mean, which `loss_spike_factor` refers to.
        consecutive_skips: steps skipped since the last that was taken.
        scores: results of the last evaluation.
        broken_images: images that could not be read before this process started.
    """

    run: Run
    dist: DistContext
    output: Path
    loader: TrainLoader
    eval_loader: EvalLoader | None
    state: TrainState

    done: int = 0
    mean_loss: float = math.nan
    consecutive_skips: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    broken_images: int = 0

    # opened by `resume`, which knows the step
    checkpointer: Checkpointer = field(init=False)
    logger: MetricLogger = field(init=False)
    batches: BatchQueue = field(init=False)  # opened by `fit`

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""
        assert self.loader.samples  # known wherever the classes are
        return count_steps(self.run, self.loader.samples)

    def resume(self, progress: bool, tensorboard: bool) -> None:
        """Load the last checkpoint, if there is one, and open the log after its step."""
        self.checkpointer = Checkpointer(
            self.output / "checkpoints",
            self.run.checkpoint.keep,
            always=count_stable_steps(self.run, self.steps),
        )
        if path := self.checkpointer.find_latest():
            tensors = self.state.collect_tensors()
            facts = self.checkpointer.load(path, tensors)
            self.state.restore_tensors(tensors)
            self.loader.load_state_dict(facts["loader"])
            if facts["scaler"]:  # empty if the run did not use fp16 before
                self.state.scaler.load_state_dict(facts["scaler"])
            self.done, self.mean_loss = facts["step"], facts["mean_loss"]
            self.consecutive_skips, self.scores = facts["consecutive_skips"], facts["scores"]
            self.broken_images = facts["broken_images"]
        self.logger = MetricLogger(
            self.output,
            self.done,
            self.steps,
            progress=progress,
            tensorboard=tensorboard,
            silent=not self.dist.is_main,
        )

    def fit(self, stop_requested: threading.Event) -> None:
        """Take all remaining steps, and log, evaluate and save in their intervals.

        Raises:
            PreemptedError: `stop_requested` is set on some rank; a checkpoint has been written.
            TrainingError: see `step`.
        """
        run, steps = self.run, self.steps
        flops = self.state.count_flops() // self.dist.world_size  # of each rank
        throughput = Throughput(flops, self.dist.device, run.engine.precision)
        self.batches = BatchQueue(self.loader, self.dist.device, throughput)
        if self.done == steps and self.eval_loader:  # the model is published again
            self.scores = validate(self.state, self.eval_loader)
        while self.done < steps:
            result, stop = self.step(self.batches.take(), stop_requested)
            self.done += 1
            last = self.done == steps
            throughput.count(run.batch_size)
            self.logger.advance(loss=result.loss, lr=result.lr)
            self.checkpointer.poll()
            if last or self.done % run.log_every == 0:
                counts = {"broken_images": self.count_broken_images(), **throughput.read()}
                self.logger.record(self.done, "train", **result._asdict(), **counts)
            if stop and not last:
                # before an evaluation, which may take longer than a scheduler waits
                self.save_checkpoint(None, wait=True)
                raise PreemptedError(
                    f"{self.output}: interrupted by a signal after step {self.done} of {steps}; "
                    "rerun the same command to resume"
                )
            score = None
            if self.eval_loader and (last or self.done % (run.eval_every or steps) == 0):
                self.scores = validate(self.state, self.eval_loader)
                (score,) = self.scores.values()
                self.logger.record(self.done, "eval", **self.scores)
            due = self.done % run.checkpoint.every == 0 or self.done == self.checkpointer.always
            if last or score is not None or due:
                self.save_checkpoint(score, wait=last)
        self.logger.warn_of_broken(self.count_broken_images(), self.loader.skipped)
        if self.eval_loader:  # of the last evaluation
            (broken,) = self.dist.all_reduce_sum(sum(self.eval_loader.skipped.values()))
            self.logger.warn_of_broken(int(broken), self.eval_loader.skipped, "validation data: ")

    def step(self, batch: Batch, stop_requested: threading.Event) -> tuple[StepResult, bool]:
        """Take one optimizer step, or skip it if the loss is bad.

        Returns:
            The measurements, and whether some rank was asked to stop.

        Raises:
            TrainingError: the loss is bad and `on_nonfinite_loss` is "stop", or too many steps
                were skipped in a row.
        """
        run, state = self.run, self.state
        torch.manual_seed(hash_seed(run.seed, "step", self.done, self.dist.rank))
        cooldown = run.cooldown if run.schedule == "wsd" else None
        lr = schedule_lr(self.done, self.steps, run.lr, run.warmup, cooldown)
        set_lr(state.optimizer, lr)
        state.model.train()
        # batch statistics change in the forward pass, and a skipped step must not change them
        can_skip = run.on_nonfinite_loss == "skip"
        buffers = [buffer.clone() for buffer in state.model.buffers()] if can_skip else []
        local_loss, norm = state.compute_gradients(batch)
        if self.done + 1 < self.steps:
            self.batches.fetch()  # while the GPU computes the gradients

        # The loss is read in every step, so that all ranks decide alike before weights change. It
        # costs a GPU one wait per step, but no bad loss ever reaches the weights.
        total, stop = self.dist.all_reduce_sum(local_loss.item(), float(stop_requested.is_set()))
        result = StepResult(total / self.dist.world_size, norm.item(), lr)
        if self.is_bad(result):
            self.record_skip(batch, result)
            for buffer, before in zip(state.model.buffers(), buffers):
                buffer.copy_(before)
        else:
            self.consecutive_skips = 0
            mean, decay = self.mean_loss, MEAN_LOSS_DECAY
            first = not math.isfinite(mean)
            self.mean_loss = result.loss if first else decay * mean + (1 - decay) * result.loss
            copy_average = run.ema is not None and self.done < run.ema.warmup_ratio * self.steps
            state.update_weights(norm, copy_average=copy_average)
        state.end_step()
        return result, bool(stop)

    def is_bad(self, result: StepResult) -> bool:
        """Whether loss or gradients are not finite, or the loss exploded."""
        if not math.isfinite(result.loss):
            return True
        # infinite gradients are normal while fp16 looks for its scale; GradScaler skips those steps
        if not math.isfinite(result.grad_norm) and not self.state.scaler.is_enabled():
            return True
        factor = self.run.loss_spike_factor
        return factor is not None and result.loss > factor * self.mean_loss

    def record_skip(self, batch: Batch, result: StepResult) -> None:
        """Record a step with a bad loss; TrainingError if it stops the run."""
        self.consecutive_skips += 1
        ids = [name for names in self.dist.gather(batch.ids) for name in names]
        if self.run.on_nonfinite_loss == "stop" or self.consecutive_skips > MAX_CONSECUTIVE_SKIPS:
            self.checkpointer.finish()
            numbers = {"step": self.done, **result._asdict()}
            raise TrainingError(write_bad_loss(self.output, self.run, self.dist, ids, **numbers))
        self.logger.record(self.done + 1, "skip", loss=result.loss, ids=" ".join(ids))

    def count_broken_images(self) -> int:
        """Images that could not be read since the run began, on all ranks."""
        (count,) = self.dist.all_reduce_sum(self.batches.count_broken())
        return self.broken_images + int(count)

    def save_checkpoint(self, score: float | None, wait: bool) -> None:
        """Save a checkpoint, in the background unless `wait`; `score` is that of its weights."""
        facts = {
            "step": self.done,
            "loader": merge_states(self.dist.gather(self.batches.state_dict())),
            "scaler": self.state.scaler.state_dict(),
            "mean_loss": self.mean_loss,
            "consecutive_skips": self.consecutive_skips,
            "scores": self.scores,
            "broken_images": self.count_broken_images(),
        }
        tensors = self.state.collect_tensors()
        self.checkpointer.save(self.done, tensors, facts, score=score, wait=wait)

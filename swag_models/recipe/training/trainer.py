"""The training loop: pre-training, fine-tuning and linear classifiers, on one process or many, read from top to bottom.

Axes: N the samples of a rank's part of a batch, C classes, S pixels.

The folder of a run holds
  run.json      the run, its data and versions; a folder is for one run
  checkpoints/  the last ones and the best; a run that is started again goes on from the last
  log.jsonl     what was measured, a line every few steps; tensorboard/ and curves.png show the same
  bad_loss.json the step whose loss stopped the run, and the ids of its samples
  model/        the result, as `publish.save` writes it: load_model("runs/x/model")

Nothing random outlives a step, which begins with a seed of its own: weights, optimizer and the position in the data are all
that a checkpoint has to keep, and a run that was killed ends with the same weights, to the bit, as one that was not.
"""

from __future__ import annotations

import math
import os
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from swag_models.errors import PreemptedError, TrainingError
from swag_models.preprocess import Transform
from swag_models.publish.model_info import count_flops
from swag_models.recipe.config import Run
from swag_models.recipe.data.eval_loader import EvalLoader, open_eval_loader
from swag_models.recipe.data.shards import Shards
from swag_models.recipe.data.stream import hash_seed
from swag_models.recipe.data.train_loader import merge_states, open_train_loader
from swag_models.recipe.data.transforms import Augmentation
from swag_models.recipe.training.checkpointer import Checkpointer, collect, restore
from swag_models.recipe.training.distributed import (
    DistContext,
    average_statistics,
    collect_weights,
    hold_gradients,
    init_distributed,
    spread,
    sync_batch_norm,
)
from swag_models.recipe.training.estimate import count_steps
from swag_models.recipe.training.logging import MetricLogger
from swag_models.recipe.training.losses import compute_losses, count_hits, make_targets, mix
from swag_models.recipe.training.meter import DTYPES, Throughput
from swag_models.recipe.training.optimizer import Average, make_optimizer, schedule_lr, set_lr
from swag_models.recipe.training.run_dir import (
    PublishInfo,
    claim_folder,
    is_published,
    make_model,
    publish_model,
    read_classes,
    write_bad_loss,
)
from swag_models.recipe.worker_pool import watch_signals

MEMORY = 0.98  # of the running mean of the loss, per step
MAX_SKIPPED = 20  # steps in a row, after which a run that skips bad losses stops as well


def train(
    run: Run,
    data: Shards,
    output: str | os.PathLike[str],
    *,
    val: Shards | None = None,
    progress: bool = True,
    about: PublishInfo | None = None,
) -> Path:
    """Train, or go on training, and return the folder of the published model.

    data, val: to train on, and to evaluate on: see `open_train_loader`. Every rank of torchrun calls this alike.
    ConfigError if run, data and folder do not go together, TrainingError if the loss went bad, PreemptedError after SIGTERM or
    SIGUSR1, when a checkpoint has been written.
    """
    output, about = Path(output), about or PublishInfo()
    with (
        init_distributed() as ranks,
        claim_folder(output, ranks) as claim,
        watch_signals() as told,
        ExitStack() as stack,
    ):
        # The data.
        share = (
            run.batch_size // ranks.world_size
        )  # `open_train_loader` refuses what does not come out even
        size = min(run.engine.micro_batch or share, share)  # of what goes through the model at once
        feed = open_train_loader(
            data,
            Augmentation(run.augment, run.image_size),
            batch_size=run.batch_size,
            seed=run.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
            engine=run.engine,
        )
        stack.enter_context(closing(feed))
        classes = read_classes(feed, data)
        assert feed.samples  # known where the classes are
        facts_of_data = {
            **feed.facts,
            "classes": len(classes),
        }  # shards may have none of the last ones
        steps = count_steps(run, feed.samples)

        # The model, its average, and what moves them.
        torch.manual_seed(run.seed)
        model, spec = make_model(run, classes)
        transform = Transform(spec.preprocess)
        if run.engine.sync_bn:
            model = sync_batch_norm(model, ranks)
        if (
            run.engine.channels_last and run.engine.parallel != "fsdp"
        ):  # which shards contiguous weights only
            model.to(memory_format=torch.channels_last)
        model.to(ranks.device)
        model.set_grad_checkpointing(run.engine.grad_checkpointing)
        average = Average(model, run.ema, steps) if run.ema else None
        averaged = average.model if average else None
        trained = spread(model, run.engine, ranks, *([averaged] if averaged else []))
        forward = torch.compile(trained) if run.engine.compile else trained
        optimizer = make_optimizer(model, run.optimizer, run.lr)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        scaler = torch.amp.GradScaler(ranks.device.type, enabled=run.engine.precision == "fp16")
        autocast = torch.autocast(
            ranks.device.type, DTYPES[run.engine.precision], enabled=run.engine.precision != "fp32"
        )
        checker = None
        if val is not None:
            checker = open_eval_loader(
                val,
                transform.fit,
                batch_size=size,
                rank=ranks.rank,
                world_size=ranks.world_size,
                workers=run.engine.workers,
                classes=classes.names,
                synsets=classes.synsets,
            )

        # Where it stands: what was wrong so far claims no folder.
        claim(run, facts_of_data)
        if ranks.run_on_main(lambda: is_published(output)):
            return output / "model"
        checkpoints = Checkpointer(output / "checkpoints", run.checkpoint.keep)
        first, usual, skipped = (
            0,
            math.nan,
            0,
        )  # the step to begin with, the running mean of the loss, bad losses in a row
        scores: dict[str, float] = {}
        broken = 0  # pictures, before that step
        if latest := checkpoints.find_latest():
            tensors = collect(model, optimizer, averaged)
            facts = checkpoints.load(latest, tensors)
            restore(tensors, model, optimizer, averaged)
            feed.load_state_dict(facts["feed"])
            if facts["scaler"]:  # empty without fp16, which may have come since
                scaler.load_state_dict(facts["scaler"])
            first, usual, skipped, scores = (
                facts["step"],
                facts["usual"],
                facts["skipped"],
                facts["scores"],
            )
            broken = facts.get("broken_images", 0)  # older checkpoints have none
        journal = MetricLogger(output, first, steps, progress=progress, silent=not ranks.is_main)
        stack.enter_context(closing(journal))
        flops = count_flops(spec) * (1 if run.trainable == "head" else 3)
        meter = Throughput(flops / ranks.world_size, ranks.device, run.engine.precision)

        def count_broken() -> int:
            return broken + int(ranks.all_reduce_sum(sum(feed.skipped.values()))[0])

        def save(step: int, score: float | None, wait: bool = False) -> None:
            facts = {
                "step": step,
                "feed": merge_states(ranks.gather(feed.state_dict())),
                "scaler": scaler.state_dict(),
                "usual": usual,
                "skipped": skipped,
                "scores": scores,
                "broken_images": count_broken(),
            }
            tensors = collect(model, optimizer, averaged)
            checkpoints.save(step, tensors, facts, score=score, wait=wait)

        batches = iter(feed)
        for step in range(first, steps):
            with meter.wait():
                batch = next(batches)
            torch.manual_seed(hash_seed(run.seed, "step", step, ranks.rank))
            lr = schedule_lr(step, steps, run.lr, run.warmup)
            set_lr(optimizer, lr)

            # Gradients, of a part of the batch at a time.
            model.train()
            kept = (
                [buffer.clone() for buffer in model.buffers()]
                if run.on_nonfinite_loss == "skip"
                else []
            )
            loss = torch.zeros((), device=ranks.device)
            for start in range(0, share, size):
                part = slice(start, start + size)
                images = transform.normalise(batch.images[part].to(ranks.device))  # (N, 3, S, S)
                targets = make_targets(batch.classes[part], run.objective.kind, len(classes)).to(
                    ranks.device
                )
                images, targets = mix(images, targets, run.objective.mixup, torch.default_generator)
                if run.engine.channels_last:
                    images = images.contiguous(memory_format=torch.channels_last)
                with hold_gradients(trained, start + size < share):
                    with autocast:
                        logits = forward(images)  # (N, C)
                    mean = compute_losses(run.objective, logits, targets).sum() / share
                    scaler.scale(mean).backward()  # type: ignore[no-untyped-call]
                loss += mean.detach()
            scaler.unscale_(optimizer)
            norm = get_total_norm(
                [parameter.grad for parameter in parameters if parameter.grad is not None]
            )
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm

            # Whether to take the step: all ranks alike.
            total, stop = ranks.all_reduce_sum(loss.item(), float(told.is_set()))
            value = total / ranks.world_size
            finite = math.isfinite(value) and (scaler.is_enabled() or math.isfinite(norm.item()))
            if not finite or (run.loss_spike_factor and value > run.loss_spike_factor * usual):
                skipped += 1
                ids = [each for ids in ranks.gather(batch.ids) for each in ids]
                if run.on_nonfinite_loss == "stop" or skipped > MAX_SKIPPED:
                    checkpoints.finish()
                    raise TrainingError(
                        write_bad_loss(
                            output,
                            run,
                            ranks,
                            ids,
                            step=step,
                            loss=value,
                            lr=lr,
                            grad_norm=norm.item(),
                        )
                    )
                journal.record(step + 1, "skip", loss=value, ids=" ".join(ids))
                for buffer, before in zip(model.buffers(), kept):
                    buffer.copy_(before)
            else:
                skipped = 0
                usual = MEMORY * usual + (1 - MEMORY) * value if math.isfinite(usual) else value
                if run.optimizer.clip_norm:
                    clip_grads_with_norm_(parameters, run.optimizer.clip_norm, norm)
                scaler.step(optimizer)
                average_statistics(model, ranks)
                if average:
                    average.update(model, step)
            scaler.update()
            optimizer.zero_grad()

            # What is told and kept of it.
            meter.count(run.batch_size)
            journal.advance(loss=value, lr=lr)
            done = step + 1
            checkpoints.poll()
            if done % run.log_every == 0 or done == steps:
                counts = {"broken_images": count_broken(), **meter.read()}
                journal.record(done, "train", loss=value, lr=lr, grad_norm=norm.item(), **counts)
            if (
                stop and done < steps
            ):  # before an evaluation, which may take longer than there is time
                save(done, None, wait=True)
                raise PreemptedError(
                    f"{output}: stopped after step {done} of {steps}, as asked; run the same command to go on"
                )
            score = None  # of these weights
            if checker and (done == steps or (run.eval_every and done % run.eval_every == 0)):
                scores = evaluate(averaged or model, checker, transform, autocast, ranks)
                score = scores["top1"]
                journal.record(done, "eval", **scores)
            if done == steps:
                save(done, score, wait=True)
            elif done % run.checkpoint.every == 0 or score is not None:
                save(done, score)

        # The result.
        weights = collect_weights(averaged or model)
        ranks.run_on_main(
            lambda: publish_model(output, run, spec, classes, weights, facts_of_data, scores, about)
        )
        return output / "model"


@torch.no_grad()
def evaluate(
    model: nn.Module,
    check: EvalLoader,
    transform: Transform,
    autocast: torch.autocast,
    ranks: DistContext,
) -> dict[str, float]:
    """Top-1 accuracy in percent: the share of samples whose most probable class is one of theirs; each counts once."""
    model.eval()
    hits, count = 0, 0
    batches = iter(check)
    # All ranks take as many steps, since sharded weights are gathered in each: who has no more pictures shows an empty one.
    while any(ranks.all_reduce_sum((batch := next(batches, None)) is not None)):
        images = (
            batch.images
            if batch
            else torch.zeros(1, 3, *transform.preprocess.size, dtype=torch.uint8)
        )
        with autocast:
            logits: Tensor = model(transform.normalise(images.to(ranks.device)))  # (N, C)
        if batch:
            hits += count_hits(logits, batch.classes)
            count += len(batch.ids)
    total_hits, total = ranks.all_reduce_sum(hits, count)
    return {"top1": 100 * total_hits / total if total else math.nan}

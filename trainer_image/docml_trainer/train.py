"""Train one model, keep its best epoch, export it: `python -m docml_trainer train`, in a container over /opt/ml.

    SAGEMAKER_BASE_DIR=folder python -m docml_trainer train      # the same over a folder of one's own

Read from top to bottom: train, then a Training's life in the order in which it happens. A step of the optimizer trains on one global
batch of train_batch_size × gradient_accumulation_steps × processes documents, whichever way they are spread (`data.datasets`); its loss
is a mean over these documents (`optimization`). After every epoch the validation documents are scored, each once, and the best epoch's
weights are kept (`results`). Everything that the next step depends on is in a checkpoint (`checkpoint`), so that a training that is killed
and started again ends with the same weights. At last the best weights become TorchScript that is proved equal (`export`).
"""

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch.nn import functional

from docml_contract.log_lines import ProgressEvents
from docml_trainer.container import Folders, StopSignal, stop
from docml_trainer.data.classifier import explained_model
from docml_trainer.data.datasets import Rows, ahead, evaluation_batches, fetch, global_batches, micro_batches
from docml_trainer.data.shapes import LABELS
from docml_trainer.errors import TrainingError
from docml_trainer.inference.answers import predict_after_training
from docml_trainer.training import checkpoint, results
from docml_trainer.training.acceleration import forget_compilation
from docml_trainer.training.checkpoint import EpochRecord, TrainingProgress
from docml_trainer.training.processes import OptimizerStep
from docml_trainer.training.setup import TrainingSetup, prepare_training
from docml_trainer.training.tracking import Tracker


def train(folders: Folders) -> None:
    """One process' part of the training; the first process also reports, exports and writes the output."""
    started = time.monotonic()
    signal = StopSignal()
    training = Training(prepare_training(folders), signal)
    training.resume()
    tracker = training.start_tracking()
    training.run(tracker)
    training.processes.accelerator.end_training()
    if training.processes.is_main:
        assert training.progress.best is not None
        tracker.finish(results.kept_metrics(training.progress.best))
        seconds = time.monotonic() - started
        results.write_results(
            training.setup,
            training.progress,
            training.best_model(),
            seconds=seconds,
            tracker=tracker,
            then=lambda: predict_after_training(folders, training.setup.checkpoints.folder / "inference-phase"),
        )


LATE_ON_GPU = 2  # optimizer steps that a GPU may be ahead of the numbers that are read


class Training:
    """A training's life, over the parts it is made of (`setup`)."""

    def __init__(self, setup: TrainingSetup, signal: StopSignal) -> None:
        self.setup, self.processes, self.settings = setup, setup.processes, setup.settings
        self.signal = signal
        self.parameters = tuple(setup.bare.module.parameters())
        self.progress = TrainingProgress()
        self.counted = time.monotonic()  # until when the time is in progress.seconds
        self.taken: deque[OptimizerStep] = deque()  # steps whose numbers are not read yet

    def resume(self) -> None:
        """Continue where the newest checkpoint that every process has whole leaves off, if there is one."""
        name = checkpoint.newest_common(self.setup.checkpoints.names(), lambda mine: gather_object([mine]))
        if name is None:
            self.processes.say(
                f"Training {self.setup.context.model_name} on {len(self.setup.train)} documents, "
                f"{self.setup.steps_per_epoch} steps of {self.setup.global_batch} documents an epoch, "
                f"{self.settings.epochs} epochs, {self.processes.count} process(es) on {self.processes.device.type}"
            )
            return
        saved = self.setup.checkpoints.open(name)
        saved.load_model(self.setup.bare.module)
        state = saved.load_state()
        self.setup.optimizer.load_state_dict(state["optimizer"])
        self.setup.scheduler.load_state_dict(state["scheduler"])
        if self.processes.accelerator.scaler is not None and state["scaler"] is not None:
            self.processes.accelerator.scaler.load_state_dict(state["scaler"])
        checkpoint.restore_random_states(state["random"][self.processes.index])
        self.progress = TrainingProgress(**saved.progress)
        self.processes.say(f"Resumed from {name}: epoch {self.progress.epoch + 1}, step {self.progress.step}")

    def start_tracking(self) -> Tracker:
        """Of the first process only. A trial of a tuning reports under a name of its own."""
        if not self.processes.is_main:
            return Tracker()
        request, run_id = self.setup.request, self.setup.identity[:16]
        tracking = request.task.tracking
        if request.is_trial:
            tracking = tracking.model_copy(update={"job_type": "tuning", "name": f"{tracking.name}-{run_id[:6]}"})
        tracker = Tracker.start(tracking, request.folders.base / "tracking", run_id=run_id, config=request.values)
        if tracking.mode == "offline":
            for record in self.progress.records:  # of earlier attempts, whose files went with them
                tracker.log(record)
        return tracker

    def run(self, tracker: Tracker) -> None:
        """Epochs until the last one, or until validation has not improved for too long."""
        with self.signal.deferred():
            while not self.is_done:
                speed = self.train_epoch()
                self.finish_epoch(speed, tracker)

    @property
    def is_done(self) -> bool:
        """Whether the last epoch is behind, or validation has not improved for too long."""
        patience = self.settings.early_stopping_patience
        stopped_early = patience is not None and self.progress.epochs_without_better >= patience
        return self.progress.epoch >= self.settings.epochs or stopped_early

    @property
    def learning_rate(self) -> float:
        """Of the first parameter group, now."""
        return float(self.setup.scheduler.get_last_lr()[0])

    def train_epoch(self) -> dict[str, float]:
        """The rest of an epoch's optimizer steps. Returns its speed."""
        progress, every = self.progress, self.settings.checkpoint_every_steps
        epoch = progress.epoch + 1
        steps = global_batches(self.setup.train.lengths, self.setup.global_batch, self.settings.seed, epoch)
        lines = results.EpochLines(epoch, self.settings.epochs, len(steps))
        batches = self.batches_of(steps[progress.step :])
        self.setup.classifier.module.train()
        while progress.step < len(steps):
            self.taken.append(self.optimizer_step(steps[progress.step], batches))
            progress.step += 1
            progress.total_steps += 1
            is_last = progress.step == len(steps)
            is_due = every is not None and progress.total_steps % every == 0 and not is_last
            stopping = self.read_findings(lines, is_last or is_due)
            if stopping:
                self.read_findings(lines, everything=True)
                self.save()
                stop(f"after a checkpoint at epoch {epoch}, step {progress.step}")
            if is_due:
                self.save()
        return lines.speed()

    def read_findings(self, lines: results.EpochLines, everything: bool) -> bool:
        """Check and record the steps that were taken: on a GPU all but the last few. Returns whether anyone was asked to stop."""
        on_gpu, alone = self.processes.device.type == "cuda", self.processes.count == 1
        stopping = alone and self.signal.requested
        late = 0 if everything or stopping or not on_gpu else LATE_ON_GPU
        while len(self.taken) > late:
            step = self.taken.popleft()
            loss, flag, norm = step.findings.read()
            self.check(step, loss, norm)
            self.progress.step_losses.append(loss)
            self.progress.step_documents.append(len(step.rows))
            if self.processes.is_main:
                tokens = int(self.setup.train.lengths[step.rows].sum())
                lines.step(step.number, loss, step.learning_rate, len(step.rows), tokens)
            stopping = stopping or flag > 0
        return stopping

    def micro_batches(self, rows: Rows) -> list[Rows]:
        """This process' micro-batches of a global batch."""
        shares = micro_batches(rows, self.setup.micro_batch, self.processes.count)
        return shares[self.processes.index]

    def batches_of(self, steps: list[Rows]) -> Iterator[dict[str, torch.Tensor]]:
        """This process' micro-batches of `steps`, one after the other, collated ahead of use."""
        mine = [part if len(part) else rows[:2] for rows in steps for part in self.micro_batches(rows)]
        return ahead(lambda part: self.batch_of(self.setup.train.data, part), mine)

    def batch_of(self, data: datasets.Dataset, part: Rows) -> dict[str, torch.Tensor]:
        """Documents collated, with the plan of their packing, in memory that a GPU reads on its own."""
        batch = self.setup.collate(fetch(data, part))
        if self.setup.packing is not None:
            batch = self.setup.packing.plan(batch, training=data is self.setup.train.data)
        return self.processes.pinned(batch)

    def on_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch where the model is, for its next forward()."""
        batch = self.processes.to_device(batch)
        return batch if self.setup.packing is None else self.setup.packing.take(batch)

    def optimizer_step(self, rows: Rows, batches: Iterator[dict[str, torch.Tensor]]) -> OptimizerStep:
        """Train on the documents `rows`, all processes together. No number is read: a GPU is given work without waiting for it."""
        parts = self.micro_batches(rows)
        weight, processes = self.setup.loss.weight_of(rows), self.processes.count
        total = torch.zeros((), dtype=torch.float64, device=self.processes.device)
        for number, part in enumerate(parts, start=1):
            batch = self.on_device(next(batches))
            # Gradients are exchanged once a step, with the last micro-batch.
            last = number == len(parts)
            local = nullcontext() if last else self.processes.accelerator.no_sync(self.setup.classifier.module)
            with local, explained_model(self.setup.functions, self.place()):
                output = self.setup.classifier(batch, with_labels=self.setup.loss.takes_models)
                loss = self.setup.loss(output, batch[LABELS]) / weight
                if not len(part):
                    loss = loss * 0  # fewer documents than processes: takes part, counts nothing
                self.processes.accelerator.backward(loss * processes)  # processes' gradients are averaged, not summed
            total += loss.detach()
        norm = self.update(self.settings.max_grad_norm)
        return OptimizerStep(
            place=self.place(),
            number=self.progress.step + 1,
            rows=rows,
            learning_rate=self.learning_rate,
            was_skipped=self.processes.accelerator.optimizer_step_was_skipped,
            findings=self.processes.findings(total, norm, self.signal.requested),
        )

    def update(self, max_norm: float) -> torch.Tensor:
        """One step of the optimizer and of the schedule, with gradients clipped to a global norm (0: not clipped). Returns what it was."""
        norm: torch.Tensor = self.processes.accelerator.clip_grad_norm_(self.parameters, max_norm or math.inf)
        self.setup.optimizer.step()
        self.setup.optimizer.zero_grad()
        if not self.processes.accelerator.optimizer_step_was_skipped:
            self.setup.scheduler.step()
        return norm

    def check(self, step: OptimizerStep, loss: float, norm: float) -> None:
        """Raise TrainingError where a step's loss or gradient is not a number: nothing that follows would mean anything."""
        if not math.isfinite(loss):
            raise TrainingError(
                f"the training loss became {loss} in {step.place} (lower learning_rate, raise warmup_ratio, or look for "
                "infinite or missing numbers in the encoded features)"
            )
        if step.was_skipped:
            return
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient exploded: its norm became {norm} in {step.place} "
                "(lower learning_rate or max_grad_norm, raise warmup_ratio)"
            )
        self.progress.gradient_norm = max(self.progress.gradient_norm, norm)

    def place(self) -> str:
        """Where the training is, for messages."""
        return f"epoch {self.progress.epoch + 1}, step {self.progress.step + 1}"

    def finish_epoch(self, speed: dict[str, float], tracker: Tracker) -> None:
        """Validate, record, keep the best, checkpoint."""
        progress = self.progress
        record: EpochRecord = {
            "epoch": progress.epoch + 1,
            "train_loss": float(np.average(progress.step_losses, weights=progress.step_documents)),
            **self.validate(),
            "learning_rate": self.learning_rate,
            "gradient_norm": progress.gradient_norm,
            "step_losses": progress.step_losses,
            **speed,
        }
        better = results.is_better(record, progress.best)
        if better:
            kept = (
                self.setup.checkpoints.save_best(record["epoch"], self.setup.bare.module)
                if self.processes.is_main
                else {}
            )
            progress.best = {**record, **kept}
            progress.best.pop("step_losses")
        progress.records.append(record)
        progress.epochs_without_better = 0 if better else progress.epochs_without_better + 1
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.step_losses, progress.step_documents, progress.gradient_norm = [], [], 0.0
        if self.processes.is_main:
            assert progress.best is not None
            results.report_epoch(record, progress.best, self.settings.epochs)
            tracker.log(record)
        self.save()

    def validate(self) -> dict[str, float]:
        """Cross-entropy, accuracy and macro-F1 over the validation documents, each counted once by its row id."""
        self.setup.bare.module.eval()
        shares = evaluation_batches(self.setup.valid.lengths, self.settings.eval_batch_size, self.processes.count)
        mine = shares[self.processes.index]
        batches = ahead(lambda part: self.batch_of(self.setup.valid.data, part), [p for p in mine if len(p)])
        found: list[results.Scored] = []
        documents, what = len(self.setup.valid), f"validation of epoch {self.progress.epoch + 1}"
        events = ProgressEvents(what, documents, "documents", seconds_between=results.SECONDS_BETWEEN_LINES)
        for part in mine:
            if len(part):
                with explained_model(self.setup.functions, f"the validation of epoch {self.progress.epoch + 1}"):
                    found += self.score(self.on_device(next(batches)))
                if self.processes.is_main and events.is_due():
                    events.print(min(documents, len(found) * self.processes.count))
            if self.processes.sum(torch.zeros((), dtype=torch.float64), self.signal.requested)[1]:
                self.save()
                stop(f"after a checkpoint at the end of epoch {self.progress.epoch + 1}, during its validation")
        everything = gather_object(found)
        metrics: dict[str, float] = {}
        if self.processes.is_main:
            metrics = results.validation_metrics(everything, len(self.setup.valid), self.progress.epoch + 1)
        result = [metrics]
        broadcast_object_list(result)
        return result[0]

    def score(self, batch: dict[str, torch.Tensor]) -> list[results.Scored]:
        """The documents of a batch."""
        logits = self.setup.bare.logits(batch).double()
        losses = functional.cross_entropy(logits, batch[LABELS], reduction="none")
        columns = (batch["row_ids"], logits.argmax(dim=1), batch[LABELS], losses)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def save(self) -> None:
        """A checkpoint at a boundary between optimizer steps; the first process writes it."""
        now = time.monotonic()
        self.progress.seconds, self.counted = self.progress.seconds + now - self.counted, now
        random_states = gather_object([checkpoint.random_states()])
        if self.processes.is_main:
            scaler = self.processes.accelerator.scaler
            state = {
                "optimizer": self.setup.optimizer.state_dict(),
                "scheduler": self.setup.scheduler.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
                "random": random_states,
            }
            self.setup.checkpoints.save(self.progress.total_steps, self.setup.bare.module, state, asdict(self.progress))
        self.processes.accelerator.wait_for_everyone()

    def best_model(self) -> torch.nn.Module:
        """The bare model on the CPU as load_model made it, with the best epoch's weights, in evaluation mode."""
        model: torch.nn.Module = self.processes.accelerator.unwrap_model(
            self.setup.classifier.module, keep_fp32_wrapper=False
        )
        assert self.progress.best is not None
        forget_compilation(model)
        if self.setup.packing is not None:
            self.setup.packing.remove()
        model = model.cpu()
        self.setup.checkpoints.load_best(self.progress.best, model)
        return model.eval()

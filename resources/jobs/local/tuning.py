"""A search for hyperparameters on this machine, inside the supervisor: Optuna proposes, every trial is containers of its own.

What a killed search needs to go on lies in the store, below the checkpoints of the work:

    study/journal.log      Optuna's journal: trials with their values, objectives and states
    study/best/            files of the best trial so far
    study/wandb/           the tracking of all trials that was not sent; of the others nothing else is kept
    trial-<n>/             checkpoints of a trial that runs
"""

import re
import shutil
import time
from pathlib import Path
from typing import Any

import optuna

from docml_contract.hyperparameters import TUNING_OBJECTIVE, Choice, Interval, SearchRange
from docml_contract.jobs import Tuning
from docml_contract.names import OFFLINE_RUNS
from resources.jobs.local.container import WANDB_KEY, Container, host_names, signs_of_life, trainer_environment
from resources.jobs.local.fork_server import ForkServer
from resources.jobs.local.mirror import Mirror
from resources.jobs.local.state import JobEnd, LocalJob, Stillness, failed
from resources.jobs.trials import Trial, add_trials, best_trial, metric_definitions, number_of_trials

TICK_SECONDS = 0.1
STUDY = "search"  # its name in the journal
REASON, SECONDS, END = "reason", "seconds", "end"  # what is kept of a trial besides its objective
KILLED = "killed"  # by what, of a trial that has begun again


class RunningTrial:
    """One trial's containers and checkpoints."""

    def __init__(self, search: "Search", number: int, values: dict[str, Any]) -> None:
        local = search.local
        spec = local.job.spec
        hosts = host_names(spec)
        self.number = number
        self.values = values
        self.begun = time.monotonic()
        self.stillness = Stillness()
        self.base = local.base / f"trial-{number}"
        self.containers = []
        for index in range(len(hosts)):
            suffix = f"-{index + 1}" if index else ""
            log = local.logs / f"trial-{number:03d}{suffix}.log"
            self.containers.append(Container(local.job, self.base / f"host-{index + 1}", log, hosts, index))
        constants = {name: value for name, value in spec.hyperparameters.items() if name not in values}
        for container in self.containers:
            container.lay_out(local.store, {**constants, **values, TUNING_OBJECTIVE: search.tuning.objective_metric})
        self.prefix = f"{local.job.checkpoints}/trial-{number}"
        self.mirror = Mirror(local.store, self.containers[0].checkpoints, self.prefix)
        self.mirror.restore()
        for container in self.containers:
            container.start(local.command, local.environment, search.server)

    def go(self) -> None:
        """Run its containers."""
        for container in self.containers:
            container.go()
        self.mirror.start()

    @property
    def seconds(self) -> float:
        """Since the trial began."""
        return time.monotonic() - self.begun

    def is_due_for_a_look(self) -> bool:
        """Whether its signs of life were looked at just now."""
        return self.stillness.look(lambda: signs_of_life(self.containers))

    @property
    def over(self) -> bool:
        """Ended, or failed on one host, which ends the others."""
        codes = [container.exit_code for container in self.containers]
        return None not in codes or any(codes)

    def finish(self) -> None:
        """End all its processes and keep its checkpoints."""
        for container in self.containers:
            container.kill()
        self.mirror.stop()

    @property
    def was_killed(self) -> bool:
        """Ended by a signal: the machine's doing, or memory that it had not."""
        ended = [container for container in self.containers if container.exit_code]
        return bool(ended) and all(container.was_killed for container in ended)

    def objective(self, regex: str) -> float | None:
        """The latest value in the log, which is what SageMaker's tuner ranks by."""
        log = self.containers[0].log
        found = re.findall(regex, log.read_text(encoding="utf-8", errors="replace")) if log.exists() else []
        return float(found[-1]) if found else None


class Search:
    """The search of one tuning job."""

    def __init__(self, local: LocalJob) -> None:
        tuning = local.job.spec.tuning
        assert tuning is not None
        self.local = local
        self.tuning: Tuning = tuning
        self.folder = local.base / "study"
        self.mirror = Mirror(local.store, self.folder, f"{local.job.checkpoints}/study")
        self.total = number_of_trials(tuning)
        self.regex = metric_definitions(local.job.spec)[tuning.objective_metric]
        self.running: list[RunningTrial] = []
        self.server: ForkServer | None = None

    def run(self) -> None:
        """Until all trials have ended; then the best one's files are the job's output."""
        self._open()
        try:
            self._work()
        finally:
            for trial in self.running:
                trial.finish()
            if self.server is not None:
                self.server.close()
            self.mirror.sync()
        trials = self.trials()
        if best_trial(trials, self.tuning) is None:
            reasons = "; ".join(f"trial {trial.number}: {trial.reason}" for trial in trials[:3])
            raise failed("work", f"all {len(trials)} trials failed: {reasons}")
        local = self.local
        local.upload(self.folder / "best")
        tracked = [path for path in sorted(self.folder.glob(f"{OFFLINE_RUNS}/**/*")) if path.is_file()]
        others = {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in tracked}
        add_trials(local.store, local.job.output_prefix, self.tuning, trials, others)

    def _open(self) -> None:
        """The study, with what an earlier attempt left of it; trials that had been running start again."""
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.mirror.restore()
        self.storage = JournalStorage(JournalFileBackend(str(self.folder / "journal.log")))
        self.study = optuna.create_study(
            study_name=STUDY,
            storage=self.storage,
            sampler=_sampler(self.tuning, 0),
            direction="maximize" if self.tuning.objective_type == "Maximize" else "minimize",
            load_if_exists=True,
        )
        known = self.study.get_trials(deepcopy=False)
        self.study.sampler = _sampler(self.tuning, len(known))
        if known:
            self.local.enter(f"Resuming a search of which {len(known)} trials had begun")
        self.interrupted = [trial for trial in known if trial.state == optuna.trial.TrialState.RUNNING]

    def _work(self) -> None:
        stop: JobEnd | None = None
        while True:
            stop = stop or self.local.asked_to_stop()
            if stop is None:
                self._fill()
            for trial in self.running:
                if stop is not None or trial.seconds > self.local.job.spec.compute.max_runtime_seconds:
                    for container in trial.containers:
                        container.ask_to_stop()
                        container.enforce()
                elif trial.is_due_for_a_look():
                    self._look_after(trial)
            for trial in [trial for trial in self.running if trial.over]:
                self.running.remove(trial)
                trial.finish()
                if stop is None:
                    self._settle(trial)
            if not self.running and (stop is not None or not self._left()):
                break
            time.sleep(TICK_SECONDS)
        if stop is not None:
            raise stop

    def _look_after(self, trial: RunningTrial) -> None:
        """JobEnd for a trial in which nothing moves any more: the next attempt goes on with the search."""
        for sentence in trial.stillness.tell():
            self.local.enter(f"Trial {trial.number}: {sentence}")
        if trial.stillness.is_stalled:
            raise failed("lost", f"trial {trial.number} stalled: {trial.stillness}")
        for container in trial.containers:
            container.end_leftovers()

    def _begun(self) -> int:
        return len(self.study.get_trials(deepcopy=False))

    def _fill(self) -> None:
        """Start trials while there is room: interrupted ones first. What they are forked from may not be ready yet."""
        while len(self.running) < self.tuning.max_parallel_jobs and not self._waits_for_server():
            if self.interrupted:
                frozen = self.interrupted.pop(0)
                number, values = frozen.number, dict(frozen.params)
            elif self._begun() < self.total:
                trial = self.study.ask({name: _distribution(r) for name, r in sorted(self.tuning.ranges.items())})
                number, values = trial.number, dict(trial.params)
                self.mirror.sync()
            else:
                return
            shown = ", ".join(f"{name} = {_shown(value)}" for name, value in sorted(values.items()))
            self.local.enter(f"Trial {number + 1} of {self.total}: {shown}")
            self.running.append(RunningTrial(self, number + 1, values))
            self.local.note_containers([c.pid for trial in self.running for c in trial.containers])
            self.running[-1].go()

    def _waits_for_server(self) -> bool:
        """Whether the next trial has to wait for the process that it is to be a fork of, which is started for a search of several."""
        if self.server is None and self._left() > 1 and ForkServer.is_wanted(self.local.environment):
            base = self.local.base / "libraries"
            environment = {name: value for name, value in self.local.environment.items() if name != WANDB_KEY}
            variables = trainer_environment(environment, self.local.job.spec, base)
            self.server = ForkServer(self.local.command, variables, base)
        if self.server is None:
            return False
        waits = self.server.is_starting
        for sentence in self.server.tell():
            self.local.enter(sentence)
        return waits

    def _left(self) -> int:
        return self.total - self._begun() + len(self.interrupted)

    def _settle(self, trial: RunningTrial) -> None:
        """Tell the study how a trial ended; keep its files if it is the best so far."""
        number = trial.number - 1
        container = trial.containers[0]
        failed = next((c for c in trial.containers if c.exit_code), None) or (None if container.complete else container)
        objective = trial.objective(self.regex)
        storage, study = self.storage, self.storage.get_study_id_from_name(STUDY)
        identity = storage.get_trial_id_from_study_id_trial_number(study, number)
        storage.set_trial_user_attr(identity, SECONDS, round(trial.seconds, 1))
        limit = self.local.job.spec.compute.max_runtime_seconds
        stopped = trial.seconds > limit
        if (
            failed is not None
            and trial.was_killed
            and not stopped
            and self._begin_again(trial, identity, failed.reason())
        ):
            return
        if failed is None and objective is not None and not stopped:
            if (container.output / OFFLINE_RUNS).is_dir():
                shutil.copytree(
                    container.output / OFFLINE_RUNS, self.folder / OFFLINE_RUNS, dirs_exist_ok=True, ignore=_links
                )
            if self._is_best(objective):
                self._keep(container.output)
            self.study.tell(number, objective)
            said = f"{self.tuning.objective_metric} = {_shown(objective)}"
        else:
            reason = f"stopped after {limit} s, the longest it may run" if stopped else ""
            reason = reason or (failed.reason() if failed else f"it printed no {self.tuning.objective_metric}")
            storage.set_trial_user_attr(identity, REASON, reason)
            storage.set_trial_user_attr(identity, END, "Stopped" if stopped else "Failed")
            self.study.tell(number, state=optuna.trial.TrialState.FAIL)
            said = f"failed: {reason.splitlines()[0]}"
        self.mirror.sync()
        self.local.enter(f"Trial {trial.number} of {self.total} ended: {said}")
        shutil.rmtree(trial.base, ignore_errors=True)
        store = self.local.store
        store.delete([stored.key for stored in store.list(trial.prefix)])

    def _begin_again(self, trial: RunningTrial, identity: int, reason: str) -> bool:
        """Once, from its checkpoints, for a trial that was killed: what a search finds is not to depend on it. Whoever takes too much memory
        is killed again, and has failed."""
        frozen = self.storage.get_trial(identity)
        if KILLED in frozen.user_attrs:
            return False
        self.storage.set_trial_user_attr(identity, KILLED, reason)
        self.interrupted.append(frozen)
        self.mirror.sync()
        self.local.enter(f"Trial {trial.number} of {self.total}: {reason}; it begins again where its checkpoints end")
        shutil.rmtree(trial.base, ignore_errors=True)
        return True

    def _is_best(self, objective: float) -> bool:
        best = best_trial(self.trials(), self.tuning)
        if best is None or best.objective is None:
            return True
        return objective > best.objective if self.tuning.objective_type == "Maximize" else objective < best.objective

    def _keep(self, output: Path) -> None:
        best = self.folder / "best"
        shutil.rmtree(best, ignore_errors=True)
        shutil.copytree(output, best, symlinks=True)  # which no store takes
        self.mirror.sync()  # before the study is told: a kill in between repeats the trial

    def trials(self) -> list[Trial]:
        """The trials so far."""
        states = {"COMPLETE": "Completed", "RUNNING": "InProgress", "WAITING": "InProgress", "FAIL": "Failed"}
        return [
            Trial(
                number=frozen.number + 1,
                job=f"trial-{frozen.number + 1:03d}",
                values=frozen.params,
                objective=frozen.value if frozen.state.name == "COMPLETE" else None,
                seconds=frozen.user_attrs.get(SECONDS),
                status=frozen.user_attrs.get(END) or states[frozen.state.name],
                reason=frozen.user_attrs.get(REASON, ""),
            )
            for frozen in self.study.get_trials(deepcopy=False)
        ]


def tune(local: LocalJob) -> None:
    """Run the search of a tuning job. JobEnd where it ends without success."""
    Search(local).run()


class Grid(optuna.samplers.GridSampler):
    """Every point once. Optuna's own stops `Study.optimize` after the last one, which raises here: `Search` counts its trials itself."""

    def after_trial(self, *arguments: Any) -> None:
        """Nothing is left to do."""


def _sampler(tuning: Tuning, begun: int) -> Any:
    """Proposes values. A resumed search draws on, not the same again."""
    seed = tuning.seed + begun
    if tuning.strategy == "Grid":
        values = {name: list(r.values) for name, r in tuning.ranges.items() if isinstance(r, Choice)}
        return Grid(values, seed=tuning.seed)
    if tuning.strategy == "Random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(
        seed=seed, constant_liar=True, n_startup_trials=max(3, min(10, tuning.max_jobs // 3))
    )


def _distribution(searched: SearchRange) -> Any:
    if isinstance(searched, Choice):
        return optuna.distributions.CategoricalDistribution(searched.values)
    assert isinstance(searched, Interval)
    if searched.integer:
        return optuna.distributions.IntDistribution(int(searched.low), int(searched.high), log=searched.log)
    return optuna.distributions.FloatDistribution(searched.low, searched.high, log=searched.log)


def _links(folder: str, names: list[str]) -> list[str]:
    """Those of the names that are symbolic links: what they lead to is not the trial's."""
    return [name for name in names if Path(folder, name).is_symlink()]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

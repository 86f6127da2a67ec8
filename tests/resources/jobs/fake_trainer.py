"""Stands in for `python -m docml_trainer`: real files, signals and exit codes, no learning.

What it does is told by the spec: `own_hyperparameters` of a preparation, `hyperparameters` of a training.

    steps     ticks of 0.05 s; a checkpoint is written at each and taken up by the next attempt (default 3)
    fail      the reason to fail with
    die       "once" or "always": SIGKILL to itself after the first tick
    deaf      ignores SIGTERM
    print     a line to print
    daemon    leaves a process of another session behind, whose number it prints
    linger    leaves a thread behind that never ends
    sparse    adds a file of 1 TiB to its output that holds nothing
    exits     name of the experimenter's function (or empty) that ends the process, exit code 0
    untrue    takes a byte from a file after it has handed over its output
    link      name of a symbolic link to leave in the output
    tracked   whether to leave an offline tracking run in the output
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from docml_contract import hyperparameters as encoding
from docml_contract.jobs import JobSpec, PrepareTask
from docml_contract.log_lines import EPOCH, format_event, metric_line, take_nonce
from docml_contract.manifests import write_atomically, write_output
from docml_contract.names import OFFLINE_RUNS, RUNNING_FUNCTION, SPEC

command = sys.argv[1]
base = Path(os.environ["SAGEMAKER_BASE_DIR"])
training = command == "train"
channels = base / ("input/data" if training else "processing/input")
output = base / ("model" if training else "processing/output/result")
checkpoint = base / ("checkpoints" if training else "processing/checkpoints") / "state.json"
left = [
    checkpoint,
    channels / "checkpoints" / "state.json",
]  # SageMaker gives a processing job a channel of what is left
spec = JobSpec.from_bytes((channels / "spec" / SPEC).read_bytes(), SPEC)
if training:
    given = json.loads((base / "input/config/hyperparameters.json").read_text())
    options = encoding.decode_tuned(given, spec.tuning.ranges if spec.tuning else {})
else:
    options = spec.task.own_hyperparameters if isinstance(spec.task, PrepareTask) else {}
resources = json.loads((base / ("input/config" if training else "config") / "resourceconfig.json").read_text())
host = resources["hosts"].index(resources["current_host"])

state = next((json.loads(path.read_text()) for path in left if path.exists()), {"step": 0, "starts": 0})
state["starts"] += 1


def save() -> None:
    write_atomically(checkpoint, json.dumps(state).encode())


def terminated(*_: object) -> None:
    state["terminated"] = True
    save()
    print("checkpoint written on SIGTERM", flush=True)
    sys.exit(143)


take_nonce(os.environ)
signal.signal(signal.SIGTERM, signal.SIG_IGN if options.get("deaf") else terminated)
print(f"{command} starts at step {state['step']} on host {host}", flush=True)
if "print" in options:
    print(options["print"], flush=True)
if options.get("daemon"):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True, env={})
    print(f"daemon {child.pid}", flush=True)
    child.returncode = 0  # left behind on purpose
for name in sorted(os.environ):
    if "CANARY" in os.environ[name]:
        print(f"found a secret: {name}={os.environ[name]}", flush=True)
save()
if options.get("fail"):
    reason = base / "output" / ("failure" if training else "message")
    reason.parent.mkdir(parents=True, exist_ok=True)
    reason.write_text(options["fail"])
    (base / "output/failure").write_text(options["fail"])
    print(options["fail"], flush=True)
    sys.exit(1)
if "exits" in options:
    if options["exits"]:
        write_atomically(base / "output" / RUNNING_FUNCTION, options["exits"].encode())
    os._exit(0)
while state["step"] < options.get("steps", 3):
    time.sleep(0.05)
    state["step"] += 1
    save()
    if not training:
        print(f"part {state['step']} ends", flush=True)
    else:
        rate = float(options.get("learning_rate", 0.5))
        score = 1 - abs(rate - 0.3)
        print(f"epoch {state['step']} ends", flush=True)
        print(metric_line({"valid_f1": score, "valid_f1_epoch": score}), flush=True)
        print(format_event(EPOCH, epoch=state["step"], valid_f1=score), flush=True)
    if options.get("die") == "always" or (options.get("die") == "once" and state["starts"] == 1):
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
inputs = {
    path.relative_to(channels).as_posix(): path.read_text(errors="replace")
    for path in sorted(channels.rglob("*"))
    if path.is_file() and path.relative_to(channels).parts[0] not in ("spec", "checkpoints")
}
if host == 0 or not training:
    output.mkdir(parents=True, exist_ok=True)
    (output / f"result-{host}.json").write_text(json.dumps({"inputs": inputs, "options": options}, sort_keys=True))
    if "tracked" in options:
        run = output / OFFLINE_RUNS / f"offline-run-{options['learning_rate']}"
        run.mkdir(parents=True)
        (run / "run.wandb").write_text(str(options["learning_rate"]))
    if "link" in options:
        (output / options["link"]).symlink_to("/etc/hostname")
    if host == 0:
        write_output(
            output, command, f"version-of-{options.get('learning_rate', 'nothing')}", {"starts": state["starts"]}
        )
if options.get("sparse"):
    with (output / "hollow").open("wb") as hollow:
        hollow.truncate(1 << 40)
if options.get("untrue"):
    os.truncate(output / f"result-{host}.json", 1)
if options.get("linger"):
    threading.Thread(target=time.sleep, args=(3600,)).start()

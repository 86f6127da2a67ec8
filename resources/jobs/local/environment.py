"""The environment of a local job: what a program needs to run, and nothing of the orchestrator's credentials."""

from collections.abc import Mapping
from pathlib import Path

from docml_contract.jobs import JobSpec, TrainTask
from resources.secrets import resolve

ALLOWED = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TMP", "TEMP", "VIRTUAL_ENV"),
        *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
        *("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
        *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
        *("TRANSFORMERS_OFFLINE", "TORCH_HOME", "WANDB_BASE_URL", "DOCML_ENCODE_TIMEOUT_SECONDS"),
    }
)
ALLOWED_PREFIXES = ("LC_", "NVIDIA_", "NCCL_")
WANDB_KEY = "WANDB_API_KEY"


def trainer_environment(environment: Mapping[str, str], spec: JobSpec, base: Path) -> dict[str, str]:
    """The job's environment. The tracker's key is in it only where the job reports online, resolved if it is a reference."""
    kept = {key: value for key, value in environment.items() if key in ALLOWED or key.startswith(ALLOWED_PREFIXES)}
    kept |= {"SAGEMAKER_BASE_DIR": str(base), "PYTHONUNBUFFERED": "1"}
    if isinstance(spec.task, TrainTask) and spec.task.tracking.mode == "online" and environment.get(WANDB_KEY):
        kept[WANDB_KEY] = resolve(environment[WANDB_KEY], environment)
    return kept

"""`docml new`: a folder that validates and runs as it is on the bundled sample.

`hashed_words/` is a model from scratch that needs no download, `transformer/` fine-tunes a pretrained one. `@NAME@` in the
templates stands for what is filled in.
"""

import json
import re
from pathlib import Path
from typing import Any

from docml_assets.errors import ExperimentError
from docml_contract.base import BadName
from docml_contract.names import USER_FUNCTIONS, check_experiment_name, check_model_name

TEMPLATES = Path(__file__).resolve().parent
DEFAULT_MODEL = "averaged-words"
MAX_LENGTH = 512
# Families whose tokenizers pad with 1; the others pad with 0, as BERT does.
_PADS_WITH_ONE = re.compile(r"roberta|longformer|camembert|bart|bigbird-roberta|mpnet", re.IGNORECASE)
_PLACE = re.compile("@([A-Z_]+)@")


def new_experiment(folder: Path, model: str | None) -> list[Path]:
    """Write an experiment's folder and return its files.

    model: a Hugging Face name or a folder with a pretrained model; none: a small model from scratch. BadName if the folder's name
    is not an experiment name; ExperimentError if it exists.
    """
    check_experiment_name(folder.name)
    if folder.exists():
        raise ExperimentError(f"{folder} exists already; take another name, or edit what is there")
    template = TEMPLATES / ("transformer" if model else "hashed_words")
    values = _transformer_values(model) if model else {"MODEL": DEFAULT_MODEL}
    draft = folder.with_name(f".{folder.name}.part")  # so that no sensor sees a half-written experiment
    draft.mkdir(parents=True, exist_ok=True)
    for name in ("settings.ini", USER_FUNCTIONS):
        text = (template / f"{name}.tmpl").read_text(encoding="utf-8")
        (draft / name).write_text(_PLACE.sub(lambda match: values[match[1]], text), encoding="utf-8")
    draft.rename(folder)
    return [folder / "settings.ini", folder / USER_FUNCTIONS]


def _transformer_values(model: str) -> dict[str, str]:
    """What the transformer template needs to know of a model, read from its folder where there is one."""
    path = Path(model).expanduser()
    config = _config(path)
    source = str(path.resolve()) if path.is_dir() else model
    longest, pad = config.get("max_position_embeddings"), config.get("pad_token_id")
    if not isinstance(longest, int) or longest < 8:
        longest = MAX_LENGTH
    if not isinstance(pad, int):
        pad = 1 if _PADS_WITH_ONE.search(model) else 0
    if _PADS_WITH_ONE.search(str(config.get("model_type", ""))):
        longest -= 2  # their positions begin after the padding's
    return {
        "MODEL": model_name_for(model),
        "PRETRAINED": json.dumps(source, ensure_ascii=False),
        "PAD": str(pad),
        "MAX_LENGTH": str(min(MAX_LENGTH, longest)),
    }


def _config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not path.is_dir():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExperimentError(
            f"{file}: {error}; expected the config.json of a pretrained model: name a folder that has one, or a model of the hub"
        ) from error
    return config if isinstance(config, dict) else {}


def model_name_for(model: str) -> str:
    """A model name out of a hub name or path: `google/bert_base` becomes `bert-base`. BadName if nothing is left."""
    last = re.split(r"[/\\]", model.rstrip("/\\"))[-1]
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", last).strip("-.")[:63]
    if not name:
        raise BadName(f"model {model!r}: expected a Hugging Face name or a folder, for example distilbert-base-uncased")
    return check_model_name(name)

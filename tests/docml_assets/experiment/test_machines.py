"""The machines of a run's jobs, and the most that they can cost."""

import pytest

from docml_assets.experiment.machines import compute, worst_cases
from docml_assets.experiment.settings.settings import parse_settings
from tests.docml_assets.experiment.experiments import settings_text

PRICES = {"ml.m5.xlarge": 0.2, "ml.g5.xlarge": 1.5}
KEYS = """
PREPARATION_INSTANCE_TYPE = ml.m5.xlarge
PREPARATION_INSTANCE_COUNT = 3
PREPARATION_MAX_RUNTIME_SECONDS = 1800
TRAINING_INSTANCE_TYPE = ml.g5.xlarge
TRAINING_MAX_RUNTIME_SECONDS = 3600
TRAINING_KEEP_ALIVE_SECONDS = 1800
INFERENCE_INSTANCE_TYPE = ml.unheard.of
"""


def test_compute_follows_the_steps_keys() -> None:
    settings = parse_settings(settings_text(KEYS), "f")
    training = compute(settings, "training", image="image:1")
    assert (training.instance_type, training.keep_alive_seconds, training.image) == ("ml.g5.xlarge", 1800, "image:1")
    assert compute(settings, "preparation").instance_count == 3
    assert compute(settings, "preparation", hosts=1).instance_count == 1
    assert compute(settings, "preparation").keep_alive_seconds is None


def test_worst_cases_are_known_where_prices_are() -> None:
    worst = worst_cases(parse_settings(settings_text(KEYS), "f"), PRICES)
    assert worst == pytest.approx({"preparation": 0.3, "merging of shards": 0.1, "training": 2.25})

"""How long to look: a moment in `make test`, thousands of inputs a function in `make fuzz`."""

import os

import hypothesis

EXAMPLES = int(os.environ.get("DOCML_FUZZ_EXAMPLES") or 40)
hypothesis.settings.register_profile(
    "docml-fuzz",
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES < 1_000,  # `make test` says the same each time
    suppress_health_check=list(hypothesis.HealthCheck),
    database=None,
)

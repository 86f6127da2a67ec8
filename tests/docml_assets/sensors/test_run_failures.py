"""A failed run is posted once, with what people need to know, and the webhook's URL stays unseen."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from docml_assets.partitions import experiment_runs, register
from docml_assets.sensors.run_failures import WebhookFailed, post, run_failure_sensor


class Webhook:
    """A real HTTP server that answers the statuses it is told to and keeps what it received."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.received.append(json.loads(body))
                self.send_response(outer.statuses.pop(0) if outer.statuses else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook/s3cret"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    server = Webhook()
    yield server
    server.close()


@dg.asset(partitions_def=experiment_runs)
def broken() -> None:
    raise ValueError("labels.sqlite has no table document_labels\nexpected the table of LABELS_QUERY")


@dg.asset(partitions_def=experiment_runs)
def refused() -> None:
    raise dg.Failure("training of minilm: the loss is NaN\nstep 12\nstep 13")


def sensor_result(asset: dg.AssetsDefinition, environment: dict[str, str]) -> dict[str, Any]:
    """Run the asset to failure in process and evaluate the sensor on that run."""
    with dg.instance_for_test() as instance:
        key = register(instance, "EXP-7-x", 3)
        result = dg.materialize([asset], partition_key=key, instance=instance, raise_on_error=False)
        context = dg.build_run_status_sensor_context(
            sensor_name="run_failure_sensor",
            dagster_event=result.get_run_failure_event(),
            dagster_instance=instance,
            dagster_run=result.dagster_run,
            resources={"deployment": SimpleNamespace(environment=environment)},
        ).for_run_failure()
        run_failure_sensor(context)
        return {"run_id": result.run_id}


def test_an_error_in_a_step_is_posted_with_its_root_cause(webhook: Webhook) -> None:
    found = sensor_result(broken, {"DOCML_WEBHOOK_URL": webhook.url, "DOCML_UI_URL": "https://dagster.example/"})
    (message,) = webhook.received
    assert message["experiment"] == "EXP-7-x"
    assert message["run"] == 3
    assert message["step"] == "broken"
    assert message["reason"] == "labels.sqlite has no table document_labels"
    assert message["last_lines"] == ["expected the table of LABELS_QUERY"]
    assert message["link"] == f"https://dagster.example/runs/{found['run_id']}"
    assert message["text"].startswith("EXP-7-x run 3 failed in broken: labels.sqlite has no table")


def test_a_declared_failure_is_posted_in_its_own_words(webhook: Webhook) -> None:
    sensor_result(refused, {"DOCML_WEBHOOK_URL": webhook.url})
    (message,) = webhook.received
    assert message["reason"] == "training of minilm: the loss is NaN"
    assert message["last_lines"] == ["step 12", "step 13"]


def test_without_a_webhook_nothing_is_posted(webhook: Webhook) -> None:
    sensor_result(broken, {})
    assert webhook.received == []


def test_a_passing_trouble_is_tried_again(webhook: Webhook) -> None:
    webhook.statuses = [503, 429, 200]
    waits: list[float] = []
    post(webhook.url, {"text": "x"}, sleep=waits.append)
    assert len(webhook.received) == 3
    assert waits == [2.0, 4.0]


def test_a_refusal_is_not_tried_again_and_hides_the_url(webhook: Webhook) -> None:
    webhook.statuses = [403]
    with pytest.raises(WebhookFailed, match="HTTP 403") as error:
        post(webhook.url, {"text": "x"}, sleep=lambda _: None)
    assert len(webhook.received) == 1
    assert "s3cret" not in str(error.value)

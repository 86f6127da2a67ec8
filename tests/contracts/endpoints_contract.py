"""What every implementation of endpoints keeps: this machine and SageMaker. Subclass `EndpointsContract` and give `bench`."""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import pytest

from docml_contract.names import RunPlace
from resources.endpoints.endpoints import Endpoints
from resources.endpoints.interface import (
    EndpointFailed,
    EndpointRefused,
    EndpointSpec,
    UnknownEndpoint,
    endpoint_name,
)
from resources.store import Store

EXPERIMENT = "EXP-1-contract"


class EndpointsBench(Protocol):
    """An implementation to test: its store, and endpoints as a fresh process would make them."""

    store: Store

    def endpoints(self) -> Endpoints: ...

    def spec(self, run: int, **changes: Any) -> EndpointSpec:
        """Of run's model `toy`, with what the implementation needs."""

    def left(self) -> list[str]:
        """All that exists outside of the store."""

    def servers(self) -> int:
        """Processes that answer."""


def fill(store: Store) -> None:
    """Deployment folders of runs 1 and 2, model `toy`, and of run 3, model `broken`."""
    for run, model in ((1, "toy"), (2, "toy"), (3, "broken")):
        write_folder(store, run, model)


def write_folder(store: Store, run: int, model: str) -> None:
    folder = RunPlace(EXPERIMENT, run).deployment(model)
    weights = f"weights of run {run}".encode()
    store.put(f"{folder}/model.pt", weights)
    files = {"model.pt": hashlib.sha256(weights).hexdigest()}
    content = {"experiment": EXPERIMENT, "run": run, "model": model, "files": files}
    store.put(f"{folder}/MANIFEST.json", json.dumps(content).encode())


def plain_spec(store: Store, run: int, **changes: Any) -> EndpointSpec:
    """What a deployment of the run asks for; `alias=NAME` for an alias."""
    model = changes.pop("model", "broken" if run == 3 else "toy")
    folder = RunPlace(EXPERIMENT, run).deployment(model)
    alias = changes.pop("alias", None)
    return EndpointSpec(
        name=alias or endpoint_name(run, EXPERIMENT, model),
        alias=alias is not None,
        experiment=EXPERIMENT,
        run=run,
        model=model,
        folder=folder,
        manifest_sha256=hashlib.sha256(store.get(f"{folder}/MANIFEST.json")).hexdigest(),
        **changes,
    )


def ask(invoke: Callable[[bytes], bytes]) -> int:
    """A check of answers that is content with any."""
    assert json.loads(invoke(b'{"files": {}}'))
    return 50


def deploy(bench: EndpointsBench, spec: EndpointSpec, check: Callable[..., int] = ask, **more: Any) -> Any:
    said: list[str] = []
    return bench.endpoints().deploy(spec, by="tests", check=check, say=said.append, **more)


def answer(bench: EndpointsBench, name: str) -> Any:
    return json.loads(bench.endpoints().invoke(name, b'{"files": {}}'))


class EndpointsContract:
    def test_up_found_and_taken_down(self, bench: EndpointsBench) -> None:
        spec = bench.spec(1)
        assert spec.name == "1-EXP-1-contract-toy"
        first = deploy(bench, spec)
        assert first.is_up
        assert first.record.checked_documents == 50
        (found,) = bench.endpoints().list_endpoints()
        assert found.is_up
        assert found.name == spec.name
        assert answer(bench, spec.name)["run"] == 1
        again = deploy(bench, spec, check=lambda invoke: pytest.fail("it counts already"))
        assert again.record.up_since == first.record.up_since
        assert bench.servers() == 1
        endpoints = bench.endpoints()
        endpoints.remove(endpoints.records.find(spec.name))
        assert bench.endpoints().list_endpoints() == []
        assert bench.left() == []
        with pytest.raises(UnknownEndpoint, match="there is no endpoint '1-EXP-1-contract-toy'; known: none"):
            bench.endpoints().records.find(spec.name)

    def test_an_alias_moves_and_leaves_nothing_behind(self, bench: EndpointsBench) -> None:
        before = deploy(bench, bench.spec(1, alias="live"))
        left = len(bench.left())
        assert answer(bench, "live")["run"] == 1
        after = deploy(bench, bench.spec(2, alias="live"))
        assert after.state.url == before.state.url
        assert answer(bench, "live")["run"] == 2
        assert len(bench.left()) == left
        assert bench.servers() == 1
        (found,) = bench.endpoints().list_endpoints()
        assert (found.is_up, found.record.spec.run, found.record.previous) == (True, 2, None)

    def test_an_alias_goes_back_if_the_new_answers_are_wrong(self, bench: EndpointsBench) -> None:
        deploy(bench, bench.spec(1, alias="live"))

        def wrong(invoke: Callable[[bytes], bytes]) -> int:
            assert json.loads(invoke(b"{}"))["run"] == 2
            raise EndpointFailed("another label")

        with pytest.raises(EndpointFailed, match="another label"):
            deploy(bench, bench.spec(2, alias="live"), check=wrong)
        assert answer(bench, "live")["run"] == 1
        (found,) = bench.endpoints().list_endpoints()
        assert (found.is_up, found.record.spec.run) == (True, 1)

    def test_a_new_endpoint_with_wrong_answers_is_taken_down(self, bench: EndpointsBench) -> None:
        def wrong(invoke: Callable[[bytes], bytes]) -> int:
            raise EndpointFailed("another label")

        with pytest.raises(EndpointFailed, match="another label"):
            deploy(bench, bench.spec(1), check=wrong)
        assert bench.left() == []
        assert list(bench.endpoints().records) == []

    def test_a_model_that_cannot_be_loaded_is_a_failure(self, bench: EndpointsBench) -> None:
        with pytest.raises(EndpointFailed, match="3-EXP-1-contract-broken"):
            deploy(bench, bench.spec(3))
        assert bench.left() == []
        deploy(bench, bench.spec(1, alias="live"))
        with pytest.raises(EndpointFailed):
            deploy(bench, bench.spec(3, alias="live"))
        assert answer(bench, "live")["run"] == 1

    def test_a_tampered_folder_never_answers(self, bench: EndpointsBench) -> None:
        spec = bench.spec(1)
        bench.store.put(f"{spec.folder}/model.pt", b"other weights")
        with pytest.raises(EndpointFailed):
            deploy(bench, spec)
        write_folder(bench.store, 1, "toy")
        manifest = bench.store.get(f"{spec.folder}/MANIFEST.json")
        bench.store.put(f"{spec.folder}/MANIFEST.json", manifest + b"\n")
        with pytest.raises(EndpointFailed):
            deploy(bench, spec)
        assert bench.left() == []

    def test_a_refused_request_says_why(self, bench: EndpointsBench) -> None:
        deploy(bench, bench.spec(1))
        with pytest.raises(EndpointFailed, match=r"answers 400: .*the body is not JSON"):
            bench.endpoints().invoke(bench.spec(1).name, b"bad")

    def test_what_expired_and_what_nobody_knows_is_swept(self, bench: EndpointsBench) -> None:
        spec = bench.spec(1)
        deploy(bench, spec, expires_after=timedelta(hours=1))
        assert bench.endpoints().sweep() == []
        later = datetime.now(UTC) + timedelta(hours=2)
        assert "expired" in bench.endpoints().sweep(later)[0].reason
        for _ in range(5):
            bench.endpoints().sweep(later)
        assert bench.left() == []
        assert list(bench.endpoints().records) == []
        deploy(bench, spec)
        bench.store.delete([spec.record_key])
        assert [(removed.name, removed.reason) for removed in bench.endpoints().sweep()] == [
            (spec.name, "no record knows it")
        ]
        for _ in range(5):
            bench.endpoints().sweep()
        assert bench.left() == []

    def test_names_and_modes_that_are_taken(self, bench: EndpointsBench) -> None:
        deploy(bench, bench.spec(1))
        with pytest.raises(EndpointRefused, match="is realtime, and cannot become async"):
            deploy(bench, bench.spec(1, mode="async"))
        other = bench.spec(1).model_copy(update={"experiment": "EXP-2"})
        with pytest.raises(EndpointRefused, match="is taken by endpoint 1-EXP-1-contract-toy"):
            deploy(bench, other)

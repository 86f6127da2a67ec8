import pickle
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from resources.errors import MissingKey, SettingError, StoreError
from resources.store import Store, s3_client
from tests.contracts.store_contract import StoreContract
from tests.servers.faults import COPIED, Answer, Request, error, scripted_s3
from tests.servers.s3 import S3Server


@pytest.fixture
def store(s3_server: S3Server) -> Store:
    return Store.open(s3_server.new_url(), environment=s3_server.environment)


@pytest.fixture
def other(s3_server: S3Server) -> Store:
    """In another bucket."""
    url = f"{s3_server.bucket('others')}/{uuid.uuid4().hex[:12]}/some prefix/ü"
    return Store.open(url, environment=s3_server.environment)


class TestS3(StoreContract):
    def test_prefixes_keep_stores_apart(self, s3_server: S3Server) -> None:
        bucket = s3_server.bucket("whole")
        whole = Store.open(bucket, environment=s3_server.environment)
        inside = Store.open(f"{bucket}/some prefix/ü", environment=s3_server.environment)
        inside.put("a", b"inside")
        assert [o.key for o in whole.list()] == ["some prefix/ü/a"]
        assert whole.list_folders() == ["some prefix"]
        whole.put("some prefix/outside", b"")
        assert [o.key for o in inside.list()] == ["a"]
        assert inside.list_folders() == []
        whole.copy("some prefix/ü/a", "b")
        assert inside.copy_from(whole, "b", "c").size == 6

    def test_large_objects_are_uploaded_in_parts(self, s3_server: S3Server, store: Store, tmp_path: Path) -> None:
        (tmp_path / "big").write_bytes(b"x" * (40 << 20))
        etag = store.put_file("big", tmp_path / "big").etag
        assert etag.endswith("-3"), "40 MiB in parts of 16 MiB"

    def test_copies_between_a_folder_and_s3(self, store: Store, tmp_path: Path) -> None:
        folder = Store.open(str(tmp_path / "f"), environment={})
        folder.put("a/b", b"data")
        assert store.copy_from(folder, "a/b", "c").size == 4
        assert folder.copy_from(store, "c", "d").size == 4
        assert folder.get("d") == b"data"
        assert store.copy_many(folder, [("a/b", "m/1"), ("gone", "m/2")])[0].source == "gone"
        assert folder.copy_many(store, [("m/1", "n/1"), ("m/2", "n/2")])[0].source == "m/2"
        with pytest.raises(MissingKey, match="gone"):
            store.copy_from(folder, "gone", "x")

    def test_etags_are_as_boto3_sees_them(self, s3_server: S3Server, store: Store) -> None:
        stored = store.put("a", b"x")
        seen = s3_server.client().head_object(Bucket="tests", Key=store.url.split("/")[3] + "/a")
        assert seen["ETag"].strip('"') == stored.etag == store.list_table()["etag"][0].as_py()


def scripted(answers: dict[str, list[Answer]], default: Answer) -> tuple[object, Counter[str]]:
    """Answers by method, in order, then the default; and a count of requests by method."""
    count: Counter[str] = Counter()
    lock = threading.Lock()

    def answer(request: Request) -> Answer:
        with lock:
            count[request.method] += 1
            queue = answers.get(request.method, [])
            return queue.pop(0) if queue else default

    return answer, count


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of a millisecond."""
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)


@pytest.mark.usefixtures("quick")
class TestFaults:
    def test_slow_down_and_dropped_connections_are_tried_again(self) -> None:
        faults = [error(503, "SlowDown"), Answer(0), error(500, "InternalError"), error(503, "SlowDown")]
        answer, count = scripted({"GET": list(faults), "PUT": list(faults)}, Answer(200, b"content"))
        with scripted_s3(answer) as server:  # type: ignore[arg-type]
            store = Store.open("s3://bucket", environment=server.environment)
            assert store.get("a") == b"content"
            store.put("a", b"x")
        assert count == {"GET": 5, "PUT": 5}

    @pytest.mark.parametrize(
        "name",
        [
            "get",
            "head",
            "put",
            "put_file",
            "get_file",
            "put_if_absent",
            "copy",
            "copy_many",
            "delete",
            "list",
            "list_folders",
        ],
    )
    def test_an_outage_is_waited_for(
        self, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Failures in a row, of every kind; said, and over when the service answers."""
        monkeypatch.setattr(s3_client, "SAY_AFTER_SECONDS", 0.0)
        kinds = [
            error(503, "SlowDown"),
            Answer(0),
            error(500, "InternalError"),
            error(429, "TooMany"),
            error(400, "RequestTimeout"),
        ]
        empty = b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>false</IsTruncated></ListBucketResult>'
        answers = {
            "list": empty,
            "list_folders": empty,
            "delete": b"<DeleteResult><Deleted><Key>a</Key></Deleted></DeleteResult>",
        }
        last = (
            COPIED
            if name.startswith("copy")
            else Answer(200, answers.get(name, b"content"), {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"})
        )
        left = (kinds if name != "head" else kinds[:-1]) * 10  # an answer to HEAD says no more than its number
        (tmp_path / "file").write_bytes(b"x")
        with scripted_s3(lambda request: left.pop() if left else last) as server:
            store = Store.open("s3://bucket", environment=server.environment)
            ask = {
                "get": lambda: store.get("a"),
                "head": lambda: store.head("a"),
                "put": lambda: store.put("a", b"x"),
                "put_file": lambda: store.put_file("a", tmp_path / "file"),
                "get_file": lambda: store.get_file("a", tmp_path / "got"),
                "put_if_absent": lambda: store.put_if_absent("a", b"x"),
                "copy": lambda: store.copy("a", "b"),
                "copy_many": lambda: store.copy_many(store, [("a", "b")]),
                "delete": lambda: store.delete(["a"]),
                "list": lambda: list(store.list()),
                "list_folders": store.list_folders,
            }
            ask[name]()  # type: ignore[operator]
        assert not left
        assert "the store does not answer" in caplog.text
        assert "the store answers again after" in caplog.text

    def test_of_many_that_wait_for_a_service_one_speaks(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(s3_client, "SAY_AFTER_SECONDS", 0.0)
        asked: Counter[str] = Counter()
        is_up = threading.Event()

        def answer(request: Request) -> Answer:
            asked[request.path] += 1
            if len(asked) == 8 and min(asked.values()) > 2 and not is_up.is_set():
                told.append(caplog.text.count("the store does not answer"))
                is_up.set()
            return Answer(200, b"content") if is_up.is_set() else error(503, "SlowDown")

        told: list[int] = []
        with scripted_s3(answer) as server, ThreadPoolExecutor(8) as pool:
            store = Store.open("s3://bucket", environment=server.environment)
            assert list(pool.map(store.get, [f"a{number}" for number in range(8)])) == [b"content"] * 8
        assert told == [1]

    def test_a_service_that_says_nothing_is_out_of_reach(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(s3_client, "SILENCE", timedelta(seconds=0.5))
        monkeypatch.setattr(s3_client, "SAY_AFTER_SECONDS", 0.0)
        asked = threading.Event()

        def answer(request: Request) -> Answer:
            if not asked.is_set():
                asked.set()
                time.sleep(2)
            return Answer(200, b"content")

        with scripted_s3(answer) as server:
            assert Store.open("s3://bucket", environment=server.environment).get("a") == b"content"
        assert "the store does not answer" in caplog.text

    @pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "http://no-such-host.invalid"])
    def test_nobody_there_is_an_outage_too_and_patience_ends(self, endpoint: str) -> None:
        keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
        store = Store.open("s3://bucket", environment={"AWS_ENDPOINT_URL_S3": endpoint, **keys})
        assert store.patience == 900, "as long as any other service"
        impatient = pickle.loads(pickle.dumps(store.with_patience(0.3))).below("folder")
        started = time.monotonic()
        for ask in (
            lambda: impatient.get("a"),
            lambda: impatient.put_if_absent("a", b""),
            lambda: list(impatient.list()),
        ):
            with pytest.raises(StoreError, match=r"s3://bucket/folder.*: S3 did not answer for"):
                ask()
        assert time.monotonic() - started > 0.5

    def test_a_connection_that_breaks_within_an_answer_is_tried_again(self, tmp_path: Path) -> None:
        halves = [Answer(200, b"half", {"Content-Length": "100"})] * 3
        with scripted_s3(lambda _: halves.pop() if halves else Answer(200, b"whole")) as server:
            store = Store.open("s3://bucket", environment=server.environment)
            assert store.get("a") == b"whole"
        assert not halves

    def test_copies_are_tried_again(self) -> None:
        answer, count = scripted({"PUT": [error(503, "SlowDown")] * 20 + [Answer(0)] * 5}, COPIED)
        with scripted_s3(answer) as server:  # type: ignore[arg-type]
            store = Store.open("s3://bucket", environment=server.environment)
            ticks: list[int] = []
            pairs = [(f"a/{i}", f"b/{i}") for i in range(40)]
            assert store.copy_many(store, pairs, parallel=8, copied=lambda: ticks.append(1)) == []
        assert len(ticks) == 40
        assert count["PUT"] == 65

    def test_an_error_inside_an_accepted_copy_is_tried_again(self) -> None:
        """S3 answers 200 before a copy has ended, and may then say that it failed."""
        inside = Answer(
            200, b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"
        )
        answer, count = scripted({"PUT": [inside]}, COPIED)
        with scripted_s3(answer) as server:  # type: ignore[arg-type]
            store = Store.open("s3://bucket", environment=server.environment)
            assert store.copy_many(store, [("a", "b")]) == []
        assert count["PUT"] == 2

    def test_a_refusal_is_not_tried_again_and_stops_the_rest(self) -> None:
        answer, count = scripted({}, error(403, "AccessDenied"))
        with scripted_s3(answer) as server:  # type: ignore[arg-type]
            store = Store.open("s3://bucket/p", environment=server.environment)
            with pytest.raises(StoreError, match="check the credentials"):
                store.copy_many(store, [(f"a/{i}", f"b/{i}") for i in range(1000)], parallel=4)
            with pytest.raises(StoreError, match=r"s3://bucket/p/secret: .*check the credentials"):
                store.get("secret")
        assert count["PUT"] <= 8

    def test_a_conflict_of_conditional_puts_is_settled_by_looking(self) -> None:
        answer, count = scripted(
            {"PUT": [error(409, "ConditionalRequestConflict"), Answer(200)], "GET": [error(404, "NoSuchKey")]},
            Answer(500),
        )
        with scripted_s3(answer) as server:  # type: ignore[arg-type]
            assert Store.open("s3://bucket", environment=server.environment).put_if_absent("claim", b"mine")
            assert server.requests[0].headers["if-none-match"] == "*"
        answer, count = scripted({"PUT": [error(409, "ConditionalRequestConflict")]}, Answer(200, b"theirs"))
        with scripted_s3(answer) as server:  # type: ignore[arg-type]
            assert not Store.open("s3://bucket", environment=server.environment).put_if_absent("claim", b"mine")
        assert count["PUT"] == 1

    @pytest.mark.parametrize(("found", "won"), [(b"mine", True), (b"theirs", False)])
    def test_a_lost_answer_to_a_conditional_put_is_settled_by_content(self, found: bytes, won: bool) -> None:
        answer, _ = scripted({"PUT": [Answer(0)], "GET": [Answer(200, found)]}, error(412, "PreconditionFailed"))
        with scripted_s3(answer) as server:  # type: ignore[arg-type]
            assert Store.open("s3://bucket", environment=server.environment).put_if_absent("claim", b"mine") is won

    def test_objects_too_large_to_copy_go_through_in_parts(self) -> None:
        too_large = error(
            400,
            "InvalidRequest",
            "The specified copy source is larger than the maximum allowable size for a copy source: 5368709120",
        )
        parts: list[bytes] = []

        def answer(request: Request) -> Answer:
            if "x-amz-copy-source" in request.headers:
                return too_large
            if request.method == "GET":
                return Answer(200, b"content")
            if request.query.startswith("uploads"):
                return Answer(
                    200, b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
                )
            if request.method == "PUT":
                parts.append(request.body)
                return Answer(200)
            return Answer(200, b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>")

        with scripted_s3(answer) as server:
            store = Store.open("s3://bucket", environment=server.environment)
            assert store.copy("a", "b").size == 7
            assert store.copy_many(store, [("a", "c")]) == []
        assert parts == [b"content"] * 2

    def test_hostile_keys_do_not_stop_a_listing(self) -> None:
        keys = ["p/0/ok", "p//empty", "p/../up", "p/a\x07bell/f", "p/b/./c", "p/z/ok"]

        def answer(request: Request) -> Answer:
            after = next((part[12:] for part in request.query.split("&") if part.startswith("start-after=")), "")
            rows = [key for key in keys if key.encode() > unquote(after).encode()]
            encoded = "encoding-type=url" in request.query
            shown = [quote(key, safe="/") if encoded else key.replace("\x07", "&#7;") for key in rows]
            entries = "".join(
                f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;e&quot;</ETag>"
                "<Size>1</Size></Contents>"
                for key in shown
            )
            kind = "<EncodingType>url</EncodingType>" if encoded else ""
            xml = f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{kind}{entries}<IsTruncated>false</IsTruncated></ListBucketResult>'
            return Answer(200, xml.encode(), {"Content-Type": "application/xml"})

        with scripted_s3(answer) as server:
            store = Store.open("s3://bucket/p", environment=server.environment)
            assert store.list_table()["key"].to_pylist() == sorted(key[2:] for key in keys)

    def test_interrupting_a_bulk_copy_ends_it(self) -> None:
        def slow(request: Request) -> Answer:
            time.sleep(0.05)
            return COPIED

        class Interrupt(BaseException): ...

        done: list[int] = []

        def copied() -> None:
            done.append(1)
            if len(done) == 5:
                raise Interrupt

        with scripted_s3(slow) as server:
            store = Store.open("s3://bucket", environment=server.environment)
            with pytest.raises(Interrupt):
                store.copy_many(store, [(f"a/{i}", f"b/{i}") for i in range(500)], parallel=4, copied=copied)
            asked = len(server.requests)
            assert asked < 50
            time.sleep(0.2)
            assert len(server.requests) == asked, "nothing goes on behind our back"


class TestEnvironment:
    def test_kms_key_and_path_style(self) -> None:
        answer, _ = scripted({}, COPIED)
        with scripted_s3(answer) as server:  # type: ignore[arg-type]
            environment = {**server.environment, "DOCML_KMS_KEY": "arn:aws:kms:eu-central-1:1:key/abc"}
            store = Store.open("s3://bucket/p", environment=environment)
            store.put("a", b"x")
            store.copy_many(store, [("a", "b")])
            put, copy = server.requests
        for request in (put, copy):
            assert request.headers["x-amz-server-side-encryption"] == "aws:kms"
            assert (
                request.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "arn:aws:kms:eu-central-1:1:key/abc"
            )
            assert "/eu-central-1/s3/aws4_request" in request.headers["authorization"]
        assert copy.path == "/bucket/p/b"
        assert copy.headers["x-amz-copy-source"] == "bucket/p/a"
        assert "x-amz-copy-source" in copy.headers["authorization"], "signed"

    def test_credentials_come_from_the_standard_chain(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "credentials").write_text("[default]\naws_access_key_id = FROMPROFILE\naws_secret_access_key = s\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
        answer, _ = scripted({}, Answer(200, b"x"))
        with scripted_s3(answer) as server:  # type: ignore[arg-type]
            Store.open("s3://bucket", environment={"AWS_ENDPOINT_URL_S3": server.endpoint}).get("a")
            assert "Credential=FROMPROFILE/" in server.requests[0].headers["authorization"]

    def test_no_credentials(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            monkeypatch.setenv(name, str(tmp_path / "none"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
        with pytest.raises(SettingError, match="no AWS credentials"):
            Store.open("s3://bucket", environment={}).get("a")

"""The client's addresses, and what it takes from obstore that obstore does not promise: each test says what broke."""

import obstore
import pytest
from obstore.exceptions import BaseError, InvalidPathError

from resources.errors import StoreError
from resources.store.s3_client import BucketClients, store_error
from tests.servers.faults import COPIED, Answer, error, scripted_s3


@pytest.mark.parametrize(
    ("bucket", "environment", "address"),
    [
        ("b", {"AWS_REGION": "eu-west-1"}, "https://b.s3.eu-west-1.amazonaws.com"),
        ("b", {"AWS_DEFAULT_REGION": "cn-north-1"}, "https://b.s3.cn-north-1.amazonaws.com.cn"),
        ("with.dots", {}, "https://s3.us-east-1.amazonaws.com/with.dots"),
        ("b", {"DOCML_S3_PATH_STYLE": "true"}, "https://s3.us-east-1.amazonaws.com/b"),
        ("b", {"AWS_ENDPOINT_URL": "https://s3.example.org/"}, "https://b.s3.example.org"),
        ("b", {"AWS_ENDPOINT_URL": "https://x", "AWS_ENDPOINT_URL_S3": "http://10.0.0.1:9"}, "http://10.0.0.1:9/b"),
        ("b", {"AWS_ENDPOINT_URL": "http://localhost:1"}, "http://localhost:1/b"),
    ],
)
def test_addresses(bucket: str, environment: dict[str, str], address: str) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    assert BucketClients(bucket, {**keys, **environment}).address() == address


def test_a_client_of_the_source_on_the_targets_address_copies_between_buckets() -> None:
    with scripted_s3(lambda _: COPIED) as server:
        client = BucketClients("target", server.environment).copier("source")
        obstore.copy(client, "a", "b")
        (request,) = server.requests
    assert request.path == "/target/b", "obstore no longer takes the target's address from the endpoint: see copier()"
    assert request.headers["x-amz-copy-source"] == "source/a", (
        "obstore no longer names the source by the client's bucket"
    )


def test_error_texts_end_before_obstores_own_debug_output() -> None:
    with scripted_s3(lambda _: error(403, "AccessDenied")) as server:
        client = BucketClients("bucket", server.environment).client
        with pytest.raises(BaseError) as caught:
            obstore.get(client, "a")
    assert "\n\nDebug source" in str(caught.value), "obstore words its errors differently: see store_error()"
    assert "Debug source" not in str(store_error("s3://bucket/a", caught.value))
    with pytest.raises(StoreError, match="check the credentials"):
        raise store_error("s3://bucket/a", caught.value)


def test_a_listing_stops_at_keys_that_are_no_paths() -> None:
    page = (
        b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Contents><Key>a//b</Key><Size>1</Size>'
        b"<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>e</ETag></Contents><IsTruncated>false</IsTruncated>"
        b"</ListBucketResult>"
    )
    with scripted_s3(lambda _: Answer(200, page, {"Content-Type": "application/xml"})) as server:
        client = BucketClients("bucket", server.environment).client
        with pytest.raises(InvalidPathError):
            list(obstore.list(client))

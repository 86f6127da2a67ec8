import pytest

from docml_assets.experiment.settings.query import query_problems


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM t",
        "SELECT t.*, x FROM t",
        "select artifact_guid, label, sha AS file_hash from t where label like '%a;b%';",
        "WITH x AS (SELECT 1) SELECT artifact_guid, label, file_hash FROM x",
        "SELECT artifact_guid, label, file_hash FROM a UNION ALL SELECT a, b, c FROM d -- more",
        "(SELECT artifact_guid, label, file_hash FROM t)",
        "SELECT \"artifact_guid\", d->>'label' AS label, file_hash FROM t",
        "SELECT TOP 3 artifact_guid, label, file_hash FROM [t]",
    ],
)
def test_right_queries(query: str) -> None:
    assert [*query_problems(query, None)] == []


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("DELETE FROM t", "DELETE statement"),
        ("SELECT 1; DROP TABLE t", "2 statements"),
        ("WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x", "DELETE"),
        ("", "0 statements"),
        ("SELECT artifact_guid FROM", "not readable"),
        ("SELECT artifact_guid, label FROM t", "without the column file_hash"),
        ("SELECT label FROM t", "without the columns artifact_guid, file_hash"),
    ],
)
def test_wrong_queries(query: str, complaint: str) -> None:
    ((found, expected, remedy),) = query_problems(query, None)
    assert complaint in found
    assert expected
    assert remedy


def test_split_by_is_one_of_the_columns() -> None:
    query = "SELECT artifact_guid, label, file_hash, customer FROM t"
    assert [*query_problems(query, "Customer")] == []
    ((found, _, _),) = query_problems(query, "owner")
    assert "owner that SPLIT_BY names" in found

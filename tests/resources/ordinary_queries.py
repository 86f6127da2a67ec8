"""Queries as analysts write them, by database; every one is meant to be accepted."""

_SHAPES = """
SELECT artifact_guid, label, file_hash FROM labels
SELECT l.artifact_guid, l.label, l.file_hash FROM labels AS l
SELECT DISTINCT artifact_guid, label, file_hash FROM labels
SELECT * FROM labels
SELECT l.* FROM labels l
SELECT artifact_guid, label, sha256 AS file_hash FROM document_labels WHERE label IS NOT NULL
SELECT artifact_guid, label, file_hash FROM labels WHERE label IN ('invoice', 'letter')
SELECT artifact_guid, label, file_hash FROM labels WHERE label NOT IN ('noise') AND pages > 3
SELECT artifact_guid, label, file_hash FROM labels WHERE pages BETWEEN 1 AND 20
SELECT artifact_guid, label, file_hash FROM labels WHERE label LIKE 'inv%'
SELECT artifact_guid, label, file_hash FROM labels WHERE NOT label LIKE '%draft' OR pages <> 0
SELECT artifact_guid, label, file_hash FROM labels WHERE (pages + 1) * 2 - 1 >= 5 AND pages / 2 < 100
SELECT artifact_guid, CASE WHEN pages > 10 THEN 'long' ELSE 'short' END AS label, file_hash FROM labels
SELECT artifact_guid, CASE kind WHEN 1 THEN 'a' WHEN 2 THEN 'b' END AS label, file_hash FROM labels
SELECT artifact_guid, COALESCE(label, 'none') AS label, NULLIF(file_hash, '') AS file_hash FROM labels
SELECT artifact_guid, LOWER(TRIM(label)) AS label, file_hash FROM labels
SELECT artifact_guid, REPLACE(label, 'x', 'y') AS label, UPPER(file_hash) AS file_hash FROM labels
SELECT artifact_guid, CAST(label AS VARCHAR(20)) AS label, file_hash FROM labels
SELECT l.artifact_guid, t.name AS label, l.file_hash FROM labels l JOIN types t ON t.id = l.type_id
SELECT l.artifact_guid, t.name AS label, l.file_hash FROM labels l LEFT JOIN types t ON t.id = l.type_id
SELECT l.artifact_guid, t.name AS label, l.file_hash FROM labels l, types t WHERE t.id = l.type_id
SELECT l.artifact_guid, t.name AS label, l.file_hash FROM labels l CROSS JOIN types t
SELECT l.artifact_guid, t.name AS label, l.file_hash FROM archive.labels l INNER JOIN archive.types t ON t.id = l.type_id AND t.active = 1
SELECT a.artifact_guid, a.label, a.file_hash FROM (SELECT * FROM labels WHERE pages > 1) a
SELECT artifact_guid, label, file_hash FROM labels UNION SELECT artifact_guid, label, file_hash FROM older
SELECT artifact_guid, label, file_hash FROM labels UNION ALL SELECT artifact_guid, label, file_hash FROM older
SELECT artifact_guid, label, file_hash FROM labels EXCEPT SELECT artifact_guid, label, file_hash FROM gone
SELECT artifact_guid, label, file_hash FROM labels INTERSECT SELECT artifact_guid, label, file_hash FROM checked
SELECT artifact_guid, label, file_hash FROM labels WHERE artifact_guid IN (SELECT artifact_guid FROM checked)
SELECT artifact_guid, label, file_hash FROM labels l WHERE EXISTS (SELECT 1 FROM checked c WHERE c.guid = l.artifact_guid)
SELECT artifact_guid, label, file_hash FROM labels l WHERE NOT EXISTS (SELECT 1 FROM gone g WHERE g.guid = l.artifact_guid)
SELECT artifact_guid, MAX(label) AS label, MIN(file_hash) AS file_hash FROM labels GROUP BY artifact_guid
SELECT artifact_guid, MAX(label) AS label, MIN(file_hash) AS file_hash FROM labels GROUP BY artifact_guid HAVING COUNT(*) = 1
SELECT artifact_guid, MAX(label) AS label, MIN(file_hash) AS file_hash FROM labels GROUP BY artifact_guid HAVING COUNT(DISTINCT label) = 1
SELECT artifact_guid, label, file_hash FROM labels ORDER BY artifact_guid, label DESC
SELECT artifact_guid, label, file_hash, ROW_NUMBER() OVER (PARTITION BY file_hash ORDER BY artifact_guid) AS n FROM labels
SELECT artifact_guid, label, file_hash, COUNT(*) OVER (PARTITION BY label) AS n FROM labels
SELECT artifact_guid, label, file_hash, RANK() OVER (ORDER BY pages DESC) AS n, DENSE_RANK() OVER (ORDER BY pages) AS m FROM labels
SELECT artifact_guid, label, file_hash, LAG(label) OVER (ORDER BY created) AS earlier, LEAD(label, 1) OVER (ORDER BY created) AS later FROM labels
SELECT artifact_guid, label, file_hash, FIRST_VALUE(label) OVER (PARTITION BY guid ORDER BY created) AS first FROM labels
SELECT artifact_guid, label, file_hash, SUM(pages) OVER (ORDER BY created ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS total FROM labels
WITH newest AS (SELECT artifact_guid, MAX(created) AS created FROM labels GROUP BY artifact_guid) SELECT l.artifact_guid, l.label, l.file_hash FROM labels l JOIN newest n ON n.artifact_guid = l.artifact_guid AND n.created = l.created
WITH a AS (SELECT * FROM labels), b AS (SELECT * FROM a WHERE pages > 1) SELECT artifact_guid, label, file_hash FROM b
SELECT artifact_guid, label, file_hash, AVG(score) OVER (PARTITION BY label) AS mean FROM labels
SELECT artifact_guid, label, file_hash, ABS(score) AS s, ROUND(score, 2) AS r FROM labels
SELECT artifact_guid, (SELECT MAX(t.name) FROM types t WHERE t.id = l.type_id) AS label, file_hash FROM labels l
SELECT artifact_guid, label, file_hash FROM labels WHERE label = 'x; DROP TABLE labels'
SELECT artifact_guid, label /* its class */, file_hash FROM labels -- all of them
SELECT artifact_guid, label, file_hash FROM labels WHERE -pages < 0 AND pages % 2 = 0
SELECT artifact_guid, label, file_hash FROM labels WHERE label > 'a' AND label <= 'z';
SELECT artifact_guid, label, file_hash, 1.5 AS weight, 'scan' AS origin, NULL AS note FROM labels
SELECT a.artifact_guid, a.label, b.file_hash FROM labels a JOIN labels b ON a.artifact_guid = b.artifact_guid AND a.id < b.id
SELECT artifact_guid, MIN(label) AS label, MIN(file_hash) AS file_hash, SUM(CASE WHEN pages > 1 THEN 1 ELSE 0 END) AS long_ones FROM labels GROUP BY artifact_guid
SELECT artifact_guid, label, file_hash, CURRENT_TIMESTAMP AS asked FROM labels WHERE created < CURRENT_TIMESTAMP
SELECT artifact_guid, label, file_hash, NTILE(4) OVER (ORDER BY pages) AS quarter FROM labels
""".strip().splitlines()

_EXPRESSIONS = {
    "postgres": """label::text|artifact_guid::uuid::text|label || '-' || kind|(data ->> 'label')|(data -> 'a' ->> 'b')|data #>> '{a,b}'
        jsonb_extract_path_text(data, 'label')|date_trunc('month', created)::text|to_char(created, 'YYYY-MM')|extract(year FROM created)::text
        (created AT TIME ZONE 'UTC')::date::text|(now() - interval '1 day')::text|age(created)::text|md5(label)|encode(digest, 'hex')
        split_part(label, '/', 1)|substring(label FROM 1 FOR 3)|substr(label, 1, 3)|left(label, 3)|right(label, 3)|length(label)::text
        regexp_replace(label, '[0-9]+', '', 'g')|position('x' IN label)::text|initcap(label)|concat(label, '-', kind)|concat_ws('-', label, kind)
        format('%s-%s', label, kind)|lpad(label, 8, '0')|btrim(label)|ltrim(label, 'x')|reverse(label)|translate(label, 'ab', 'cd')
        greatest(label, kind)|least(label, kind)|ceil(score)::text|floor(score)::text|(label ILIKE 'inv%')::text|(label ~ '^inv')::text
        array_to_string(ARRAY[label, kind], '-')|(string_to_array(label, '/'))[1]|tags[1]|(label = ANY(tags))::text|(data ? 'label')::text
        (data @> '{"a": 1}')::text|jsonb_typeof(data)|to_date(day, 'YYYYMMDD')::text|(date '2026-01-01')::text|unaccent(label)
        normalize(label, NFC)|(label IS DISTINCT FROM kind)::text|power(score, 2)::text|chr(65)|ascii(label)::text|coalesce(label, kind, 'x')""",
    "sqlite": """label || '-' || kind|json_extract(data, '$.label')|(data ->> '$.label')|(data -> '$.a')|strftime('%Y-%m', created)
        date(created)|datetime(created, '+1 day')|julianday(created)|substr(label, 1, 3)|length(label)|instr(label, 'x')|hex(digest)
        ifnull(label, 'x')|iif(pages > 1, 'long', 'short')|typeof(label)|printf('%05d', pages)|format('%s', label)|trim(label, 'x')|ltrim(label)
        rtrim(label)|lower(hex(digest))|upper(label)|round(score)|cast(pages AS TEXT)|label COLLATE NOCASE|unicode(label)|char(65)
        abs(pages)|min(label, kind)|max(label, kind)|quote(label)|json_array_length(data)|json_type(data)|nullif(label, '')
        (label GLOB 'inv*')|(label IS NOT kind)|(label IS kind)|time(created)|unixepoch(created)|replace(label, 'a', 'b')|coalesce(label, kind)
        group_concat(label)|total(pages)|count(label)|random()|sign(score)|ceil(score)|floor(score)|pow(score, 2)|'it''s'|x'6162'""",
    "mysql": """CONCAT(label, '-', kind)|CONCAT_WS('-', label, kind)|IFNULL(label, 'x')|IF(pages > 1, 'long', 'short')|DATE_FORMAT(created, '%Y-%m')
        YEAR(created)|MONTH(created)|DATE(created)|DATE_ADD(created, INTERVAL 1 DAY)|DATEDIFF(created, changed)|NOW()|SUBSTRING(label, 1, 3)
        SUBSTRING_INDEX(label, '/', 1)|LEFT(label, 3)|RIGHT(label, 3)|LENGTH(label)|CHAR_LENGTH(label)|HEX(digest)|LOWER(HEX(digest))|MD5(label)
        SHA2(label, 256)|JSON_EXTRACT(data, '$.label')|data ->> '$.label'|JSON_UNQUOTE(JSON_EXTRACT(data, '$.a'))|LPAD(label, 8, '0')|TRIM(label)
        LTRIM(label)|RTRIM(label)|REVERSE(label)|LOCATE('x', label)|INSTR(label, 'x')|REGEXP_REPLACE(label, '[0-9]+', '')|GREATEST(label, kind)
        LEAST(label, kind)|CAST(pages AS CHAR)|CONVERT(label USING utf8mb4)|`label`|ROUND(score, 1)|CEIL(score)|FLOOR(score)|MOD(pages, 2)
        COALESCE(label, kind)|FIELD(label, 'a', 'b')|ELT(1, label, kind)|STR_TO_DATE(day, '%Y%m%d')|UNIX_TIMESTAMP(created)|FROM_UNIXTIME(n)
        GROUP_CONCAT(label)|BIN_TO_UUID(guid)|label REGEXP '^inv'|NULLIF(label, '')|POW(score, 2)|SIGN(score)|ABS(score)""",
    "tsql": """label + '-' + kind|CONCAT(label, '-', kind)|ISNULL(label, 'x')|IIF(pages > 1, 'long', 'short')|CONVERT(VARCHAR(10), created, 120)
        FORMAT(created, 'yyyy-MM')|YEAR(created)|MONTH(created)|DAY(created)|DATEADD(day, 1, created)|DATEDIFF(day, created, changed)|GETDATE()
        DATEPART(year, created)|DATENAME(month, created)|EOMONTH(created)|SUBSTRING(label, 1, 3)|LEFT(label, 3)|RIGHT(label, 3)|LEN(label)
        CHARINDEX('x', label)|PATINDEX('%x%', label)|LTRIM(label)|RTRIM(label)|LTRIM(RTRIM(label))|STUFF(label, 1, 1, 'x')|REVERSE(label)
        UPPER(label)|LOWER(CONVERT(VARCHAR(64), digest, 2))|HASHBYTES('SHA2_256', label)|JSON_VALUE(data, '$.label')|CAST(guid AS VARCHAR(36))
        TRY_CAST(label AS INT)|CAST(created AS DATE)|[label]|dbo_label|CHOOSE(1, label, kind)|RIGHT(CONCAT('000', label), 3)|ROUND(score, 1)|CEILING(score)
        FLOOR(score)|ABS(score)|COALESCE(label, kind)|NULLIF(label, '')|N'größe'|POWER(score, 2)|SIGN(score)|LOWER(label)|UNICODE(label)
        CHAR(65)|SYSDATETIME()|TRANSLATE(label, 'ab', 'cd')|STRING_AGG(label, ',')|COUNT(label)|MAX(label)|REPLACE(label, 'a', 'b')""",
}
_OWN = {
    "postgres": """SELECT DISTINCT ON (artifact_guid) artifact_guid, label, file_hash FROM labels ORDER BY artifact_guid, created DESC
SELECT artifact_guid, label, file_hash FROM labels LIMIT 100 OFFSET 5
SELECT l.artifact_guid, t.label, l.file_hash FROM labels l JOIN LATERAL (SELECT label FROM types t WHERE t.id = l.id LIMIT 1) t ON true
SELECT artifact_guid, tag AS label, file_hash FROM labels, unnest(tags) AS tag
SELECT artifact_guid, e.value ->> 'label' AS label, file_hash FROM labels, jsonb_array_elements(data) AS e
SELECT artifact_guid, mode() WITHIN GROUP (ORDER BY label) AS label, min(file_hash) AS file_hash FROM labels GROUP BY 1
SELECT artifact_guid, string_agg(label, ',' ORDER BY label) AS label, min(file_hash) FILTER (WHERE pages > 1) AS file_hash FROM labels GROUP BY 1
WITH RECURSIVE tree AS (SELECT id, name FROM types WHERE parent IS NULL UNION ALL SELECT t.id, t.name FROM types t JOIN tree ON t.parent = tree.id) SELECT l.artifact_guid, tree.name AS label, l.file_hash FROM labels l JOIN tree ON tree.id = l.type_id
SELECT artifact_guid, label, file_hash FROM labels l JOIN types t USING (id)
SELECT artifact_guid, label, file_hash FROM labels WHERE (label, kind) IN (('a', 'b'), ('c', 'd'))""",
    "sqlite": """SELECT artifact_guid, label, file_hash FROM labels LIMIT 100 OFFSET 5
SELECT artifact_guid, j.value AS label, file_hash FROM labels, json_each(labels.tags) AS j
SELECT artifact_guid, label, file_hash FROM labels l JOIN types t USING (id)
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT artifact_guid, label, file_hash FROM labels, n WHERE n.i = pages""",
    "mysql": """SELECT artifact_guid, label, file_hash FROM labels LIMIT 100
SELECT artifact_guid, label, file_hash FROM labels LIMIT 5, 100
SELECT artifact_guid, label, file_hash FROM labels l JOIN types t USING (id)""",
    "tsql": """SELECT TOP 100 artifact_guid, label, file_hash FROM labels
SELECT artifact_guid, label, file_hash FROM labels ORDER BY artifact_guid OFFSET 5 ROWS FETCH NEXT 10 ROWS ONLY
SELECT l.artifact_guid, t.label, l.file_hash FROM dbo.labels l CROSS APPLY (SELECT TOP 1 label FROM types t WHERE t.id = l.id) t""",
}


def ordinary_queries(dialect: str) -> list[str]:
    """At least a hundred."""
    expressions = [
        each.strip() for line in _EXPRESSIONS[dialect].splitlines() for each in line.strip().split("|") if each.strip()
    ]
    if dialect in ("postgres", "sqlite"):  # '||' is an operator there
        text = " ".join(line.strip() + "|" for line in _EXPRESSIONS[dialect].splitlines()).replace("||", "\0")
        expressions = [each.strip().replace("\0", "||") for each in text.split("|") if each.strip()]
    columns = [f"SELECT artifact_guid, {each} AS label, file_hash FROM labels" for each in expressions]
    return [*_SHAPES, *columns, *_OWN[dialect].splitlines()]

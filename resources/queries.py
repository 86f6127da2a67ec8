"""Which queries are sent to a label database: one read-only SELECT, and nothing else."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import sqlglot
from sqlglot import exp
from sqlglot.errors import ErrorLevel, SqlglotError

from resources.errors import RefusedQuery


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MAX_CHARACTERS = 100_000
# lpad(), format() and their like fill memory when asked to.
MAX_PADDED = 10_000
# What stands between a template's % and its letter.
_WIDTHS = re.compile(r"%([^%A-Za-z]*)")
# The shapes of a statement that only reads, by sqlglot's names. What is not here is refused: writes, locks, variables, hints,
# placeholders, system versions, and what future versions of a database invent.
_SHAPES = _words("""
    Add Alias All Any AtTimeZone Between BitString BitwiseAnd BitwiseLeftShift BitwiseNot BitwiseOr BitwiseRightShift
    BitwiseXor Boolean Bracket ByteString CharacterSet Column ColumnDef CTE Cube DataType DataTypeParam Distinct Div
    Dot DPipe EQ Escape Except Fetch Filter From Glob Group GroupingSets GT GTE Having HexString Identifier ILike In
    IntDiv Intersect Interval IntervalSpan Is Join JSONPath JSONPathFilter JSONPathKey JSONPathRoot JSONPathSlice
    JSONPathSubscript JSONPathWildcard Lateral Like Limit LimitOptions Literal LT LTE Mod Mul National Neg NEQ Not
    Null NullSafeEQ NullSafeNEQ ObjectIdentifier Offset Order Ordered Paren RawString Rollup Select SimilarTo Slice
    Star Sub Subquery Table TableAlias TableSample Tuple Union Values Var Where Window WindowSpec With WithinGroup
""")
# The functions, by sqlglot's names where it knows them …
_FUNCTIONS = _words("""
    Abs Acos AddMonths And AnyValue Array ArrayAgg ArrayConcat ArrayContainedBy ArrayContains ArrayContainsAll
    ArrayDistinct ArrayOverlaps ArrayPosition ArraySize ArraySlice ArrayToString Ascii Asin Atan Avg Case Cast Cbrt
    Ceil Chr Coalesce CodePointsToString Collate Concat ConcatWs Contains Convert ConvertTimezone Cos Count CountIf
    CumeDist CurrentDate CurrentDatetime CurrentTime CurrentTimestamp Date DateAdd DateDiff DateFromParts DateSub
    Datetime DateTrunc Day Dayname DayOfMonth DayOfWeek DayOfWeekIso DayOfYear Decode DecodeCase Degrees DenseRank Elt
    Encode EndsWith Exists Exp Explode ExplodingGenerateSeries Extract First FirstValue Floor Format GenerateSeries
    Greatest GroupConcat Grouping Hex Hour If Initcap JSONArray JSONArrayAgg JSONArrayContains JSONBContains
    JSONBContainsAllTopKeys JSONBContainsAnyTopKeys JSONBContainsTopKey JSONBExists JSONBExtract JSONBExtractScalar
    JSONBObjectAgg JSONExists JSONExtract JSONExtractArray JSONExtractScalar JSONFormat JSONKeys JSONObject
    JSONObjectAgg JSONType JSONValueArray Lag Last LastDay LastValue Lead Least Left Length Levenshtein List Ln
    Localtime Localtimestamp Log LogicalAnd LogicalOr Lower LowerHex MakeInterval Max MD5 MD5Digest Median Min Minute
    Mode Month Monthname MonthsBetween Normalize NthValue Ntile Nullif NumberToStr Nvl2 OpenJSON Or Overlay Pad
    ParseJSON PercentileCont PercentileDisc PercentRank Pi Pow Quarter Radians Rand Rank RegexpCount RegexpExtract
    RegexpExtractAll RegexpFullMatch RegexpILike RegexpInstr RegexpLike RegexpReplace RegexpSplit RegexpSubstr Replace
    Reverse Right Round RowNumber Second SHA SHA1Digest SHA2 SHA2Digest Sign Sin Soundex Split SplitPart Sqrt
    StandardHash StartsWith Stddev StddevPop StddevSamp String StringToArray StrPosition StrToDate StrToTime StrToUnix
    Stuff Substring SubstringIndex Sum Tan Time TimeAdd TimeDiff Timestamp TimestampAdd TimestampDiff TimestampSub
    TimestampTrunc TimeStrToDate TimeStrToTime TimeSub TimeToStr TimeToUnix TimeTrunc ToChar ToDays ToNumber Translate
    Trim Trunc Try TryCast TsOrDiToDi TsOrDsAdd TsOrDsDiff TsOrDsToDate TsOrDsToDateStr TsOrDsToDatetime TsOrDsToTime
    TsOrDsToTimestamp Typeof Unhex Unicode UnixDate UnixSeconds UnixToStr UnixToTime Unnest Upper UtcDate UtcTime
    UtcTimestamp Uuid Variance VariancePop Week WeekOfYear WidthBucket Xor Year
""")
# … and by their own where it does not.
_OTHER_FUNCTIONS = _words("""
    age array_length bin_to_uuid bit_count bit_length btrim cardinality char_length character_length choose
    clock_timestamp crc32 date_part datefromparts datetime datetrunc day dayofweek field find_in_set hour ifnull iif
    inet_ntoa instr isfinite isjson json_array_elements json_array_elements_text json_array_length json_build_array
    json_build_object json_contains json_each json_each_text json_extract_path json_extract_path_text json_length
    json_object_keys json_query json_tree json_type json_typeof json_unquote json_valid json_value
    jsonb_array_elements jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each
    jsonb_each_text jsonb_extract_path jsonb_extract_path_text jsonb_object_keys jsonb_path_exists jsonb_path_query
    jsonb_path_query_array jsonb_path_query_first jsonb_typeof julianday justify_days last_day likely make_date minute
    month now num_nonnulls num_nulls nvl octet_length ord patindex printf quarter quote regexp_match regexp_matches
    regexp_split_to_array regexp_split_to_table row row_to_json sec_to_time second statement_timestamp strftime
    string_split string_to_table sysdate time timestampadd timestampdiff to_json to_jsonb total transaction_timestamp
    trunc unaccent unix_timestamp unixepoch unlikely uuid_to_bin weekday year
""")
# Where a database keeps what is no document's label: accounts, sessions, settings.
_SYSTEM_SCHEMAS = frozenset(
    ["pg_catalog", "information_schema", "mysql", "sys", "performance_schema", "pg_toast", "msdb", "master"]
)
_SYSTEM_TABLES = ("pg_", "sqlite_", "pragma_", "dbstat", "sysobjects", "syslogins", "sysusers", "sysprocesses")


def check_query(query: str, dialect: str) -> str:
    """The one SELECT as it is sent: written anew from what was understood of `query`; or RefusedQuery. `dialect` as sqlglot names it.

    What is not understood is not sent: comments, whatever a database makes of them, and spellings that hide a name. This is a first
    fence. The second is the connection itself (a read-only session with a time limit), the third a database role that may only
    read.
    """
    if len(query) > MAX_CHARACTERS:
        raise RefusedQuery(f"LABELS_QUERY has {len(query):,} characters; expected at most {MAX_CHARACTERS:,}")
    try:
        with _quietly():
            statements = [statement for statement in sqlglot.parse(query, read=dialect) if _says_something(statement)]
        if len(statements) != 1:
            raise RefusedQuery(f"LABELS_QUERY has {len(statements)} statements; expected exactly one SELECT")
        statement = statements[0]
        assert statement is not None
        if not isinstance(statement.unnest(), exp.Query) or isinstance(statement, exp.Values):
            raise RefusedQuery(
                f"LABELS_QUERY is a {_name(statement)} statement; expected one SELECT, nothing else is sent"
            )
        for node in statement.walk():
            _check_node(node)
        with _quietly():
            # What this dialect cannot say is an error, not left out.
            return statement.sql(dialect=dialect, comments=False, unsupported_level=ErrorLevel.RAISE) + "\n"
    except (SqlglotError, RecursionError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RefusedQuery(f"LABELS_QUERY is not readable as {dialect} SQL: {detail[:300]}") from None


def _check_node(node: exp.Expr) -> None:
    """RefusedQuery for a part of a statement that is not among the known ones."""
    if isinstance(node, exp.Func):
        known = (isinstance(node, exp.Anonymous) and node.name.lower() in _OTHER_FUNCTIONS) or type(
            node
        ).__name__ in _FUNCTIONS
        if not known or isinstance(node.parent, exp.Dot):
            name = (node.name if isinstance(node, exp.Anonymous) else node.sql_name()).lower()
            raise RefusedQuery(
                f"LABELS_QUERY calls {name}(), which is not among the functions that compute with a row's values; expected a plain "
                "SELECT: let a view of the database call what you need"
            )
        if isinstance(node, exp.Pad) and not _is_small(node.expression):
            raise RefusedQuery(
                f"LABELS_QUERY pads to {node.expression.sql()} characters; expected a number up to {MAX_PADDED:,}"
            )
        if (template := _template(node)) is not None and not _has_small_widths(template):
            raise RefusedQuery(
                f"LABELS_QUERY formats with {template.sql()[:100]}; expected a literal format with widths up to {MAX_PADDED:,}"
            )
    elif type(node).__name__ not in _SHAPES:
        raise RefusedQuery(f"LABELS_QUERY contains {_name(node)}; expected one read-only SELECT")
    elif isinstance(node, exp.Table) and not isinstance(node.this, exp.Func):
        schemas = {part.name.lower() for part in node.parts[:-1]}
        system = schemas & _SYSTEM_SCHEMAS or node.name.lower().startswith(_SYSTEM_TABLES)
        if system or len(node.parts) > 3 or not isinstance(node.this, exp.Identifier):
            raise RefusedQuery(
                f"LABELS_QUERY reads {node.sql()[:100]}, which belongs to the database itself or to another server; expected tables "
                "of labels"
            )


def _is_small(size: exp.Expr | None) -> bool:
    return isinstance(size, exp.Literal) and size.is_int and int(size.name) <= MAX_PADDED


def _template(node: exp.Func) -> exp.Expr | None:
    """By which a function formats; None for other functions."""
    if isinstance(node, exp.Anonymous) and node.name.lower() == "printf":
        return node.expressions[0] if node.expressions else None
    if isinstance(node, exp.NumberToStr):
        return node.args.get("format")
    return node.this if isinstance(node, exp.Format) else None


def _has_small_widths(template: exp.Expr) -> bool:
    if not isinstance(template, exp.Literal):
        return False
    text = template.name.replace("%%", "")
    widths = _WIDTHS.findall(text) if "%" in text else [text]
    numbers = [int(number) for width in widths for number in re.findall(r"\d{1,20}", width)]
    return max(numbers, default=0) <= MAX_PADDED and not any("*" in width for width in widths)


@contextmanager
def _quietly() -> Iterator[None]:
    """sqlglot logs statements that it does not know; they are refused here, with a reason."""
    logger = logging.getLogger("sqlglot")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _says_something(statement: exp.Expr | None) -> bool:
    """False for the nothing, or the comment, behind a last semicolon."""
    return statement is not None and not isinstance(statement, exp.Semicolon)


def _name(node: exp.Expr) -> str:
    words: dict[type[exp.Expr], str] = {exp.Into: "SELECT INTO", exp.Lock: "a row lock (FOR UPDATE)"}
    if isinstance(node, exp.Command):
        return str(node.this).upper()
    return words.get(type(node), type(node).__name__.upper())

"""Queries that reach beyond the label tables, by database; every one is meant to be refused."""

_FUNCTIONS = {
    "postgres": """pg_read_file('/etc/passwd') pg_read_binary_file('x') pg_ls_dir('/') pg_stat_file('x') pg_sleep(9) pg_terminate_backend(1)
        pg_cancel_backend(1) pg_reload_conf() pg_rotate_logfile() pg_promote() pg_switch_wal() pg_create_restore_point('x')
        pg_advisory_lock(1) pg_notify('a','b') pg_create_physical_replication_slot('x') pg_create_logical_replication_slot('x','y')
        pg_drop_replication_slot('x') pg_logical_emit_message(true,'a','b') pg_stat_reset() pg_stat_reset_shared('bgwriter')
        pg_stat_statements_reset() pg_replication_origin_create('x') pg_export_snapshot() pg_backup_start('x') pg_import_system_collations('x')
        pg_hba_file_rules() lo_import('/etc/passwd') lo_export(1,'/tmp/x') lo_unlink(1) lo_from_bytea(0,'x') dblink('host=x','y')
        dblink_exec('x','y') set_config('a','b',false) current_setting('data_directory') nextval('s') setval('s',1) query_to_xml('x',true,true,'')
        ts_stat('select 1') xpath_table('a','b','c','d','e') txid_current() version() inet_server_addr() current_user repeat('x',1000000000)
        some_function_of_ours(1) format('%1000000000s','x') format('%*s',1000000000,'x') format(label,'x')""",
    "sqlite": """load_extension('x') readfile('/etc/passwd') writefile('x','y') fsdir('/') edit('x') fts3_tokenizer('x') zeroblob(1000000000)
        randomblob(1000000000) sqlite_version() sqlite_compileoption_get(1) pragma_table_info('labels') last_insert_rowid() changes()
        total_changes() sqlite_offset(label) repeat('x',1000000000) lsmode(1) eval('select 1') define('a','b')
        sqlar_compress('x') zipfile('x') shell('x') import('x') csv('x') printf('%1000000000d',1)
        printf('%.*c',1000000000,'x') printf(label,1) format('%999999999s',label) to_char(label,'999')""",
    "mysql": """load_file('/etc/passwd') sleep(9) benchmark(1000000000,md5(1)) get_lock('a',9) release_lock('a') is_free_lock('a') sys_exec('x')
        sys_eval('x') user() current_user() session_user() version() database() connection_id() last_insert_id(5) row_count() master_pos_wait('a',1)
        source_pos_wait('a',1) wait_for_executed_gtid_set('a') uuid_short() extractvalue(1,'x') updatexml(1,'x','y') repeat('x',1000000000)
        space(1000000000) our_function(1)""",
    "tsql": """openrowset('a','b','c') opendatasource('a','b') openquery(srv,'select 1') xp_cmdshell('x') fn_xe_file_target_read_file('a','b',null,null)
        sys.fn_get_audit_file('a','b','c') suser_name() user_name() original_login() host_name() app_name() db_name() object_definition(1)
        serverproperty('x') has_perms_by_name('a','b','c') is_srvrolemember('sysadmin') connectionproperty('x') replicate('x',1000000000)
        space(1000000000) dbo.our_function(1) fn_trace_gettable('x',1) pwdcompare('a',0x00) certencoded(1) decryptbypassphrase('a',0x00)
        encryptbypassphrase('a','b') format(1,'N999999999') format(1,label)""",
}
_FORMS = (
    "SELECT artifact_guid, {} AS label, file_hash FROM labels",
    "SELECT artifact_guid, label, file_hash FROM labels WHERE {} IS NOT NULL",
    "WITH a AS (SELECT {} AS x) SELECT artifact_guid, label, file_hash FROM labels, a",
    "SELECT artifact_guid, label, file_hash FROM labels ORDER BY CASE WHEN {} IS NULL THEN 1 ELSE 2 END",
)
_EVERYWHERE = """DROP TABLE labels
DELETE FROM labels
UPDATE labels SET label = 'x'
INSERT INTO labels VALUES (1)
CREATE TABLE x (a INT)
ALTER TABLE labels ADD x INT
SELECT 1; DROP TABLE labels
SELECT 1; SELECT 2
GRANT ALL ON labels TO me
SELECT * FROM information_schema.tables
SELECT artifact_guid, label, file_hash FROM labels WHERE a = ? """
_OWN = {
    "postgres": r"""SELECT U&"pg\005fread_file"('/etc/passwd')
SELECT "pg_read_file"('/etc/passwd')
SELECT pg_catalog.pg_read_file('/etc/passwd')
SELECT other.lower('x')
SELECT * FROM pg_ls_dir('/')
SELECT * FROM ROWS FROM (pg_ls_dir('/')) AS t
SELECT * FROM pg_shadow
SELECT * FROM pg_catalog.pg_authid
SELECT * FROM pg_stat_activity
SELECT * INTO other FROM labels
WITH gone AS (DELETE FROM labels RETURNING *) SELECT * FROM gone
SELECT * FROM labels FOR UPDATE
SELECT * FROM labels FOR SHARE
SELECT lpad('x', 1000000000)
SELECT $1
COPY labels TO PROGRAM 'x'
DO $$ BEGIN PERFORM 1; END $$
EXPLAIN ANALYZE SELECT 1
LISTEN x
SELECT 1 \\; DROP TABLE labels""",
    "sqlite": """PRAGMA writable_schema = 1
ATTACH 'x' AS y
SELECT * FROM sqlite_master
SELECT * FROM pragma_database_list
SELECT * FROM dbstat
VACUUM INTO 'x'
SELECT * FROM sqlite_schema
SELECT :x
REPLACE INTO labels VALUES (1)
SELECT printf('%*d', 1000000000, 1) FROM readfile('x')""",
    "mysql": """SELECT * FROM labels INTO OUTFILE '/tmp/x'
SELECT * FROM labels INTO DUMPFILE '/tmp/x'
SELECT label INTO @a FROM labels
SELECT @a := 1
SELECT @@datadir
SELECT * FROM mysql.user
SELECT * FROM labels FOR UPDATE
SELECT * FROM labels LOCK IN SHARE MODE
SELECT * FROM sys.session
SELECT * FROM performance_schema.threads
HANDLER labels OPEN
LOAD DATA INFILE 'x' INTO TABLE labels
CALL x()
SET @a = 1""",
    "tsql": """EXEC xp_cmdshell 'x'
SELECT * INTO other FROM labels
SELECT * FROM sys.sql_logins
SELECT * FROM master.dbo.syslogins
SELECT * FROM srv.db.dbo.labels
SELECT * FROM labels WITH (UPDLOCK)
SELECT @@version
SELECT * FROM labels OPTION (RECOMPILE)
WAITFOR DELAY '00:00:09'
DECLARE @a INT
SELECT NEXT VALUE FOR s
SHUTDOWN""",
}


def hostile_queries(dialect: str) -> list[str]:
    """At least a hundred."""
    calls = _FUNCTIONS[dialect].split()
    return [
        *(form.format(call) for call in _joined(calls) for form in _FORMS),
        *_EVERYWHERE.splitlines(),
        *_OWN[dialect].splitlines(),
    ]


def _joined(words: list[str]) -> list[str]:
    """Calls whose arguments hold blanks, in one piece again."""
    calls: list[str] = []
    for word in words:
        if calls and calls[-1].count("(") > calls[-1].count(")"):
            calls[-1] += f" {word}"
        else:
            calls.append(word)
    return calls

"""Clients of the outside world: object stores, label databases, secrets, jobs. No Dagster definitions here.

Nothing is read from the environment and no client is built at import: everything takes an `environment` mapping and opens
its clients at first use.

Errors:

    ResourceError          something outside the process refused, failed or was set up wrongly
    ├── StoreError         an object store refused or failed
    │   ├── MissingKey     no object has this key
    │   ├── UnreadableFile one file that is there and cannot be read (its permissions, a symbolic link, the disk)
    │   ├── UnsafeKey      a key that no store is asked for ('..', empty segments, control characters)
    │   └── UnsafeFile     a file that does not enter a store: a symbolic link
    ├── LabelError         the label source refused or failed
    │   ├── RefusedQuery   the query is not one read-only SELECT; nothing was sent
    │   └── TooManyRows    more rows than MAX_LABEL_ROWS
    └── SettingError       a setting of the deployment is missing or wrong

`resources.jobs` draws its own branch below ResourceError.
"""

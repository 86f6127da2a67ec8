"""The store: a folder or a bucket, its keys, and folders with a manifest."""

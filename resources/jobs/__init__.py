"""Jobs that run exactly once: one engine over two backends, SageMaker and this machine.

    interface   what callers see: Jobs, Listener, JobResult, Orphan
    engine      exactly once: records, attempts, the watch over a job with its lease, retries; the same for both backends
    backend     what the engine asks of a backend
    local       jobs as subprocesses of a detached supervisor on this machine
    sagemaker   jobs in the cloud: requests (pure), Create, what Describe and the logs tell, errors

Errors:

    ResourceError
    └── JobError               a job could not be run, followed or completed
        ├── JobRefused         not started: what was asked for is wrong, and the message names it
        │   ├── JobElsewhere   its job runs in another account or region
        │   └── CostTooHigh    its worst case costs more than MAX_COST_USD
        ├── JobUnreachable     the service could not be asked for longer than the budget allows
        └── JobFailed          ended without success
            └── JobStopped     stopped by someone, or by MaxRuntime or MaxWait
"""

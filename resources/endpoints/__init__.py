"""Endpoints that answer with a deployment folder, exactly one a name: one way to work on two backends, SageMaker and this machine.

    interface   what is asked of an endpoint (EndpointSpec), how it stands, what a backend can do, errors
    endpoints   exactly once: a record before the first call, the wait, the check of its answers, removal, the sweep
    records     what the store knows of them
    local       a server process on this machine
    copies      deployment folders on this machine, where the store is a bucket
    sagemaker   Model, EndpointConfig and Endpoint in the cloud; scaling and alarms; champions in the Model Registry

Errors:

    ResourceError
    └── EndpointError              an endpoint could not be made, asked or taken down
        ├── EndpointRefused        nothing was made: what was asked for is wrong, and the message names it
        ├── EndpointFailed         it did not come up as asked, or was rolled back; the message holds its own reason
        ├── EndpointUnreachable    the service could not be asked for longer than the budget allows
        └── UnknownEndpoint        no endpoint of that name is known
"""

"""Jobs on this machine: a supervised process over SageMaker's folders."""

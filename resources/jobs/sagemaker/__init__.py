"""Jobs on SageMaker: requests, their validation, and what Describe answers."""

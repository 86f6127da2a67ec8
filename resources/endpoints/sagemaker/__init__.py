"""Endpoints on SageMaker: requests (pure), the backend that sends them."""

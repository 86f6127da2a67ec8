"""The exported model's answers on a test split."""

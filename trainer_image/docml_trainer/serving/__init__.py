"""A model that answers over HTTP: what is sent, how it is encoded, how answers are batched, and what HTTP makes of it."""

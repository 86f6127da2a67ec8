# The base of the image under test: Python in a virtual environment of its own and torch, as in AWS's containers.
ARG ROOT
FROM ${ROOT}
ARG TORCH_INDEX
COPY pip.conf /etc/pip.conf
COPY host/ /run/host/
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
COPY constraints.txt /opt/
# A tool of the base, older than docml's pin, and one that docml knows nothing of.
RUN python -m pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} --constraint /opt/constraints.txt torch==2.13.0 \
    && python -m pip install --no-cache-dir PyYAML==6.0.2 toolz==1.0.0

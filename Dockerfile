# syntax=docker/dockerfile:1
# One image for the HTTP API, every worker and the command line; the command selects the process. `--target simulators` adds
# the stand-ins for other people's services.

FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
RUN python -m venv /opt/leadstream
WORKDIR /source
# Before the code, which changes more often: so this layer is reused.
COPY requirements/ requirements/
RUN /opt/leadstream/bin/pip install --requirement requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY api/ api/
COPY cli/ cli/
COPY infra/ infra/
COPY operations/ operations/
COPY schemas/ schemas/
COPY sinks/ sinks/
COPY streams/ streams/
RUN /opt/leadstream/bin/pip install --no-deps .

FROM build AS build-simulators
RUN /opt/leadstream/bin/pip install --constraint requirements/local.txt aiosmtpd

FROM python:3.11-slim AS base
ENV PATH=/opt/leadstream/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 LEADSTREAM_HOME=/var/lib/leadstream
RUN useradd --system --uid 10001 --home-dir /var/lib/leadstream --create-home leadstream
WORKDIR /app
USER leadstream

FROM base AS simulators
COPY --from=build-simulators /opt/leadstream /opt/leadstream
COPY simulators/ simulators/
ENTRYPOINT ["python", "-m", "simulators"]

FROM base AS leadstream
COPY --from=build /opt/leadstream /opt/leadstream
COPY campaigns/ campaigns/
COPY tenants/ tenants/
CMD ["leadstream", "--help"]

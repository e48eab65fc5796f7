FROM python:3.13-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY tenants tenants
COPY migrations_api migrations_api
COPY examples examples
RUN pip install .
# The settings want a control plane; nothing connects to it here.
RUN DATABASE_URL=postgresql://none/none STATIC_ROOT=/opt/static django-admin collectstatic --settings=service.settings --no-input

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home service
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/static /opt/static
WORKDIR /srv
COPY manage.py ./
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    STATIC_ROOT=/opt/static
USER 10001
EXPOSE 8000
# Alive, not ready: a control plane that is away is no reason to start the container again.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://localhost:8000/healthz', timeout=4)"]
# As process 1, `serve` gets the signals and waits for the steps in flight.
CMD ["python", "manage.py", "serve", "--host=0.0.0.0"]

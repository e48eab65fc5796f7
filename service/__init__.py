from importlib.util import find_spec

if find_spec("celery") is not None:
    # Whoever sends a message has to find the app that is configured for it.
    from service.celery import app as celery_app

    __all__ = ["celery_app"]

"""A project of Django alone: whose database and apps, the benchmark says in PEERS."""

import json
import os

_given = json.loads(os.environ["PEERS"])
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", **_given["database"]}}
INSTALLED_APPS = APPS = _given["apps"]
SECRET_KEY = "nothing is signed with it"  # noqa: S105
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
USE_I18N = False
ROOT_URLCONF = "urls"
# What an app needs (WAGTAIL_SITE_NAME) or a tool is tuned by (TENANT_MULTIPROCESSING_CHUNKS).
globals().update(_given["settings"])

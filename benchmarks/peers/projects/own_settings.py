"""The service as a project of its own imports it, with what its tenants' apps need besides."""

import json
import os

from service.settings import *  # noqa: F403

globals().update(json.loads(os.environ["PEERS"])["settings"])

"""What is migrated: the small app set of all comparisons, and a heavy one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers import app_set


@dataclass(frozen=True, kw_only=True)
class Workload:
    """`apps` are those of a tenant; `requirements` the packages that they come from; `settings` what they need."""

    name: str
    apps: tuple[str, ...]
    requirements: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


SMALL = Workload(name="small", apps=tuple(app_set.INSTALLED))
WAGTAIL = Workload(
    name="wagtail",
    apps=(
        "django.contrib.contenttypes",
        "django.contrib.auth",
        "taggit",
        "wagtail",
        "wagtail.admin",
        "wagtail.contrib.forms",
        "wagtail.contrib.redirects",
        "wagtail.documents",
        "wagtail.embeds",
        "wagtail.images",
        "wagtail.search",
        "wagtail.sites",
        "wagtail.snippets",
        "wagtail.users",
    ),
    requirements=("wagtail",),
    settings={"WAGTAIL_SITE_NAME": "Benchmark", "WAGTAILADMIN_BASE_URL": "http://localhost", "STATIC_URL": "static/"},
)

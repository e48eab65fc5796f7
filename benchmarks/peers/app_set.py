"""The apps that every tool migrates: 4 apps, 12 models, 30 migrations, of ordinary operations.

They stand on `django.contrib.auth` and `django.contrib.contenttypes`. The last migration adds a nullable column: it is
the one that is pending where one is.
"""

from pathlib import Path
from textwrap import indent

APPS = ("crm", "stock", "sales", "billing")
INSTALLED = ["django.contrib.contenttypes", "django.contrib.auth", *APPS]
MIGRATIONS = 30
# The app, the migration, its table and the column that it adds.
LAST = ("billing", "0008_account_closed_on", "billing_account", "closed_on")

MODELS = """from django.conf import settings
from django.db import models


class Account(models.Model):
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="{app}_accounts")
    name = models.CharField(max_length=200)
    email = models.EmailField(default="")
    created_at = models.DateTimeField(auto_now_add=True)
    tags = models.ManyToManyField("{app}.Tag", related_name="accounts")
{last}

class Entry(models.Model):
    account = models.ForeignKey("{app}.Account", models.CASCADE, related_name="entries")
    amount = models.DecimalField(max_digits=12, decimal_places=2)
    note = models.TextField(blank=True)
    booked_on = models.DateField(null=True)
{before}
    class Meta:
        indexes = [models.Index(fields=["account", "booked_on"], name="{app}_entry_booked")]


class Tag(models.Model):
    name = models.CharField(max_length=50)
    slug = models.SlugField(unique=True)
{constraint}"""
CONSTRAINT = """
    class Meta:
        constraints = [models.UniqueConstraint(fields=["name"], name="{app}_tag_name_unique")]
"""
BEFORE = '    cause = models.ForeignKey("{before}.Entry", models.SET_NULL, null=True, related_name="+")\n'

MIGRATION = """from django.conf import settings
from django.db import migrations, models

{preface}
class Migration(migrations.Migration):
    dependencies = [{dependencies}]
    operations = [
{operations}
    ]
"""
KEY = '("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"))'
INITIAL = """migrations.CreateModel(
    "Account",
    [
        {key},
        (
            "owner",
            models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="{app}_accounts"),
        ),
        ("name", models.CharField(max_length=100)),
        ("created_at", models.DateTimeField(auto_now_add=True)),
    ],
),
migrations.CreateModel(
    "Entry",
    [
        {key},
        ("account", models.ForeignKey("{app}.Account", models.CASCADE, related_name="entries")),
        ("amount", models.DecimalField(max_digits=12, decimal_places=2)),
        ("booked_on", models.DateField(null=True)),
    ],
),
migrations.CreateModel(
    "Tag",
    [{key}, ("name", models.CharField(max_length=50)), ("slug", models.SlugField(unique=True))],
),"""
FIELDS = """migrations.AddField("account", "email", models.EmailField(default="", max_length=254)),
migrations.AddField("entry", "note", models.TextField(blank=True, default=""), preserve_default=False),"""
WIDER = 'migrations.AlterField("account", "name", models.CharField(max_length=200)),'
INDEX = 'migrations.AddIndex("entry", models.Index(fields=["account", "booked_on"], name="{app}_entry_booked")),'
TAGS = 'migrations.AddField("account", "tags", models.ManyToManyField("{app}.Tag", related_name="accounts")),'
SEED = "migrations.RunPython(seed, migrations.RunPython.noop),"
SEEDS = """
def seed(apps, schema_editor):
    Tag = apps.get_model("{app}", "Tag")
    rows = [Tag(name=f"Tag {{number}}", slug=f"tag-{{number}}") for number in range(5)]
    Tag.objects.using(schema_editor.connection.alias).bulk_create(rows)

"""
CAUSE = """migrations.AddField(
    "entry", "cause", models.ForeignKey("{before}.Entry", models.SET_NULL, null=True, related_name="+")
),"""
UNIQUE = """migrations.AddConstraint(
    "tag", models.UniqueConstraint(fields=["name"], name="{app}_tag_name_unique")
),"""
CLOSED = 'migrations.AddField("account", "closed_on", models.DateField(null=True)),'


def write(folder: Path) -> None:
    """Write the apps as packages into `folder`, which is to be on the path of whoever migrates them."""
    for app in APPS:
        package = folder / app
        (package / "migrations").mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "migrations" / "__init__.py").touch()
        (package / "models.py").write_text(_models(app))
        previous = ""
        for name, operations in _migrations(app):
            text = MIGRATION.format(
                preface=SEEDS.format(app=app) if name.endswith("seed") else "",
                dependencies=_dependencies(app, name, previous),
                operations=indent(operations.format(app=app, before=_before(app), key=KEY), " " * 8),
            )
            (package / "migrations" / f"{name}.py").write_text(text)
            previous = name


def _migrations(app: str) -> list[tuple[str, str]]:
    names = [
        ("initial", INITIAL),
        ("account_email_entry_note", FIELDS),
        ("account_longer_name", WIDER),
        ("entry_booked", INDEX),
        ("account_tags", TAGS),
        ("seed", SEED),
    ]
    if _before(app):
        names.append(("entry_cause", CAUSE))
    if _is_constrained(app):
        names.append(("tag_name_unique", UNIQUE))
    if app == LAST[0]:
        names.append(("account_closed_on", CLOSED))
    return [(f"{number:04}_{name}", operations) for number, (name, operations) in enumerate(names, 1)]


def _models(app: str) -> str:
    return MODELS.format(
        app=app,
        last="    closed_on = models.DateField(null=True)\n" if app == LAST[0] else "",
        before=BEFORE.format(before=_before(app)) if _before(app) else "",
        constraint=CONSTRAINT.format(app=app) if _is_constrained(app) else "",
    )


def _dependencies(app: str, name: str, previous: str) -> str:
    if not previous:
        return "migrations.swappable_dependency(settings.AUTH_USER_MODEL)"
    needed = [f'("{app}", "{previous}")']
    if name.endswith("entry_cause"):
        needed.append(f'("{_before(app)}", "0001_initial")')
    return ", ".join(needed)


def _before(app: str) -> str:
    """The app whose entries those of `app` point at."""
    return APPS[APPS.index(app) - 1] if app != APPS[0] else ""


def _is_constrained(app: str) -> bool:
    return app in APPS[:2]

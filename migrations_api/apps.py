from django.apps import AppConfig


class MigrationsApiConfig(AppConfig):
    name = "migrations_api"
    default_auto_field = "django.db.models.BigAutoField"

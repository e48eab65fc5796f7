from django.apps import AppConfig


class MigrationsApiConfig(AppConfig):
    name = "migrations_api"
    verbose_name = "Tenant migrations"
    default_auto_field = "django.db.models.BigAutoField"

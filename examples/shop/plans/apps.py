from django.apps import AppConfig


class PlansConfig(AppConfig):
    name = "examples.shop.plans"
    default_auto_field = "django.db.models.BigAutoField"

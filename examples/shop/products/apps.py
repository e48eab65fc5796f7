from django.apps import AppConfig


class ProductsConfig(AppConfig):
    name = "examples.shop.products"
    default_auto_field = "django.db.models.BigAutoField"

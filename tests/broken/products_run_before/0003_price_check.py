from importlib import import_module

Migration = import_module("examples.shop.products.migrations.0003_price_check").Migration
